"""How weights start, how they are quantised, and how they are multiplied."""

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


# --- how weights are quantised ----------------------------------------------


@dataclasses.dataclass(frozen=True)
class Apot:
  """APoT weights of so many bits, with one of the two gradient families."""

  bits: int
  gradient: str = 'full'
  initial_alpha: float = 3.0

  def initial(self, key, shape):
    """Of the clip."""
    del key
    return jnp.full(shape, self.initial_alpha, jnp.float32)


@dataclasses.dataclass(frozen=True)
class EightBit:
  """The 8-bit weights of first and last layers."""


def quantized_kernel(weights, kernel, alpha=None):
  """The kernel as its inputs meet it: by `Apot`, `EightBit` or, if None, as is.

  Args:
    weights: how.
    kernel: as trained.
    alpha: the clip of APoT.
  """
  match weights:
    case None:
      return kernel
    case EightBit():
      return quantize_weight_8bit(kernel)
    case Apot(bits, gradient):
      return quantize_weight(kernel, alpha, bits, gradient)
  raise TypeError(f'weights={weights!r}: None, EightBit or Apot needed')


# --- how they are multiplied ------------------------------------------------


def product(weights, x, kernel, alpha, quantum, multiply):
  """multiply(x, kernel), in whole numbers where both are multiples of a step.

  APoT weights are multiples of alpha / D. Where the activity is one of a known
  quantum too (theta of a spiking layer, theta / T of a quantised one), the
  product of the whole numbers is exact in float32, below 2^24, in any order of
  summation and on any device, and the two scales follow once. A quantised
  network and its settled twin then decide alike but for the norm's last bits.

  Args:
    weights: `Apot`, `EightBit` or None.
    x: activity.
    kernel: quantised.
    alpha: the clip of APoT.
    quantum: of x, scalar, or None.
    multiply: bilinear.
  """
  if quantum is None or not isinstance(weights, Apot):
    return multiply(*_same_dtype(x, kernel))
  step = alpha.astype(kernel.dtype) / apot_denominator(weights.bits)
  counts = _whole(x, quantum.astype(x.dtype)), _whole(kernel, step)
  found = multiply(*_same_dtype(*counts))
  return found * (step * quantum).astype(found.dtype)


def _same_dtype(x, kernel):
  """Both in the computing dtype: that of `x` if it is a half, else the wider.

  Half-precision images so give half-precision products from float32 weights,
  and float64 weights a float64 network.
  """
  half = x.dtype.itemsize < 4
  dtype = x.dtype if half else jnp.promote_types(x.dtype, kernel.dtype)
  return x.astype(dtype), kernel.astype(dtype)


def _whole(x, step):
  """x / step, known to be whole; the derivative is that of the division."""
  ratio = x / step
  return straight_through(jnp.round(ratio), ratio)
