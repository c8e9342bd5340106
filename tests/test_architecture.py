"""Imports run one way, and a file holds one idea."""

import ast
import pathlib
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


def test_folders_are_small_and_names_are_told_apart():
  folders = {}
  for name in FILES:
    folders.setdefault(name.rpartition('.')[0], []).append(name)
  for folder, names in folders.items():
    assert len(names) <= 12, f'{folder}: {len(names)} modules'


def test_few_files_know_the_large_libraries():
  assert importers('orbax') == {'checkpoint.store'}
  assert importers('PIL') == {'data.decode'}
  assert importers('torch') <= {'torch_interop.files'}
  assert not importers('tensorflow', 'flax.nnx')
  assert {name.split('.')[0] for name in importers('flax.linen')} == {'nn'}


def test_importing_the_package_loads_no_heavy_library():
  script = (
    'import sys, fastsnn_jax; print(*{"tensorflow_datasets", "tensorflow", '
    '"orbax", "matplotlib", "torch", "grain", "pycocotools"} & '
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
