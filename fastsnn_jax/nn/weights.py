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
  wider,
)
from fastsnn_jax.nn.whole import float_product, scaled_product, whole_product

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
  """multiply(x, quantised kernel), of whole numbers where they are known.

  APoT weights are multiples of alpha / D, and all of x of a `Quantum`, or it is
  None; the scales follow the product of the whole numbers (docs/method.md).
  `multiply` takes both operands, a precision and the dtype of sums.
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
  if quantum is None:
    return multiply(*_same_dtype(x, kernel))
  if quantum.unit is None:
    x, kernel = _same_dtype(x, kernel)
    return float_product(x, kernel, quantum, multiply)
  if isinstance(weights, EightBit):
    quantum = dataclasses.replace(quantum, precision=quantum.of_ends)
  if not isinstance(weights, Apot) or quantum.unit.ndim:
    return scaled_product(x, kernel, quantum, multiply)
  denominator = apot_denominator(weights.bits)
  step = alpha.astype(kernel.dtype) / denominator
  return whole_product(x, kernel, step, denominator, quantum, multiply)


def _same_dtype(x, kernel):
  """Both in the dtype of `x` if that is a half, else in the wider."""
  half = x.dtype.itemsize < 4
  dtype = x.dtype if half else wider(x.dtype, kernel.dtype)
  return x.astype(dtype), kernel.astype(dtype)
