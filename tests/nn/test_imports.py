"""Inside nn, imports run one way."""

import pathlib
import re

from fastsnn_jax import nn

FOLDERS = 'folded', 'tables'
ORDER = (
  'quantizers',
  'whole',
  'folded.static',
  'folded.words',
  'folded.together',
  'charge',
  'integrate_and_fire',
  'neurons',
  'weights',
  'convolve',
  'layers',
  'tables.affine',
  'synapses',
  'folded.kernels',
  'tables.table',
  'folded.activity',
  'folded.run',
  'folded.settle',
  'until_quiet',
  'network',
  'folded.fold',
)


def modules():
  """{name: text}; those of folders have a dot."""
  root = pathlib.Path(nn.__path__[0])
  return {
    '.'.join(path.relative_to(root).with_suffix('').parts): path.read_text()
    for path in root.rglob('*.py')
    if path.stem != '__init__'
  }


def imports(text):
  code = re.sub(r'^ *>>>.*', '', text, flags=re.M)
  found = re.findall(r'fastsnn_jax\.nn\.([\w.]+)(?: import (\w+))?', code)
  return {f'{name}.{what}' if name in FOLDERS else name for name, what in found}


def test_each_module_imports_those_before_it():
  texts = modules()
  assert texts.keys() == {*ORDER}
  for i, name in enumerate(ORDER):
    assert imports(texts[name]) <= {*ORDER[:i]}, name
