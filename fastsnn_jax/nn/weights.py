"""How weights start, how they are quantised, and how they meet their input."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.quantizers import (
  apot_denominator,
  quantize_weight,
  quantize_weight_8bit,
  straight_through,
  wider,
)

small_normal = jax.nn.initializers.normal(0.01, jnp.float32)


def kaiming(key, shape, dtype=jnp.float32):
  """N(0, 2 / fan_out), fan_out = window times output channels."""
  fan_out = math.prod(shape[:-2]) * shape[-1]
  return jax.random.normal(key, shape, dtype) * math.sqrt(2 / fan_out)


def torch_uniform(key, shape, dtype=jnp.float32):
  """U(-1, 1) / sqrt(fan_in), PyTorch's default for kernels."""
  bound = 1 / math.sqrt(math.prod(shape[:-1]))
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def zero_bias(key, kernel_shape):
  return jnp.zeros(kernel_shape[-1:])


def torch_bias(key, kernel_shape):
  """U(-1, 1) / sqrt(fan_in), PyTorch's default for biases."""
  bound = 1 / math.sqrt(math.prod(kernel_shape[:-1]))
  return jax.random.uniform(key, kernel_shape[-1:], minval=-bound, maxval=bound)


@dataclasses.dataclass(frozen=True)
class Apot:
  """Weights by `fs.quantize_weight`, with a clip alpha that is learned.

  The clip starts at `initial_alpha` standard deviations of the kernel.

  >>> import fastsnn_jax as fs
  >>> conv = fs.Conv(16, weights=fs.Apot(bits=3))
  >>> conv.weights.gradient
  'full'
  """

  bits: int
  gradient: Literal['detached', 'full'] = 'full'
  initial_alpha: float = 3.0


@dataclasses.dataclass(frozen=True)
class EightBit:
  """Weights by `fs.quantize_weight_8bit`: those of first and last layers.

  >>> import fastsnn_jax as fs
  >>> read_out = fs.Dense(10, weights=fs.EightBit(), norm=False)
  """


def product(weights, x, kernel, alpha, quantum, multiply):
  """multiply(x, quantised kernel), in whole numbers if both have a step.

  APoT weights are multiples of alpha / D, and all of x of `quantum`, if that is
  known; the product of the whole numbers is exact, and both scales follow
  (docs/method.md).
  """
  match weights:
    case EightBit():
      kernel = quantize_weight_8bit(kernel)
    case Apot(bits, gradient):
      kernel = quantize_weight(kernel, alpha, bits, gradient)
    case _ if weights is not None:
      raise UserError(
        f'weights={weights!r}, but they must be None, fs.EightBit() or fs.Apot'
      )
  if quantum is None or not isinstance(weights, Apot):
    return multiply(*_same_dtype(x, kernel))
  step = alpha.astype(kernel.dtype) / apot_denominator(weights.bits)
  counts = _whole(x, quantum.astype(x.dtype)), _whole(kernel, step)
  total = multiply(*_same_dtype(*counts))
  return total * (step * quantum).astype(total.dtype)


def _same_dtype(x, kernel):
  """Both in the dtype of `x` if that is a half, else in the wider."""
  half = x.dtype.itemsize < 4
  dtype = x.dtype if half else wider(x.dtype, kernel.dtype)
  return x.astype(dtype), kernel.astype(dtype)


def _whole(x, step):
  """x / step, known to be whole; the derivative is that of the division."""
  ratio = x / step
  return straight_through(jnp.round(ratio), ratio)
