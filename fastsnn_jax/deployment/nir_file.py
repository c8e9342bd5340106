"""NIR files: unsigned integrate-and-fire neurons and what lies between."""

import math

import nir
import numpy as np

from fastsnn_jax.deployment.nodes import Value, walk
from fastsnn_jax.errors import UserError
from fastsnn_jax.version import __version__

_UNSAID = (
  'NIR has no number of steps: run T={steps} of them, and divide the sum of '
  'the output by T',
  'NIR resets a neuron to v_reset; these subtract v_threshold (soft reset), '
  'which the reader must set',
  'NIR starts a neuron at 0; these start at half of v_threshold, and fire at '
  'v >= v_threshold',
)


def write(network, variables, path, format, image_shape, sites) -> dict:
  """Writes the file; what is to be told of it."""
  if len(image_shape) not in (1, 3):
    raise UserError(
      f'image_shape={image_shape}, but NIR files here are of (H, W, C) images '
      "or plain features; use format='stablehlo'"
    )
  make = _Nodes(image_shape)
  walk(network, variables, image_shape, make)
  steps = network.neuron.steps
  said = {
    'producer': f'fastsnn_jax {__version__}',
    'T': steps,
    'reset': 'subtract',
    'initial_voltage': 'v_threshold / 2',
  }
  graph = nir.NIRGraph(make.nodes, make.edges, metadata=said)
  nir.write(path, graph)
  return {
    'versions': {'nir': nir.version},
    'inputs': [{'name': 'images', 'shape': _first(image_shape).tolist()}],
    'layout': 'channels first, without the batch',
    'sites': make.known,
    'warnings': [text.format(steps=steps) for text in _UNSAID],
  }


class _Nodes:
  """What `rows.walk` calls. A value's name is a tuple of nodes, whose outputs
  NIR adds up where they arrive."""

  def __init__(self, image_shape):
    self.nodes = {'input': nir.Input({'input': _first(image_shape)})}
    self.edges, self.known, self.scope = [], {}, ''
    self.pixels = Value(('input',), tuple(image_shape))

  def image(self, read_out=False):
    return self.pixels

  def row(self, name, last):
    self.scope = name

  def neuron(self, current, theta):
    self.known[self.scope] = {'shape': list(current.shape), 'theta': theta}
    ones = np.ones(_first(current.shape), np.float32)
    node = nir.IF(r=ones, v_threshold=theta * ones, v_reset=0 * ones)
    current = self._floats(current)  # of a row that only pools
    fired = self._node(current, 'neuron', node, current.shape, theta)
    return fired, fired

  def output(self, current):
    shape = _first(current.shape)
    self._node(current, 'output', nir.Output({'output': shape}), ())

  def weighted(self, x, weights, shape):
    values = weights.values() * np.float32(x.unit)
    window = weights.window
    if window is None:
      if len(x.shape) > 1:  # rows of the kernel are in the order of (H, W, C)
        values = np.moveaxis(values.reshape(*x.shape, -1), 2, 0)
        x = self._flat(x)
      values = values.reshape(-1, values.shape[-1]).T
      return self._node(x, 'dense', nir.Affine(values, weights.offset), shape)
    node = nir.Conv2d(
      input_shape=x.shape[:-1],
      weight=np.moveaxis(values, (-1, -2), (0, 1)),
      stride=window.strides,
      padding=_even(window),
      dilation=window.dilations,
      groups=weights.groups,
      bias=weights.offset,
    )
    return self._node(x, 'conv', node, shape)

  def add(self, a, b):
    both = [self._floats(x) for x in (a, b)]
    return Value((*both[0].name, *both[1].name), a.shape)

  def average(self, x, window, shape):
    sizes = map(np.array, (window.size, window.strides, _even(window)))
    return self._node(x, 'average', nir.AvgPool2d(*sizes), shape, x.unit)

  def mean(self, x, shape):
    size = np.array(x.shape[:-1])
    node = nir.AvgPool2d(size, size, np.zeros(2, int))
    pooled = self._node(x, 'mean', node, (1, 1, *shape), x.unit)
    return self._flat(pooled)

  def largest(self, x, *_):
    raise _not('a maximum')

  def blocks(self, x, *_):
    raise _not('space to depth')

  def concat(self, parts, shape):
    raise _not('a concatenation')

  def _flat(self, x):
    node = nir.Flatten({'input': _first(x.shape)}, start_dim=0, end_dim=-1)
    return self._node(x, 'flatten', node, (math.prod(x.shape),), x.unit)

  def _floats(self, x):
    if x.unit == 1:
      return x
    scale = np.full(_first(x.shape), x.unit, np.float32)
    return self._node(x, 'height', nir.Scale(scale), x.shape)

  def _node(self, x, kind, node, shape, unit=1.0):
    scope = self.scope.replace('/', '.')  # which HDF5 takes for a folder
    name, count = f'{scope}.{kind}', 2
    while name in self.nodes:
      name, count = f'{scope}.{kind}_{count}', count + 1
    self.nodes[name] = node
    self.edges += [(source, name) for source in x.name]
    return Value((name,), shape, unit)


def _first(shape):
  """(H, W, C) -> [C, H, W]."""
  return np.array([shape[-1], *shape[:-1]])


def _even(window):
  if any(before != after for before, after in window.pads):
    raise _not(f'padding that differs at the two ends, {window.pads},')
  return tuple(before for before, _ in window.pads)


def _not(what):
  return UserError(
    f"NIR has no node for {what}; use format='onnx' or format='stablehlo'"
  )
