"""Inside nn, imports run one way."""

import pathlib
import re

from fastsnn_jax import nn

ORDER = (
  'quantizers',
  'whole',
  'integrate_and_fire',
  'neurons',
  'weights',
  'convolve',
  'layers',
  'affine',
  'synapses',
  'until_quiet',
  'network',
)


def test_each_module_imports_those_before_it():
  texts = {
    path.stem: path.read_text()
    for path in pathlib.Path(nn.__path__[0]).glob('*.py')
  }
  assert texts.keys() == {'__init__', *ORDER}
  for i, name in enumerate(ORDER):
    code = re.sub(r'^ *>>>.*', '', texts[name], flags=re.M)
    later = set(re.findall(r'fastsnn_jax\.nn\.(\w+)', code)) - {*ORDER[:i]}
    assert not later, name
