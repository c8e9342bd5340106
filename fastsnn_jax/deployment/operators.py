"""Synapses as ONNX nodes; channels come first inside, as ONNX has them."""

import numpy as np

from fastsnn_jax.deployment.graph import Graph
from fastsnn_jax.deployment.nodes import Value


def channels_last(rank):
  return 0, *range(2, rank), 1


def channels_first(rank):
  return 0, rank - 1, *range(1, rank - 1)


class Operators:
  """What `rows.walk` calls. Of each kind of file only `weighted` and `neuron`
  are its own: where the scales stand, and what fires."""

  opset, domains = 21, ()

  def __init__(self, network, image_shape, sites):
    self.network, self.image_shape, self.sites = network, image_shape, sites
    self.graph = Graph(self.opset, self.domains)
    self.name, self.last = 'input', False
    self.graph.scope = 'input'
    self.pixels = Value(
      self.graph.input('images', np.float32, ['N', *image_shape]),
      tuple(image_shape),
    )
    self.known = {}  # of each row what its site's level means

  # --- what the walk calls ----------------------------------------------------

  def image(self, read_out=False):
    return self.turned_in(self.pixels)

  def row(self, name, last):
    self.name, self.last, self.graph.scope = name, last, name

  def output(self, current):
    value = self.turned_out(self.floats(current))
    shape = ['N', *current.shape]
    self.graph.output('output', value, np.float32, shape)

  def weighted(self, x, weights, shape):
    raise NotImplementedError

  def neuron(self, current, theta):
    raise NotImplementedError

  def add(self, a, b):
    total = self.graph.node('Add', self.floats(a).name, self.floats(b).name)
    return Value(total, a.shape)

  def concat(self, parts, shape):
    names = [self.floats(x).name for x in parts]
    return Value(self.graph.node('Concat', *names, axis=1), shape)

  def average(self, x, window, shape):
    where = self._window(window)
    name = self.graph.node('AveragePool', x.name, count_include_pad=1, **where)
    return Value(name, shape, x.unit)

  def largest(self, x, window, shape):
    name = self.graph.node('MaxPool', x.name, **self._window(window))
    return Value(name, shape, x.unit)

  def mean(self, x, shape):
    name = self.graph.node('GlobalAveragePool', x.name)
    return Value(self.graph.node('Flatten', name, axis=1), shape, x.unit)

  def blocks(self, x, block, shape):
    name = self.graph.node('SpaceToDepth', x.name, blocksize=block)
    return Value(name, shape, x.unit)

  # --- shared -----------------------------------------------------------------

  def turned_in(self, x: Value) -> Value:
    """[N, *sides, C] -> [N, C, *sides]."""
    return self._turned(x, channels_first(len(x.shape) + 1))

  def turned_out(self, x: Value) -> str:
    """[N, C, *sides] -> [N, *sides, C]."""
    return self._turned(x, channels_last(len(x.shape) + 1)).name

  def _turned(self, x, order):
    if len(x.shape) == 1:
      return x
    name = self.graph.node('Transpose', x.name, perm=order)
    return x._replace(name=name)

  def floats(self, x: Value) -> Value:
    """A value with its unit in the tensor."""
    if x.unit == 1:
      return x
    return Value(self.graph.node('Mul', x.name, np.float32(x.unit)), x.shape)

  def site(self, level, shape, dtype, **meaning):
    """One more output with a row's levels, if they are asked for."""
    self.known[self.name] = {'shape': list(shape), **meaning}
    if self.sites:
      level = self.turned_out(Value(level, shape))
      self.graph.output(self.name, level, dtype, ['N', *shape])

  def laid_out(self, kernel, weights, x):
    """A kernel in ONNX's order: [D, C, *window], or [D, C]."""
    if weights.window is not None:
      return np.moveaxis(kernel, (-1, -2), (0, 1))
    if len(x.shape) > 1:  # a map that was flattened
      rank = len(x.shape)
      kernel = np.moveaxis(kernel.reshape(*x.shape, -1), rank - 1, 0)
    return np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T)

  def product(self, x, kernel, weights):
    """x * kernel, a convolution or a matrix product."""
    if weights.window is None:
      name = x.name
      if len(x.shape) > 1:
        name = self.graph.node('Flatten', name, axis=1)
      # onnxruntime replaces a MatMul by one that rounds what comes in.
      return self.graph.node('Gemm', name, kernel, transB=1)
    where = self._window(weights.window, dilations=weights.window.dilations)
    return self.graph.node(
      'Conv', x.name, kernel, group=weights.groups, **where
    )

  def along(self, values, weights):
    """[D] as a constant that broadcasts against the product."""
    axes = 0 if weights.window is None else len(weights.window.size)
    return np.asarray(values, np.float32).reshape(-1, *(1,) * axes)

  def _window(self, window, **more):
    before, after = zip(*window.pads, strict=True)
    return {
      'kernel_shape': window.size,
      'strides': window.strides,
      'pads': (*before, *after),
      **more,
    }
