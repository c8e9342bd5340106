"""Simulates integrate-and-fire neurons by a scan over time; arrays only."""

import dataclasses
import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.errors import UserError, check_fields
from fastsnn_jax.nn.quantizers import (
  against,
  positive,
  quantize_uniform,
  wider,
)


def integrate_and_fire(
  currents, theta, *, signed=True, negative_threshold=-1e-3, max_count=None
):
  r"""Simulates integrate-and-fire neurons with soft reset, by a scan over time.

  The voltage v starts at theta / 2, the net count K at 0. Each step, in order
  (Fast-SNN, https://arxiv.org/abs/2305.19868; reference behaviour C3.2):

    v <- v + current
    fire where v >= theta (and K < max_count):    v <- v - theta, K <- K + 1
    if signed, take back where v <= negative_threshold and K > 0:
                                                  v <- v + theta, K <- K - 1

  Spikes are -1, 0 or 1, in the shape and dtype of `currents`; the state is at
  least float32 and follows wider currents. Charge is conserved:
  v_T = theta / 2 + sum(currents) - theta sum(spikes), and 0 <= K <= T.

  NaN in a current gives NaN from that step on, and in theta everywhere.

  The derivative is that of quantize_activation with T levels, r(m, theta), at
  the mean current m: with the cotangents g_t of the theta-scaled spikes, the
  current of every step gets r'(m) sum(g) / T, and theta gets dr/dtheta sum(g).

  Args:
    currents: (T, ...), float; UserError without a time axis.
    theta: positive, broadcasts against currents[0]; both thresholds are in
      the currents' unit. UserError for 0 or less; NaN comes out under `jit`.
    signed, negative_threshold, max_count: static; UserError out of range.

  >>> z = jnp.array([1., 1., -1., -2., .5, 0., 2.])
  >>> [int(s) for s in integrate_and_fire(z, 1.0)]
  [1, 1, -1, -1, 0, 0, 1]
  >>> [int(s) for s in integrate_and_fire(z, 1.0, signed=False)]
  [1, 1, 0, 0, 0, 0, 0]
  """
  currents = jnp.asarray(currents)
  floating = jnp.issubdtype(currents.dtype, jnp.floating)
  if not floating or not currents.shape[:1] > (0,):
    raise UserError(
      f'integrate_and_fire: currents of shape {currents.shape} and dtype '
      f'{currents.dtype}, but they must be floating point with time first'
    )
  rule = Rule(len(currents), signed, negative_threshold, max_count)
  if not isinstance(theta, jax.core.Tracer) and (np.asarray(theta) <= 0).any():
    raise UserError(
      f'integrate_and_fire: theta={theta}, but a threshold must be positive'
    )
  return simulate(currents[None], theta, rule)[0]


def is_finite(value):
  return isinstance(value, numbers.Real) and math.isfinite(float(value))


def _is_whole(value, low):
  return isinstance(value, numbers.Integral) and int(value) >= low


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is static in a simulation, as of `integrate_and_fire`."""

  steps: int  # with input; `settle` more are without, or 'auto'
  signed: bool = True
  negative_threshold: float = -1e-3
  max_count: int | None = None
  settle: int | str = 0

  def __post_init__(self):
    count, negative = self.max_count, self.negative_threshold
    settle = self.until_quiet or _is_whole(self.settle, 0)
    positive = 'a whole number from 1 up'
    check_fields(
      self,
      ('steps', _is_whole(self.steps, 1), positive),
      ('settle', settle, "a whole number from 0 up, or 'auto'"),
      ('max_count', count is None or _is_whole(count, 1), positive),
      ('signed', isinstance(self.signed, bool | np.bool_), 'True or False'),
      ('negative_threshold', is_finite(negative), 'a finite number'),
    )

  @property
  def until_quiet(self) -> bool:
    return isinstance(self.settle, str) and self.settle == 'auto'

  @property
  def total_steps(self) -> int:
    """Entries of activity in time; all that comes until quiet is one."""
    return self.steps + (1 if self.until_quiet else int(self.settle))


def along_time(values, activity):
  """[T] -> what broadcasts against [B, T, ...]."""
  return values.reshape(1, -1, *(1,) * (activity.ndim - 2))


def at_each_step(theta, activity):
  """What broadcasts against a step, [B, ...] -> against [B, T, ...]."""
  theta = against(theta, activity.ndim - 1)
  return jnp.expand_dims(theta, 1) if theta.ndim else theta


# Two bits hold a spike, of which -2 stands for NaN, so an int32 holds 16 steps;
# stacking a float for each would cost more than the arithmetic. Unrolled, XLA's
# CPU compiler computes a step again for each that follows: it pays up to three
# (benchmarks/neuron.py).
_STEPS_PER_WORD = 16
_STEPS_TO_UNROLL = 3


def simulate(currents, theta, rule):
  """Spikes [B, T + settle, ...] of so many currents, or of one for T steps."""
  wide = wider(currents.dtype, jnp.float32)
  theta = at_each_step(jnp.asarray(theta, wide), currents)
  return _integrate(currents, theta, rule)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _integrate(currents, theta, rule):
  constant, scaled = currents.shape[1] == 1, positive(theta)
  theta = scaled[:, 0] if scaled.ndim else scaled
  # Without a cap and with a threshold below 0, only NaN fires and takes back,
  # by comparisons turned round: 1 ^ -1 is its -2, at no cost.
  uncapped = rule.max_count is None and rule.negative_threshold < 0
  marked = rule.signed and uncapped

  def step(state, t):
    voltage, count, word = state
    at = 0 if constant else t
    current = lax.dynamic_index_in_dim(currents, at, 1, keepdims=False)
    current = current.astype(theta.dtype)
    if constant and rule.settle:
      current = jnp.where(t < rule.steps, current, 0)
    voltage = voltage + current
    fire = ~(voltage < theta) if marked else voltage >= theta
    if rule.max_count is not None:
      fire &= count < rule.max_count
    voltage = jnp.where(fire, voltage - theta, voltage)
    spike = fire.astype(jnp.int32)
    count = count + spike
    if rule.signed:
      low = rule.negative_threshold
      back = (~(voltage > low) if marked else voltage <= low) & (count > 0)
      voltage = jnp.where(back, voltage + theta, voltage)
      back = back.astype(jnp.int32)
      count = count - back
      spike = spike ^ -back if marked else spike - back
    if not marked:
      spike = jnp.where(jnp.isnan(voltage), -2, spike)
    word |= (spike & 3) << (2 * (t % _STEPS_PER_WORD))
    return (voltage, count, word), None

  # From the currents, whose devices and mesh axes the state shares.
  zeros = jnp.zeros_like(currents[:, 0], theta.dtype)
  voltage = zeros + theta / 2
  nothing = count = jnp.zeros_like(voltage, jnp.int32)
  words = []
  for start in range(0, rule.total_steps, _STEPS_PER_WORD):
    stop = min(start + _STEPS_PER_WORD, rule.total_steps)
    times = jnp.arange(start, stop, dtype=jnp.int32)  # under x64 too
    state = (voltage, count, nothing)
    (voltage, count, word), _ = lax.scan(
      step, state, times, unroll=len(times) <= _STEPS_TO_UNROLL
    )
    words.append(jnp.expand_dims(word, 1))

  time = along_time(jnp.arange(rule.total_steps, dtype=jnp.int32), currents)
  word = words[0]
  for i, later in enumerate(words[1:], 1):
    word = jnp.where(time < i * _STEPS_PER_WORD, word, later)
  shift = 2 * (time % _STEPS_PER_WORD)
  # Left, then arithmetically right: the upper of the two bits is the sign.
  spikes = (word << (30 - shift)) >> 30
  return jnp.where(spikes < -1, jnp.nan, spikes.astype(currents.dtype))


@_integrate.defjvp
def _(rule, primals, tangents):
  (currents, theta), (dcurrents, dtheta) = primals, tangents
  spikes = _integrate(currents, theta, rule)

  def mean(x):
    total = jnp.sum(x.astype(theta.dtype), 1, keepdims=True)
    return total if currents.shape[1] == 1 else total / rule.steps

  _, drate = jax.jvp(
    lambda m, th: quantize_uniform(m, th, rule.steps),
    (mean(currents), theta),
    (mean(dcurrents), dtheta),
  )
  # Decoded, theta * spikes shall have the tangent of the rate: every step has
  # its part, those of settling too.
  drate = drate * (rule.steps / rule.total_steps)
  dspikes = (drate - spikes.astype(theta.dtype) * dtheta) / theta
  return spikes, dspikes.astype(spikes.dtype)
