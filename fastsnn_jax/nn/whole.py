"""Whole numbers: what an activity is a multiple of, and exact products of it.

Levels and spikes are small whole numbers, which bfloat16 holds exactly. So a
product of them is the same in a quantised network and in its spiking twin, on
every device, if the scales follow behind it (docs/method.md).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.quantizers import against, straight_through, wider

PRECISIONS = 'default', 'high', 'highest'

_EXACT = 256  # bfloat16 has all whole numbers up to here


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['unit', 'parts'],
  meta_fields=['largest', 'precision'],
)
@dataclasses.dataclass(frozen=True)
class Quantum:
  """What is known of an input: x = n unit / parts, with n whole.

  Attributes:
    unit: theta and shares of it, the same in both twins; for all channels or
      one for each. None where nothing is known: images and currents.
    parts: of a unit: T of the levels and of means over time, 1 of spikes; one
      for all rows of the batch or one for each.
    largest: magnitude that no n exceeds.
    precision: of products of what is no whole number, see `Network`; for
      images of half precision their dtype, and all products are of that.
  """

  unit: Any = None
  parts: Any = 1
  largest: int = 0
  precision: str = 'default'

  @property
  def of_ends(self):
    """Precision of the read-out of 8-bit weights: it is cheap."""
    return 'highest' if self.precision == 'high' else self.precision

  def float_only(self):
    """Of a current: the same precision, and no unit."""
    return Quantum(precision=self.precision)

  def shared(self, count: int):
    """Of sums over `count` of them, divided by `count`."""
    if self.unit is None:
      return self
    most = self.largest * count
    return dataclasses.replace(self, unit=self.unit / count, largest=most)

  def blocks(self, count: int):
    """Of `count` of them side by side as channels."""
    if self.unit is None or not self.unit.ndim:
      return self
    return dataclasses.replace(self, unit=jnp.tile(self.unit, count))

  def numbers(self, x):
    """n of x; the derivative is that of the division."""
    wide = x.astype(wider(x.dtype, jnp.float32))
    unit = against(self.unit.astype(wide.dtype), x.ndim)
    ratio = wide / (unit / self._parts(wide))
    return straight_through(jnp.round(ratio), ratio)

  def scale(self, y, factor):
    """y factor / parts."""
    return y * (jnp.asarray(factor, y.dtype) / self._parts(y))

  def _parts(self, x):
    parts = jnp.asarray(self.parts, x.dtype)
    return parts.reshape(-1, *(1,) * (x.ndim - 1)) if parts.ndim else parts


def check_precision(precision) -> None:
  if precision not in PRECISIONS:
    raise UserError(
      f'precision={precision!r}, but it must be one of {", ".join(PRECISIONS)}'
    )


def join(quanta, channels):
  """Of a concatenation of inputs with so many channels each; or none."""
  quanta = [quantum or Quantum() for quantum in quanta]
  if any(quantum.unit is None for quantum in quanta):
    return quanta[0].float_only()
  units = [
    jnp.broadcast_to(quantum.unit, (count,))
    for quantum, count in zip(quanta, channels, strict=True)
  ]
  largest = max(quantum.largest for quantum in quanta)
  unit = jnp.concatenate(units)
  return dataclasses.replace(quanta[0], unit=unit, largest=largest)


def float_product(x, kernel, quantum, multiply):
  """Product of what is no whole number: images, and float networks."""
  match quantum.precision:
    case 'bfloat16' | 'float16' as half:
      return multiply(x.astype(half), kernel.astype(half), None, jnp.float32)
    case 'default':
      return multiply(x, kernel)
  return multiply(x, kernel, lax.Precision.HIGHEST)


def whole_product(x, kernel, step, largest, quantum, multiply):
  """Product of whole numbers: of an activity, and of a kernel's over `step`.

  No number of the kernel exceeds `largest`. Algorithms that are not exact, such
  as Winograd's, are off by less than a half: the sum is rounded.
  """
  n, k = quantum.numbers(x), kernel / step
  k = straight_through(jnp.round(k), k)
  n, k = (a.astype(wider(n.dtype, k.dtype)) for a in (n, k))
  total = _product(n, k, max(quantum.largest, largest), quantum, 1, multiply)
  total = straight_through(jnp.round(total), total)
  return quantum.scale(total, step * quantum.unit)


def scaled_product(x, kernel, quantum, multiply):
  """Product of an activity's whole numbers and a float kernel.

  Units of channels of their own go into the kernel, in both twins alike.
  """
  n, unit = quantum.numbers(x), quantum.unit
  n, kernel = (a.astype(wider(n.dtype, kernel.dtype)) for a in (n, kernel))
  if unit.ndim:
    kernel = kernel * _spread(unit.astype(kernel.dtype), kernel)
    unit = 1
  pieces = {'highest': 0, 'high': 2}.get(quantum.precision, 1)
  y = _product(n, kernel, quantum.largest, quantum, pieces, multiply)
  return quantum.scale(y, unit)


def _spread(unit, kernel):
  """[C] against a kernel's last axes, inputs (of a group) and outputs."""
  inputs, outputs = kernel.shape[-2:]
  if unit.size < inputs:  # a map that was flattened
    return jnp.tile(unit, inputs // unit.size)[:, None]  # a dense kernel
  groups = unit.size // inputs
  spread = jnp.repeat(unit.reshape(groups, inputs).T, outputs // groups, 1)
  return against(spread, kernel.ndim)


def _product(n, kernel, largest, quantum, pieces, multiply):
  """multiply(n, kernel) with bfloat16 operands and float32 sums, but on a CPU.

  The kernel is the sum of so many bfloat16 pieces; 0, or numbers above what
  bfloat16 can hold: a product in full float32. The derivatives are those of the
  product in float32.
  """
  if n.dtype != jnp.float32:
    return multiply(n, kernel)
  if not pieces or largest > _EXACT:
    return multiply(n, kernel, lax.Precision.HIGHEST)
  half = '16' in quantum.precision
  dtype = quantum.precision if half else 'bfloat16'
  narrow = functools.partial(in_pieces, pieces, dtype, multiply)

  @jax.custom_jvp
  def run(n, kernel):
    if half:
      return narrow(n, kernel)
    return lax.platform_dependent(n, kernel, cpu=multiply, default=narrow)

  @run.defjvp
  def _(primals, tangents):
    return run(*primals), jax.jvp(multiply, primals, tangents)[1]

  return run(n, kernel)


def in_pieces(pieces, dtype, multiply, n, kernel):
  """multiply(n, the kernel as a sum of so many pieces), with float32 sums."""
  total, n = 0, n.astype(dtype)
  for _ in range(pieces):
    piece = kernel.astype(dtype)
    total += multiply(n, piece, None, jnp.float32)
    # XLA would find that the rest is nothing, with its excess precision.
    kernel = kernel - lax.optimization_barrier(piece).astype(kernel.dtype)
  return total
