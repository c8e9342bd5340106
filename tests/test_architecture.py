"""Imports run one way (design: rooms), and a file holds one idea."""

import ast
import pathlib
import subprocess
import sys

import pytest

import fastsnn_jax

ROOT = pathlib.Path(fastsnn_jax.__file__).parent
FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
  for path in sorted(ROOT.rglob('*.py'))
}
EVERYTHING = '*'
# What each room may import of the package, besides itself and errors.
ROOMS = {
  '__init__': EVERYTHING,
  'errors': '',
  'version': '',
  'quantize': '',
  'convolve': '',
  'integrate': 'quantize',
  'neurons': 'integrate quantize',
  'weights': 'quantize',
  'kernels': 'convolve weights',
  'synapses': 'kernels weights',
  'network': 'neurons synapses',
  'models': 'network neurons synapses',
  'conversion': 'network neurons',
  'tasks': '',
  'data': '',
  'checking': '',
  'config': 'checking',
  'config_trees': 'config',
  'devices': '',
  'checkpoint': '',
  'progress': 'devices',
  'canvas': '',
  'plots': 'canvas',
  'rasters': 'canvas',
  'pictures': 'canvas',
  'report': 'canvas pictures plots rasters',
  'counting': 'network',
  'torch_names': 'network synapses',
  'torch_files': '',
  'torch_import': 'models network synapses torch_files torch_names',
  'pretrained': 'network torch_files torch_import torch_names',
  'batching': 'data devices',
  'evaluation': 'batching network counting data devices tasks',
  'predicting': 'network data tasks',
  'gradients': 'devices network tasks',
  'recipe': '',
  'training': 'data devices gradients recipe tasks',
  'feeding': 'data devices training',
  'tuning': '',
  'finetuning': 'tuning network quantize data devices tasks evaluation',
  'watch': '',
  'running': 'network tasks training devices checkpoint progress watch',
  # What experiment is made of: it alone joins the two halves of the house.
  'judging': (
    'network conversion data tasks batching evaluation finetuning progress'
  ),
  'recipes': 'config models',
  'opening': 'data models',
  'official': (
    'checkpoint config config_trees opening recipes storage torch_import'
  ),
  'storage': ('network neurons models config config_trees checkpoint opening'),
  'stages': EVERYTHING,
  'preparing': 'batching finetuning models progress stages',
  'experiment': EVERYTHING,
  'command': 'config devices experiment official recipes',
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


def rooms(path):
  parts = [name.split('.') for name in imports(path)]
  known = {name.split('.')[0] for name in FILES}
  return {p[1] for p in parts if p[0] == 'fastsnn_jax' and p[1:]} & known


def importers(*prefixes):
  return {
    name
    for name, path in FILES.items()
    if any(f'{i}.'.startswith(f'{p}.') for i in imports(path) for p in prefixes)
  }


@pytest.mark.parametrize('name', FILES)
def test_imports_follow_the_arrows(name):
  room = name.split('.')[0]
  assert room in ROOMS, f'{name}: give it a row in ROOMS'
  if ROOMS[room] != EVERYTHING:
    allowed = {room, 'errors', *ROOMS[room].split()}
    assert rooms(FILES[name]) <= allowed


@pytest.mark.parametrize('name', FILES)
def test_a_file_has_at_most_300_lines(name):
  lines = FILES[name].read_text().count('\n')
  assert lines <= 300


def test_few_files_know_the_large_libraries():
  assert importers('flax.linen') == {'kernels', 'synapses', 'network'}
  assert importers('orbax') == {'checkpoint'}
  assert importers('tensorflow_datasets') == {
    'data.tfds_source',
    'data.tfds_records',
    'data.tfds_boxed',
  }
  assert importers('grain') == {'data.loader'}
  assert importers('pycocotools') == {'data.coco_masks', 'tasks.coco_metrics'}
  assert importers('PIL') == {'data.decode'}
  assert not importers('flax') & {'quantize', 'neurons'}
  assert importers('torch') <= {'torch_files'}
  assert not importers('tensorflow', 'flax.nnx')


def test_only_the_experiment_s_rooms_read_the_schema():
  readers = importers('fastsnn_jax.config')
  assert readers <= {
    'config_trees',
    'experiment',
    'storage',
    'command',
    'recipes',
    'official',
    'stages',
  }


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
