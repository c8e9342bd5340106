"""How weights start, how they are quantised, and how they meet their input."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fastsnn_jax.nn.quantizers import (
  apot_denominator,
  quantize_weight,
  quantize_weight_8bit,
  straight_through,
)

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


# --- quantised kernels ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Apot:
  """Weights by `fs.quantize_weight`, with a clip alpha that is learned.

  Attributes:
    bits: of a weight, 2 to 7.
    gradient: 'full' or 'detached', see `fs.quantize_weight`.
    initial_alpha: where the clip starts, in standard deviations of the kernel.

  >>> from fastsnn_jax.nn.layers import Conv
  >>> conv = Conv(16, weights=Apot(bits=3))
  >>> image = jnp.ones((1, 8, 8, 3))
  >>> conv.init(jax.random.key(0), image)['params']['weight_alpha'].item()
  3.0
  """

  bits: int
  gradient: str = 'full'
  initial_alpha: float = 3.0


@dataclasses.dataclass(frozen=True)
class EightBit:
  """Weights by `fs.quantize_weight_8bit`: those of first and last layers.

  >>> from fastsnn_jax.nn.layers import Dense
  >>> read_out = Dense(10, weights=EightBit(), norm=False)
  """


def quantized_kernel(weights, kernel, alpha=None):
  """The kernel by `Apot` with the clip `alpha`, by `EightBit`, or as it is."""
  match weights:
    case None:
      return kernel
    case EightBit():
      return quantize_weight_8bit(kernel)
    case Apot(bits, gradient):
      return quantize_weight(kernel, alpha, bits, gradient)
  raise TypeError(f'weights={weights!r}: None, EightBit or Apot needed')


def product(weights, x, kernel, alpha, quantum, multiply):
  """multiply(x, kernel), in whole numbers where both are multiples of a step.

  APoT weights are multiples of alpha / D. Where the activity has a quantum too
  (theta of a spiking layer, theta / n of a quantised one), the product of the
  whole numbers is exact in float32, below 2^24, in any order of summation and
  on any device; both scales are multiplied afterwards. A quantised network and
  its settled twin then decide alike but for the norm's last bits.

  Args:
    weights: `Apot`, `EightBit` or None.
    x: activity.
    kernel: quantised.
    alpha: the clip of APoT.
    quantum: what all of `x` is a multiple of, scalar, or None if not known.
    multiply: bilinear.
  """
  if quantum is None or not isinstance(weights, Apot):
    return multiply(*_same_dtype(x, kernel))
  step = alpha.astype(kernel.dtype) / apot_denominator(weights.bits)
  counts = _whole(x, quantum.astype(x.dtype)), _whole(kernel, step)
  total = multiply(*_same_dtype(*counts))
  return total * (step * quantum).astype(total.dtype)


def _same_dtype(x, kernel):
  """Both in the computing dtype: that of `x` if it is a half, else the wider.

  So half-precision images give half-precision products from float32 weights,
  and float64 weights a float64 network.
  """
  half = x.dtype.itemsize < 4
  dtype = x.dtype if half else jnp.promote_types(x.dtype, kernel.dtype)
  return x.astype(dtype), kernel.astype(dtype)


def _whole(x, step):
  """x / step, known to be whole; the derivative is that of the division."""
  ratio = x / step
  return straight_through(jnp.round(ratio), ratio)
