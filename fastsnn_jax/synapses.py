"""Synapses: what turns the activity of some layers into the current of another.

A synapse is affine in its inputs at inference and knows nothing of time. It is
a Linen module, so it owns its weights; one row of a network's table holds one.
`MaxPool` is the exception that conversion refuses by name.

`connect(*inputs)` is the map with every weight one and no bias; its transpose
counts the connections of each input, which is what a spike there costs.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from fastsnn_jax.convolve import convolve
from fastsnn_jax.errors import UserError
from fastsnn_jax.weights import (
  Apot,
  EightBit,
  kaiming,
  product,
  quantized_kernel,
  small_normal,
  torch_bias,
  torch_uniform,
  zero_bias,
)

__all__ = [
  'Apot',
  'BatchNorm',
  'Chain',
  'Concat',
  'Conv',
  'Dense',
  'EightBit',
  'GlobalAveragePool',
  'MaxPool',
  'Residual',
  'SpaceToDepth',
  'Synapse',
  'kaiming',
  'small_normal',
  'torch_bias',
  'torch_uniform',
  'zero_bias',
]


class BatchNorm(nn.Module):
  """PyTorch's batch norm: momentum 0.1, unbiased running variance, eps 1e-5.

  Statistics are taken over every axis but the last, in at least float32; under
  `jit` with a sharded batch they are those of the global batch.
  """

  epsilon: float = 1e-5
  momentum: float = 0.1

  @nn.compact
  def __call__(self, x, train=False):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean_ = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var_ = self.variable('batch_stats', 'var', jnp.ones, shape)
    if train:
      axes = tuple(range(x.ndim - 1))
      count = x.size // x.shape[-1]
      mean = jnp.mean(x, axes)
      var = jnp.mean(jnp.square(x - mean), axes)
      if not self.is_initializing():
        unbiased = var * (count / max(count - 1, 1))
        mean_.value += self.momentum * (mean - mean_.value)
        var_.value += self.momentum * (unbiased - var_.value)
    else:
      mean, var = mean_.value, var_.value
    factor = scale / jnp.sqrt(var + self.epsilon)
    return x * factor + (bias - mean * factor)


class Synapse(nn.Module):
  """Base of all synapses; one of your own states whether it is affine."""

  affine: ClassVar[bool] = True
  quantal: ClassVar[bool] = False  # whether it takes `quanta`

  def connect(self, *inputs):
    """The map with unit weights and no bias, for counting connections."""
    raise UserError(
      f'{type(self).__name__} has no connect(*inputs), so its connections '
      'cannot be counted; define the map with unit weights and no bias'
    )


class _Weighted(Synapse):
  """What Conv and Dense share: a quantised kernel, then batch norm or bias.

  `quanta` says what all of an input is a multiple of, where it is known; see
  `weights.product`.
  """

  quantal: ClassVar[bool] = True

  features: int
  weights: Any = None
  norm: bool = True  # else a bias
  kernel_init: Callable = kaiming
  bias_init: Callable = zero_bias

  def _product(self, x, kernel_shape, quanta, multiply):
    kernel = self.param('kernel', self.kernel_init, kernel_shape)
    alpha = None
    if isinstance(self.weights, Apot):
      alpha = self.param('weight_alpha', self.weights.initial, ())
    kernel = quantized_kernel(self.weights, kernel, alpha)
    return product(self.weights, x, kernel, alpha, quanta[0], multiply)

  def _finish(self, y, kernel_shape, train):
    if self.norm:
      return BatchNorm(name='norm')(y, train)
    bias = self.param('bias', self.bias_init, kernel_shape)
    return y + bias  # in the wider of the two dtypes


class Conv(_Weighted):
  """2-D convolution, then batch norm (or a bias): [N, H, W, C] -> same rank.

  The padding is symmetric and explicit, as PyTorch's; 'SAME' differs from it
  for a stride of 2.
  """

  kernel: int = 3
  stride: int = 1
  padding: int = 1

  @nn.compact
  def __call__(self, x, train=False, quanta=(None,)):
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    y = self._product(x, shape, quanta, self._convolve)
    return self._finish(y, shape, train)

  def connect(self, x):
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    return self._convolve(x, jnp.ones(shape, x.dtype))

  def _convolve(self, x, kernel):
    return convolve(x, kernel, self.stride, self.padding)


class Dense(_Weighted):
  """Fully connected, then batch norm or a bias: [N, ...] -> [N, features].

  Maps are flattened in (H, W, C) order.
  """

  @nn.compact
  def __call__(self, x, train=False, quanta=(None,)):
    x = x.reshape(x.shape[0], -1)
    shape = (x.shape[-1], self.features)
    y = self._product(x, shape, quanta, jnp.matmul)
    return self._finish(y, shape, train)

  def connect(self, x):
    total = jnp.sum(x.reshape(x.shape[0], -1), -1, keepdims=True)
    return jnp.broadcast_to(total, (x.shape[0], self.features))


class GlobalAveragePool(Synapse):
  """Mean over the map: [N, H, W, C] -> [N, C]."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, (1, 2), dtype=wide).astype(x.dtype)

  def connect(self, x):
    return jnp.sum(x, (1, 2))


def _call(synapse, x, train, quantum):
  if synapse.quantal:
    return synapse(x, train=train, quanta=(quantum,))
  return synapse(x, train=train)


class Residual(Synapse):
  """body(x) + shortcut(skip); without a shortcut module, skip itself."""

  body: Synapse
  shortcut: Synapse | None = None

  @property
  def affine(self):
    parts = (self.body, self.shortcut)
    return all(part.affine for part in parts if part is not None)

  quantal: ClassVar[bool] = True

  @nn.compact
  def __call__(self, x, skip, train=False, quanta=(None, None)):
    y = _call(self.body, x, train, quanta[0])
    if self.shortcut is not None:
      skip = _call(self.shortcut, skip, train, quanta[1])
    return y + skip

  def connect(self, x, skip):
    if self.shortcut is not None:
      skip = self.shortcut.connect(skip)
    return self.body.connect(x) + skip


class Chain(Synapse):
  """One synapse after another, with no neuron between."""

  parts: tuple[Synapse, ...]

  @property
  def affine(self):
    return all(part.affine for part in self.parts)

  @nn.compact
  def __call__(self, *inputs, train=False):
    first, *rest = self.parts
    y = first(*inputs, train=train)
    for part in rest:
      y = part(y, train=train)
    return y

  def connect(self, *inputs):
    first, *rest = self.parts
    y = first.connect(*inputs)
    for part in rest:
      y = part.connect(y)
    return y


class SpaceToDepth(Synapse):
  """Blocks of pixels as channels: [N, H, W, C] -> [N, H/b, W/b, b b C].

  out[i, j, (dy b + dx) C + c] = in[b i + dy, b j + dx, c]
  """

  block: int = 2

  def __call__(self, x, train=False):
    del train
    return self.connect(x)

  def connect(self, x):
    (n, height, width, channels), b = x.shape, self.block
    if height % b or width % b:
      raise UserError(
        f'SpaceToDepth: a map of {height} x {width}, but its sides must be '
        f'multiples of {b}; give images whose sides are multiples of more'
      )
    x = x.reshape(n, height // b, b, width // b, b, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // b, width // b, b * b * channels)


class Concat(Synapse):
  """The channels of several inputs in a row, each through its part if any."""

  parts: tuple[Synapse | None, ...]

  @property
  def affine(self):
    return all(part.affine for part in self.parts if part is not None)

  def __call__(self, *inputs, train=False):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate(
      [x if part is None else part(x, train=train) for part, x in pairs], -1
    )

  def connect(self, *inputs):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate(
      [x if part is None else part.connect(x) for part, x in pairs], -1
    )


class MaxPool(Synapse):
  """Maximum over windows; fine in an ANN, refused at conversion."""

  affine: ClassVar[bool] = False
  window: int = 2
  stride: int = 2

  @nn.compact
  def __call__(self, x, train=False):
    del train
    window, stride = (self.window,) * 2, (self.stride,) * 2
    return nn.max_pool(x, window, strides=stride)
