"""What the reference's PyTorch checkpoints call the leaves of our trees.

The names of layers are the official units' names; what is inside a unit is
called otherwise in each family. Formats: spec/classification.md 8.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.synapses import Apot, Chain, Dense, Residual

COUNTER = 'num_batches_tracked'  # of batch norm; of no use here

# The reference's CIFAR AlexNet and VGG11: their float convolutions have biases.
_BIASED = ('cifar_alexnet', 'cifar_vgg11')
# These have them at any bit width.
_ALWAYS_BIASED = ('yolov2_tiny', 'deeplabv1_vgg9')


class _Names(NamedTuple):
  """What the reference calls the parts of a unit."""

  weight: str
  norm: str
  theta: str
  alpha: str


_PLAIN = _Names('block.0', 'block.1', 'block.2', 'weight_quant.wgt_alpha')
_PART = _Names('conv', 'bn', 'relu', 'weight_alpha')
_SHORTCUT = _Names('downsample.0', 'downsample.1', '', 'weight_alpha')

# Of detectors and segmenters: units of residual blocks have nested parts, and
# relu1, relu2.
_UNIT = _Names('block.0', 'block.1', 'block.2', '')
# The module that holds all of such a network, and its read-out's convolution.
_NESTED = {'detection': ('backbone', 'block'), 'segmentation': ('0', 'block.0')}

_NORM = (
  ('weight', 'params', 'scale'),
  ('bias', 'params', 'bias'),
  ('running_mean', 'batch_stats', 'mean'),
  ('running_var', 'batch_stats', 'var'),
)


class Leaf(NamedTuple):
  """An official key and what it is here.

  Attributes:
    key: the official name.
    path: into the tree of variables. For a bias in front of a batch norm, which
      we do not have: the running mean that takes it up. None for a counter.
    kind: 'copy', 'kernel' (transposed), 'theta' (must be positive), 'folded' or
      'counter'.
    unit: of a dense kernel, the layer whose input is flattened; else None.
  """

  key: str
  path: tuple[str, ...] | None
  kind: str = 'copy'
  unit: str | None = None


def leaves(network: Network) -> Iterator[Leaf]:
  """All keys of the official state_dict of a network, in its order.

  >>> import fastsnn_jax as fs
  >>> found = list(leaves(fs.build('cifar_resnet20', bits=2)))
  >>> found[7].key, found[7].path[1:]
  ('layer1.0.part1.conv.weight', ('layer1.0.part1', 'synapse', 'kernel'))
  """
  if network.task in _NESTED:
    yield from _nested_leaves(network)
    return
  for layer in network.layers:
    name, synapse = layer.name, layer.synapse
    if layer is network.layers[-1]:  # after average pooling and flattening
      pooled = isinstance(synapse, Chain)
      path = (name, 'synapse', *(('parts_1',) if pooled else ()))
      unit = f'{name}.block.2' if pooled else f'{name}.block'
      yield Leaf(f'{unit}.weight', ('params', *path, 'kernel'), 'kernel', name)
      yield Leaf(f'{unit}.bias', ('params', *path, 'bias'))
      continue
    names = _PART if '.part' in name else _PLAIN
    path = (name, 'synapse')
    if isinstance(synapse, Residual):
      yield from _weighted(network, name, synapse.body, names, (*path, 'body'))
    else:
      yield from _weighted(network, name, synapse, names, path)
    if network.neuron.initial_theta is not None:
      key = f'{name}.{names.theta}.act_alpha'
      yield Leaf(key, ('params', name, 'theta'), 'theta')
    if isinstance(synapse, Residual) and synapse.shortcut is not None:
      path = (*path, 'shortcut')
      yield from _weighted(network, name, synapse.shortcut, _SHORTCUT, path)


def read_out_width(network: Network) -> tuple[int, int]:
  """(per class, beside the classes): channels of the read-out.

  >>> import fastsnn_jax as fs
  >>> read_out_width(fs.build('yolov2_tiny', classes=20))
  (5, 25)
  """
  anchors = len(network.anchors)
  return (anchors, 5 * anchors) if network.task == 'detection' else (1, 0)


def _nested_leaves(network):
  """As `leaves`: all under one module, and thetas behind the shortcut."""
  module, read_out = _NESTED[network.task]
  for layer in network.layers:
    key, path = f'{module}.{layer.name}', (layer.name, 'synapse')
    if layer is network.layers[-1]:
      key = f'{key}.{read_out}'
      yield Leaf(f'{key}.weight', ('params', *path, 'kernel'), 'kernel')
      yield Leaf(f'{key}.bias', ('params', *path, 'bias'))
      continue
    synapse, theta = layer.synapse, f'{key}.{_UNIT.theta}'
    shortcut = getattr(synapse, 'shortcut', None)
    if '.part' in layer.name:
      theta = key.replace('.part', '.relu')
    elif layer.name == 'layer0':
      theta = f'{module}.relu0'
    if isinstance(synapse, Chain):  # behind a concatenation
      inner, part = (*path, 'parts_1'), synapse.parts[1]
    elif isinstance(synapse, Residual):
      inner, part = (*path, 'body'), synapse.body
    else:
      inner, part = path, synapse
    yield from _weighted(network, key, part, _UNIT, inner)
    if shortcut is not None:
      down = key.rsplit('.', 1)[0] + '.downsample'
      yield from _weighted(network, down, shortcut, _UNIT, (*path, 'shortcut'))
    if network.neuron.initial_theta is not None:
      yield Leaf(f'{theta}.act_alpha', ('params', layer.name, 'theta'), 'theta')


def _weighted(network, name, synapse, names, path):
  """Keys of a convolution or dense layer and of the batch norm behind it."""
  weight, norm = f'{name}.{names.weight}', f'{name}.{names.norm}'
  dense = isinstance(synapse, Dense)
  flattened = name if dense else None
  yield Leaf(
    f'{weight}.weight', ('params', *path, 'kernel'), 'kernel', flattened
  )
  biased = network.model in _BIASED and network.bits == 32
  if dense or biased or network.model in _ALWAYS_BIASED:
    mean = ('batch_stats', *path, 'norm', 'mean')
    yield Leaf(f'{weight}.bias', mean, 'folded')
  if isinstance(synapse.weights, Apot):
    yield Leaf(f'{weight}.{names.alpha}', ('params', *path, 'weight_alpha'))
  for theirs, collection, ours in _NORM:
    yield Leaf(f'{norm}.{theirs}', (collection, *path, 'norm', ours))
  yield Leaf(f'{norm}.{COUNTER}', None, 'counter')
