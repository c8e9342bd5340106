"""Float and quantised networks as ONNX: QDQ, and QONNX's Quant nodes."""

import numpy as np

from fastsnn_jax.deployment.nodes import Value
from fastsnn_jax.deployment.operators import Operators
from fastsnn_jax.nn.neurons import Relu

_QONNX = 'qonnx.custom_op.general'


class Quantised(Operators):
  """Whole numbers between QuantizeLinear and DequantizeLinear.

  Levels are unsigned, of the scale theta / T; kernels are signed, with a
  positive scale for each output channel that batch norm is in. A float kernel
  takes levels as floats: between quantised tensors onnxruntime would round it.
  """

  def __init__(self, *arguments):
    super().__init__(*arguments)
    self.level_of = {}  # the same as a whole number, of what is one

  @property
  def levels(self) -> int:
    return 2**self.network.neuron.bits - 1

  def weighted(self, x, weights, shape):
    if weights.whole:
      x = self.dequantised(x)
    else:
      weights = weights._replace(scale=weights.scale * np.float32(x.unit))
    y = self.product(x, self.kernel(weights, x), weights)
    offset = self.along(weights.offset, weights)
    return Value(self.graph.node('Add', y, offset), shape)

  def neuron(self, current, theta):
    current = self.floats(current)  # of a row that only pools
    if isinstance(self.network.neuron, Relu):
      name = self.graph.node('Relu', current.name)
      self.site(name, current.shape, np.float32)
      seen = Value(name, current.shape)
    else:
      seen = self.quantise(current, np.float32(theta))
    return seen, seen

  def add(self, a, b):
    return super().add(self.dequantised(a), self.dequantised(b))

  def dequantised(self, x):
    if x.name not in self.level_of:
      return self.floats(x)
    level, zero = self.level_of[x.name], self.kind(0)
    grid = np.float32(x.unit), zero
    return Value(self.graph.node('DequantizeLinear', level, *grid), x.shape)

  @property
  def kind(self):
    return np.uint8 if self.levels < 256 else np.uint16

  def kernel(self, weights, x):
    if not weights.whole:
      return self.laid_out(weights.values(), weights, x)
    kernel, scale = weights.positive()
    kernel = self.graph.whole(self.laid_out(kernel, weights, x))
    scale = scale.astype(np.float32)
    return self.graph.node('DequantizeLinear', kernel, scale, axis=0)

  def quantise(self, current, theta):
    step = np.float32(theta / self.levels)
    name = self.graph.node('Clip', current.name, np.float32(0), theta)
    level = self.graph.node('QuantizeLinear', name, step, self.kind(0))
    self.site(level, current.shape, self.kind, theta=float(theta))
    name = self.graph.node('Cast', level, to=1)
    self.level_of[name] = level
    return Value(name, current.shape, float(step))


class Qonnx(Quantised):
  """Floats, and nodes that say on which grid they lie."""

  opset, domains = 13, (_QONNX,)

  def kernel(self, weights, x):
    if not weights.whole:
      return self.laid_out(weights.values(), weights, x)
    kernel, scale = weights.positive()
    bits = int(np.abs(kernel).max(initial=1)).bit_length() + 1
    values = self.laid_out((kernel * scale).astype(np.float32), weights, x)
    scale = scale.reshape(-1, *(1,) * (values.ndim - 1))
    return self._quant(values, scale, bits, signed=1, narrow=1)

  def quantise(self, current, theta):
    step = np.float32(theta / self.levels)
    name = self.graph.node('Relu', current.name)
    bits = self.network.neuron.bits
    name = self._quant(name, step, bits, signed=0, narrow=0)
    meaning = {'theta': float(theta)}
    if self.sites:
      level = self.graph.node('Round', self.graph.node('Div', name, step))
      self.site(level, current.shape, np.float32, **meaning)
    else:
      self.site(name, current.shape, np.float32, **meaning)
    return Value(name, current.shape)

  def _quant(self, x, scale, bits, **attributes):
    scale = np.asarray(scale, np.float32)
    grid = scale, np.float32(0), np.float32(bits)
    mode = {'rounding_mode': 'ROUND', **attributes}
    return self.graph.node('Quant', x, *grid, domain=_QONNX, **mode)
