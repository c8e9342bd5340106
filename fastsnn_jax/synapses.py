"""Synapses: what turns the activity of some layers into the current of another.

A synapse is affine in its inputs at inference and knows nothing of time. It is
a Linen module, so it owns its weights; one row of a network's table holds one.
`MaxPool` is the exception that conversion refuses by name.

`connect(*inputs)` is the map with every weight one and no bias; its transpose
counts the connections of each input, which is what a spike there costs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastsnn_jax.convolve import convolve
from fastsnn_jax.errors import UserError
from fastsnn_jax.quantize import quantize_weight, quantize_weight_8bit

# --- initial values ---------------------------------------------------------


def kaiming(key, shape, dtype=jnp.float32):
  """N(0, 2 / fan_out), fan_out = window times output channels."""
  fan_out = math.prod(shape[:-2]) * shape[-1]
  return jax.random.normal(key, shape, dtype) * math.sqrt(2 / fan_out)


def torch_uniform(key, shape, dtype=jnp.float32):
  """U(-1, 1) / sqrt(fan_in), PyTorch's default for kernels."""
  bound = 1 / math.sqrt(math.prod(shape[:-1]))
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def small_normal(key, shape, dtype=jnp.float32):
  """N(0, 0.01^2)."""
  return jax.random.normal(key, shape, dtype) * 0.01


def zero_bias(key, kernel_shape):
  """Zeros."""
  del key
  return jnp.zeros(kernel_shape[-1:])


def torch_bias(key, kernel_shape):
  """U(-1, 1) / sqrt(fan_in), PyTorch's default for biases."""
  bound = 1 / math.sqrt(math.prod(kernel_shape[:-1]))
  return jax.random.uniform(key, kernel_shape[-1:], minval=-bound, maxval=bound)


# --- how weights are quantised ----------------------------------------------


@dataclasses.dataclass(frozen=True)
class Apot:
  """APoT weights of so many bits, with one of the two gradient families."""

  bits: int
  gradient: str = 'full'
  initial_alpha: float = 3.0


@dataclasses.dataclass(frozen=True)
class EightBit:
  """The 8-bit weights of first and last layers."""


def _kernel(module, shape):
  """The module's kernel as its inputs meet it, quantised or not."""
  kernel = module.param('kernel', module.kernel_init, shape)
  match module.weights:
    case None:
      return kernel
    case EightBit():
      return quantize_weight_8bit(kernel)
    case Apot(bits, gradient, initial):
      alpha = module.param('weight_alpha', _constant(initial), ())
      return quantize_weight(kernel, alpha, bits, gradient)
  raise TypeError(f'weights={module.weights!r}: None, EightBit or Apot needed')


def _constant(value):
  return lambda key, shape: jnp.full(shape, value, jnp.float32)


def _same_dtype(x, kernel):
  """Both in the computing dtype: that of `x` if it is a half, else the wider.

  Half-precision images so give half-precision products from float32 weights,
  and float64 weights a float64 network.
  """
  half = x.dtype.itemsize < 4
  dtype = x.dtype if half else jnp.promote_types(x.dtype, kernel.dtype)
  return x.astype(dtype), kernel.astype(dtype)


# --- synapses ---------------------------------------------------------------


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

  def connect(self, *inputs):
    """The map with unit weights and no bias, for counting connections."""
    raise UserError(
      f'{type(self).__name__} has no connect(*inputs), so its connections '
      'cannot be counted; define the map with unit weights and no bias'
    )


class _Weighted(Synapse):
  """What Conv and Dense share: a quantised kernel, then batch norm or bias."""

  features: int
  weights: Any = None
  norm: bool = True  # else a bias
  kernel_init: Callable = kaiming
  bias_init: Callable = zero_bias

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
  def __call__(self, x, train=False):
    window = (self.kernel, self.kernel)
    kernel = _kernel(self, (*window, x.shape[-1], self.features))
    y = self._convolve(*_same_dtype(x, kernel))
    return self._finish(y, kernel.shape, train)

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
  def __call__(self, x, train=False):
    x = x.reshape(x.shape[0], -1)
    kernel = _kernel(self, (x.shape[-1], self.features))
    x, kernel = _same_dtype(x, kernel)
    return self._finish(x @ kernel, kernel.shape, train)

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


class Residual(Synapse):
  """body(x) + shortcut(skip); without a shortcut module, skip itself."""

  body: Synapse
  shortcut: Synapse | None = None

  @property
  def affine(self):
    parts = (self.body, self.shortcut)
    return all(part.affine for part in parts if part is not None)

  @nn.compact
  def __call__(self, x, skip, train=False):
    y = self.body(x, train=train)
    if self.shortcut is not None:
      skip = self.shortcut(skip, train=train)
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
