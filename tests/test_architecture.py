"""Imports run one way, and a file holds one idea."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

import pytest
from support.rooms import ROOMS

import fastsnn_jax

ROOT = pathlib.Path(fastsnn_jax.__file__).parent
FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
  for path in sorted(ROOT.rglob('*.py'))
}
LONG = 400  # lines of a file that are worth a second look


def imports(path):
  """Full names of all that a file imports, wherever in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def importers(*prefixes):
  return {
    name
    for name, path in FILES.items()
    if any(f'{i}.'.startswith(f'{p}.') for i in imports(path) for p in prefixes)
  }


@pytest.mark.parametrize('name', FILES)
def test_imports_follow_the_list(name):
  room = name.split('.')[0]
  assert room in ROOMS, f'{name}: give it a place in ROOMS'
  parts = [i.split('.') for i in imports(FILES[name])]
  taken = {p[1] for p in parts if p[0] == 'fastsnn_jax' and p[1:]} & set(ROOMS)
  later = ROOMS[ROOMS.index(room) + 1 :]
  assert not taken.intersection(later), f'{name} imports a later room'


def test_a_folder_has_at_most_12_modules():
  folders = collections.Counter(name.rpartition('.')[0] for name in FILES)
  assert {f: n for f, n in folders.items() if n > 12} == {}


def test_a_long_file_is_named():
  lines = {name: path.read_text().count('\n') for name, path in FILES.items()}
  for name, count in lines.items():
    if count > LONG:
      print(f'{name} has {count} lines, of {LONG} that a file should have')


def test_no_two_modules_have_one_name():
  # Every task has these; __init__ is the folder's own name.
  shared = {'__init__', 'task', 'data', 'augment'}
  # The old homes that config files of before still import from.
  names = collections.Counter(
    name.split('.')[-1] for name in FILES if name not in ('config', 'recipes')
  )
  assert {n for n, count in names.items() if count > 1} - shared == set()


def test_only_tasks_ask_which_task_it_is():
  asks = re.compile(r'task [=!]=|task_of\(|\.has_boxes|\.task (not )?in\b')
  assert [
    (name, line)
    for name, path in FILES.items()
    if not name.startswith('tasks.')
    for line in path.read_text().splitlines()
    if asks.search(line)
  ] == []


def test_few_files_ask_how_the_data_are_read():
  """Tasks, which open them, and the identity of a run.

  A stream's images have the size of `data.size`, so the identity leaves their
  shape out.
  """
  asking = {
    name
    for name, path in FILES.items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and node.attr == 'stream'
  }
  assert {name for name in asking if not name.startswith('tasks.')} == {
    'experiment.workdir'
  }


def test_only_the_experiment_reads_its_config():
  readers = {
    name.split('.')[0] for name in importers('fastsnn_jax.experiment.config')
  }
  assert readers == {'experiment', 'config', '__init__'}


def test_few_files_know_the_large_libraries():
  assert importers('orbax') == {'checkpoint.store'}
  assert importers('PIL') == {'data.decode'}
  assert importers('torch') <= {'torch_interop.files'}
  assert importers('onnx') == {'deployment.graph', 'deployment.onnx_file'}
  assert importers('nir') == {'deployment.nir_file'}
  assert not importers('tensorflow', 'flax.nnx')
  assert {name.split('.')[0] for name in importers('flax.linen')} == {'nn'}


def test_importing_the_package_loads_no_heavy_library():
  script = (
    'import sys, fastsnn_jax; print(*{"tensorflow_datasets", "tensorflow", '
    '"orbax", "matplotlib", "torch", "grain", "pycocotools", "onnx"} & '
    '{n.split(".")[0] for n in sys.modules})'
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    check=True,
    capture_output=True,
    text=True,
    cwd=ROOT.parent,
  )
  assert done.stdout.split() == []
