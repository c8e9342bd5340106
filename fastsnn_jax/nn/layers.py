"""Synapses with a kernel, convolution and dense, and what all synapses are.

A batch norm or a bias follows the kernel, so both are affine at inference.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.convolve import convolve
from fastsnn_jax.nn.weights import (
  Apot,
  kaiming,
  product,
  quantized_kernel,
  zero_bias,
)


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
  for a stride of 2. A dilation of d leaves d - 1 pixels between the window's.
  """

  kernel: int = 3
  stride: int = 1
  padding: int = 1
  dilation: int = 1

  @nn.compact
  def __call__(self, x, train=False, quanta=(None,)):
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    y = self._product(x, shape, quanta, self._convolve)
    return self._finish(y, shape, train)

  def connect(self, x):
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    return self._convolve(x, jnp.ones(shape, x.dtype))

  def _convolve(self, x, kernel):
    return convolve(x, kernel, self.stride, self.padding, self.dilation)


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
