"""What the official PyTorch checkpoints call the leaves of our trees.

The names of layers are the official ones; what is inside a layer is called
otherwise in each family (reference behaviour C8). Detectors and segmenters are
nested in one module, with the thetas behind the shortcuts.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.synapses import Chain, Residual
from fastsnn_jax.nn.weights import Apot

COUNTER = 'num_batches_tracked'  # of batch norm; of no use here

# The float networks of these have biases in front of their batch norms …
_BIASED = ('cifar_alexnet', 'cifar_vgg11')
# … and these at any bit width.
_ALWAYS_BIASED = ('yolov2_tiny', 'deeplabv1_vgg9')


class _Names(NamedTuple):
  weight: str = 'block.0'
  norm: str = 'block.1'
  theta: str = 'block.2'
  alpha: str = 'weight_quant.wgt_alpha'


_UNIT = _Names()
_PART = _Names('conv', 'bn', 'relu', 'weight_alpha')
_SHORTCUT = _Names('downsample.0', 'downsample.1', '', 'weight_alpha')

_NORM = (
  ('weight', 'params', 'scale'),
  ('bias', 'params', 'bias'),
  ('running_mean', 'batch_stats', 'mean'),
  ('running_var', 'batch_stats', 'var'),
)


class Leaf(NamedTuple):
  """An official key, and its path into our tree of variables."""

  key: str
  path: tuple[str, ...] | None  # of 'folded', a bias: the mean that takes it up
  kind: str = 'copy'  # or 'kernel' (transposed), 'theta', 'folded', 'counter'
  unit: str | None = None  # of a dense kernel, the layer of it


def leaves(network: Network) -> Iterator[Leaf]:
  """All keys of the official state_dict of a network, in its order.

  >>> import fastsnn_jax as fs
  >>> leaf = list(leaves(fs.build('cifar_resnet20', bits=2)))[7]
  >>> leaf.key, leaf.path[1:]
  ('layer1.0.part1.conv.weight', ('layer1.0.part1', 'synapse', 'kernel'))
  """
  nested, detector = maps_out(network), bool(network.anchors)
  module = ('backbone.' if detector else '0.') if nested else ''
  for layer in network.firing:
    key, in_block = f'{module}{layer.name}', '.part' in layer.name
    part, shortcut = _parts(layer)
    names = _PART if in_block and not nested else _UNIT
    theta, down = f'{key}.{names.theta}', (key, _SHORTCUT)
    if nested:
      down = (key.rsplit('.', 1)[0] + '.downsample', _UNIT)
      if in_block or layer.name == 'layer0':
        theta = key.replace('.part', '.relu').replace('layer0', 'relu0')
    path, thetas = ('params', layer.name, 'theta'), []
    if network.neuron.initial_theta is not None:
      thetas = [Leaf(f'{theta}.act_alpha', path, 'theta')]
    aside = _weighted(network, *down, *shortcut) if shortcut else ()
    yield from _weighted(network, key, names, *part)
    yield from (*aside, *thetas) if nested else (*thetas, *aside)
  name = network.layers[-1].name
  (_, path), _ = _parts(network.layers[-1])
  # In a Chain, the read-out follows the average pooling and the flattening.
  block = 'block.2' if 'parts_1' in path else 'block'
  block = 'block.0' if nested and not detector else block
  key, flattened = f'{module}{name}.{block}', None if nested else name
  yield Leaf(f'{key}.weight', ('params', *path, 'kernel'), 'kernel', flattened)
  yield Leaf(f'{key}.bias', ('params', *path, 'bias'))


# torchvision's names of a ResNet, those of APoT's float one and of kuangliu's.
_TORCHVISION = (
  (r'conv1\.', 'layer0.block.0.'),
  (r'bn1\.', 'layer0.block.1.'),
  (r'(layer\d\.\d+)\.(conv|bn)(\d)\.', r'\1.part\3.\2.'),
  (r'(layer\d\.\d+)\.(?:downsample|shortcut)\.', r'\1.part2.downsample.'),
)


def official_names(network: Network, state: dict) -> dict:
  """A state_dict with official keys, where they are torchvision's.

  Only float networks are the same there: APoT's own code quantises the inputs
  of convolutions, so its shortcuts carry what is not quantised.
  """
  if network.bits < 32 or maps_out(network) or 'conv1.weight' not in state:
    return state
  *_, weight, _ = leaves(network)
  rules = (*_TORCHVISION, (r'(?:fc|linear)\.', weight.key[: -len('weight')]))
  renamed = {}
  for key, value in state.items():
    for pattern, name in rules:
      key = re.sub(f'^{pattern}', name, key)
    renamed[key] = value
  return renamed


def maps_out(network: Network) -> bool:
  """Whether the read-out is a map, as a detector's and a segmenter's."""
  return isinstance(network.layers[-1].synapse, Conv)


def _parts(layer):
  """((weighted synapse, its path), the same of the shortcut or None)."""
  synapse, path = layer.synapse, (layer.name, 'synapse')
  if isinstance(synapse, Chain):  # behind a concatenation or a pooling
    return (synapse.parts[1], (*path, 'parts_1')), None
  if isinstance(synapse, Residual):
    shortcut = synapse.shortcut and (synapse.shortcut, (*path, 'shortcut'))
    return (synapse.body, (*path, 'body')), shortcut
  return (synapse, path), None


def _weighted(network, name, names, synapse, path):
  weight, norm = f'{name}.{names.weight}', f'{name}.{names.norm}'
  dense = isinstance(synapse, Dense)
  kernel = ('params', *path, 'kernel')
  yield Leaf(f'{weight}.weight', kernel, 'kernel', name if dense else None)
  biased = network.model in _BIASED and network.bits == 32
  if dense or biased or network.model in _ALWAYS_BIASED:
    mean = ('batch_stats', *path, 'norm', 'mean')
    yield Leaf(f'{weight}.bias', mean, 'folded')
  if isinstance(synapse.weights, Apot):
    yield Leaf(f'{weight}.{names.alpha}', ('params', *path, 'weight_alpha'))
  for theirs, collection, ours in _NORM:
    yield Leaf(f'{norm}.{theirs}', (collection, *path, 'norm', ours))
  yield Leaf(f'{norm}.{COUNTER}', None, 'counter')
