# Each command makes the environment that it needs: start with `make demo`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TESTS ?= not slow

.PHONY: demo test test-all lint format docs clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

demo: $(VENV)/installed ## train, convert, fine-tune and report on the digits
	$(BIN)/python train.py --config configs/digits.py --workdir runs/digits
	$(BIN)/python convert.py --workdir runs/digits

format: $(VENV)/installed ## rewrite the files in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/installed ## style, common mistakes, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint ## what has to pass before a change is merged
	$(BIN)/python -m pytest -n 2 -m '$(TESTS)' --durations=40 --durations-min=5

test-all: lint ## the same and the tests that take minutes
	$(BIN)/python -m pytest -n 2

docs: $(VENV)/docs-installed ## build the pages into site/; a warning is an error
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .hypothesis
