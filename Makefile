# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TESTS ?= not slow

.PHONY: demo test test-all lint clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

demo: $(VENV)/installed ## train, convert, repair and judge on embedded digits
	$(BIN)/python train.py --config configs/digits.py --workdir runs/digits
	$(BIN)/python convert.py --workdir runs/digits

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

test: lint ## what has to pass before anything lands
	$(BIN)/python -m pytest -n 2 -m '$(TESTS)'

test-all: lint ## and what takes too long for that
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
