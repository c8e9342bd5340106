r"""Quantisers of weights and activations, as pure functions of arrays.

Every function computes in at least float32, follows wider inputs and returns
its first argument's shape and dtype, a float; round() rounds half to even. NaN
comes out as NaN, and so does a clip without meaning. Gradients are
straight-through by `custom_jvp`, which leaves the values as they are; each rule
gives its value by the function itself, so derivatives of any order follow it.

Sources: https://arxiv.org/abs/2305.19868 (Fast-SNN) for activations,
https://arxiv.org/abs/1909.13144 (additive powers of two) for weights.
"""

import fractions
import functools
import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from fastsnn_jax.errors import UserError

# Exponents e of the base sets, each of 0 and the 2^-e, by the weights' bits.
_APOT_SETS = {
  2: ((0,),),
  3: ((1, 2, 3),),
  4: ((1, 2, 4), (3,)),
  5: ((1, 3, 5), (2, 4, 6)),
  6: ((1, 3, 6), (2, 4, 7), (5,)),
  7: ((1, 4, 7), (2, 5, 8), (3, 6, 9)),
}


@jax.custom_jvp
def straight_through(value, proxy):
  """`value` bit for bit, with the derivative of `proxy`."""
  return value


@straight_through.defjvp
def _(primals, tangents):
  value, proxy = primals
  return straight_through(value, proxy), tangents[1].astype(value.dtype)


def divide(x, divisor):
  """IEEE division of an array by a scalar, under `jit` too.

  XLA multiplies by the reciprocal of a broadcast scalar instead, off by one ulp
  for one quotient in twenty, which a rounding decision notices. The select
  hides that the divisor is the same everywhere, and costs nothing measurable.
  """
  return x / jnp.where(jnp.isnan(x), jnp.nan, divisor)


def wider(*dtypes):
  """The dtype that holds all of these, under strict promotion too."""
  with jax.numpy_dtype_promotion('standard'):
    return jnp.result_type(*dtypes)


def _wide(x, what):
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise UserError(
      f'{what}: an array of dtype {x.dtype}, but it must be floating point; '
      'convert it to float32'
    )
  return x.astype(wider(x.dtype, jnp.float32))


def against(x, ndim):
  """`x` with axes of 1 in front, as `ndim` says; a scalar stays one."""
  return x.reshape(*(1,) * (ndim - x.ndim), *x.shape) if x.ndim else x


def positive(x):
  """`x` where it is above 0, else NaN."""
  return jnp.where(x > 0, x, jnp.nan)


def check_bits(bits, low, high, what):
  if not (isinstance(bits, int | np.integer) and low <= bits <= high):
    raise UserError(
      f'{what}: bits={bits!r}, but it must be a whole number from {low} to '
      f'{high}; leave the {what} float for 32 bits'
    )


def apot_levels(bits: int, dtype=np.float32) -> np.ndarray:
  """Magnitudes of the additive-powers-of-two weight levels, sorted.

  A level is a sum of one element of each base set, divided by the largest such
  sum (reference behaviour C1.1): 2^(bits - 1) levels from 0 to 1, computed in
  `dtype`. One of the 2 to 7 bits is the sign; UserError for another number.

  >>> apot_levels(4).tolist()[:4]
  [0.0, 0.10000000149011612, 0.20000000298023224, 0.30000001192092896]
  """
  check_bits(bits, 2, 7, 'APoT weights')
  dtype = np.dtype(dtype).type
  sets = [[0.0, *(2.0**-i for i in powers)] for powers in _APOT_SETS[bits]]
  sums = sorted({sum(terms) for terms in itertools.product(*sets)})
  # The official code multiplies by the reciprocal; so do the last bits here.
  return np.array(sums, dtype) * (dtype(1) / dtype(sums[-1]))


@functools.cache
def apot_denominator(bits: int) -> int:
  """The smallest D that makes every level times D a whole number.

  >>> [apot_denominator(bits) for bits in (2, 3, 4, 5)]
  [1, 4, 10, 48]
  """
  levels = map(fractions.Fraction, apot_levels(bits, np.float64).tolist())
  return math.lcm(*(x.limit_denominator(4096).denominator for x in levels))


@functools.cache
def _boundaries(bits: int, dtype: str) -> tuple[tuple[float, float], ...]:
  """(smallest magnitude that takes the level, level), for levels above 0.

  The official code takes the nearest level by rounded distance, at a tie the
  upper one, except next to zero; one number per level decides alike.
  """
  levels, boundaries = apot_levels(bits, dtype), []
  for low, high in itertools.pairwise(levels):
    x = (low + high) / levels.dtype.type(2)
    for _ in range(8):
      x = np.nextafter(x, low)
    while high - x > x - low or (high - x == x - low and low == 0):
      x = np.nextafter(x, high)
    boundaries.append((float(x), float(high)))
  return tuple(boundaries)


def _nearest(x, bits):
  """Signed APoT level nearest to each `x`, clipped to [-1, 1]."""
  magnitude, cast = jnp.abs(x), x.dtype.type
  level = magnitude * 0  # not zeros: a NaN has to stay one
  for boundary, value in _boundaries(bits, x.dtype.name):
    level = jnp.where(magnitude >= cast(boundary), cast(value), level)
  return jnp.sign(x) * level


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _normalize(w, detached):
  return divide(w - jnp.mean(w), jnp.std(w, ddof=1))


@_normalize.defjvp
def _(detached, primals, tangents):
  (w,), (dw,) = primals, tangents
  normal, std = _normalize(w, detached), jnp.std(w, ddof=1)
  if detached:
    return normal, dw / lax.stop_gradient(std)
  dw = dw - jnp.mean(dw) - normal * (jnp.sum(normal * dw) / (w.size - 1))
  return normal, dw / std


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _project(normal, alpha, bits, masked):
  alpha = jnp.where(alpha == 0, jnp.nan, alpha)
  return _nearest(divide(normal, alpha), bits) * alpha


@_project.defjvp
def _(bits, masked, primals, tangents):
  (normal, alpha), (dnormal, dalpha) = primals, tangents
  y = _project(normal, alpha, bits, masked)
  x = lax.stop_gradient(divide(normal, alpha))  # q - x moves by nothing
  q, outside = _nearest(x, bits), jnp.abs(x) > 1
  if masked:
    dnormal = jnp.where(outside, 0, dnormal)
  return y, dnormal + jnp.where(outside, jnp.sign(x), q - x) * dalpha


def quantize_weight(
  w, alpha, bits: int, gradient: Literal['detached', 'full'] = 'detached'
):
  r"""Normalises a weight tensor and projects it onto the APoT levels.

  w_n = (w - mean(w)) / std(w) over the whole tensor (std with N - 1), and
  w_q = alpha sign(w_n / alpha) level(|w_n / alpha|). The scale stays that of
  w_n: batch norm absorbs it. At 2 bits the levels are -1, 0, 1.

  With g the cotangent of w_q, x = w_n / alpha and q the signed level,
  dL/dalpha = sum g (sign(x) if |x| > 1 else q - x). For w the official code has
  two families (reference behaviour C1.4):

    'detached': g / std; mean and std are constants, clipping does not mask.
    'full': through mean and std, with g masked where |x| > 1 (not at 2 bits).

  alpha is a scalar of either sign, and bits are 2 to 7 (UserError for others).

  >>> w = jnp.array([-.3, -.12, -.05, 0, .03, .08, .15, .4])
  >>> [round(float(q), 2) for q in quantize_weight(w, 1.2, 3)]
  [-1.2, -0.6, -0.3, -0.0, 0.0, 0.3, 0.6, 1.2]
  """
  check_bits(bits, 2, 7, 'APoT weights')
  if gradient not in ('detached', 'full'):
    raise UserError(
      f"gradient={gradient!r}, but the families are 'detached' and 'full'"
    )
  wide = _wide(w, 'quantize_weight')
  masked = gradient == 'full' and bits > 2
  normal = _normalize(wide, gradient == 'detached')
  alpha = jnp.asarray(alpha, wide.dtype)
  return _project(normal, alpha, bits, masked).astype(jnp.asarray(w).dtype)


def quantize_weight_8bit(w):
  """The 8-bit quantiser of first and last layers: a signed-maximum scale.

  w_q = round(w / M * 127) / 127 * M with M = max(w), not max|w|: a negative
  weight beyond -M takes a code below -127. Official checkpoints depend on it
  (reference behaviour C1.6). dL/dw = dL/dw_q; M is a constant.

  >>> quantize_weight_8bit(jnp.array([-.5, -.2, .37])).tolist()[2]
  0.3700000047683716
  """
  wide = _wide(w, 'quantize_weight_8bit')
  top = jnp.max(wide)
  value = divide(jnp.round(divide(wide, top) * 127), 127) * top
  return straight_through(value, wide).astype(jnp.asarray(w).dtype)


# Stands in the jaxpr of every quantised activation, as the identity of x that
# knows alpha, the levels and the name: `tracing` finds the sites by it.
site_p = Primitive('quantized_activation_site')
site_p.def_impl(lambda x, alpha, **settings: x)
site_p.def_abstract_eval(lambda x, alpha, **settings: x)
mlir.register_lowering(site_p, lambda context, x, alpha, **settings: [x])


def _batch_site(arguments, axes, **settings):
  """Both with the mapped axis in front, where alpha broadcasts against x."""
  size = next(
    x.shape[axis]
    for x, axis in zip(arguments, axes, strict=True)
    if axis is not None
  )
  x, alpha = arguments
  if axes[0] is None:
    x = jnp.broadcast_to(x, (size, *x.shape))
  else:
    x = jnp.moveaxis(x, axes[0], 0)
  if axes[1] is not None:
    alpha = jnp.moveaxis(alpha, axes[1], 0)
  return site_p.bind(x, alpha, **settings), 0


batching.primitive_batchers[site_p] = _batch_site


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def quantize_uniform(x, alpha, levels: int, name: str | None = None):
  """`quantize_activation` with n = `levels`, the steps of a neuron."""
  shaped = alpha if alpha.ndim else alpha.reshape((1,) * x.ndim)
  x = site_p.bind(x, shaped, levels=levels, name=name)
  return _uniform(x, alpha, levels)[1]


def level(x, alpha, levels):
  """round(clip(max(x, 0) / alpha, 0, 1) n), the whole number of a level."""
  return _nearest_level(divide(jnp.maximum(x, 0), alpha), levels)


def _nearest_level(ratio, levels):
  return jnp.round(jnp.clip(ratio, 0, 1) * levels)


def _uniform(x, alpha, levels):
  alpha = positive(alpha)
  ratio = divide(jnp.maximum(x, 0), alpha)
  share = divide(_nearest_level(ratio, levels), levels)
  return ratio, share * alpha, share


@quantize_uniform.defjvp
def _(levels, name, primals, tangents):
  (x, alpha), (dx, dalpha) = primals, tangents
  y = quantize_uniform(x, alpha, levels, name)
  # Straight through, share and ratio move alike: their difference by nothing.
  still = lax.stop_gradient((x, alpha))
  ratio, _, share = _uniform(still[0], still[1], levels)
  passed = jnp.where((x > 0) & (ratio <= 1), dx, 0)
  return y, passed + jnp.where(ratio > 1, 1, share - ratio) * dalpha


def quantize_activation(x, alpha, bits: int, name: str | None = None):
  """Rectifies, clips at alpha and rounds to 2^bits levels.

  y = round(clip(max(x, 0) / alpha, 0, 1) n) / n * alpha, n = 2^bits - 1, with
  alpha positive, broadcast against x, and 1 to 16 bits (UserError for others).
  dL/dx = g where 0 < x <= alpha, else 0; dL/dalpha = sum g (1 if x > alpha
  else y / alpha - x / alpha) over the positive x (reference behaviour C1.5).

  In a function that `fs.from_function` converts, every call is a neuron, known
  by `name`; without one it gets the name of the scope that it stands in.

  >>> quantize_activation(jnp.array([-1., .5, 1.4, 3.]), 2., 2).tolist()
  [0.0, 0.6666666865348816, 1.3333333730697632, 2.0]
  """
  check_bits(bits, 1, 16, 'activation')
  if not isinstance(name, str | None):
    raise UserError(
      f'quantize_activation: name={name!r}, but it must be a text or None'
    )
  wide = _wide(x, 'quantize_activation')
  alpha = jnp.asarray(alpha, wide.dtype)
  wide, alpha = against(wide, alpha.ndim), against(alpha, wide.ndim)
  y = quantize_uniform(wide, alpha, 2**bits - 1, name)
  return y.astype(jnp.asarray(x).dtype)
