"""Simulates integrate-and-fire neurons by a scan over time; arrays only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.quantizers import quantize_uniform


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

  The derivative is that of quantize_activation with T levels, r(m, theta), at
  the mean current m: with the cotangents g_t of the theta-scaled spikes, the
  current of every step gets r'(m) sum(g) / T, and theta gets dr/dtheta sum(g).

  Args:
    currents: (T, ...), float; UserError without a time axis.
    theta: positive, broadcasts against currents[0]; both thresholds are in
      the currents' unit.

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
  return simulate(currents[None], theta, rule)[0]


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is static in a simulation, as of `integrate_and_fire`."""

  steps: int  # with input; `settle` more are without
  signed: bool = True
  negative_threshold: float = -1e-3
  max_count: int | None = None
  settle: int = 0

  @property
  def total_steps(self) -> int:
    return self.steps + self.settle


def along_time(values, activity):
  """[T] -> what broadcasts against [B, T, ...]."""
  return values.reshape(-1, *(1,) * (activity.ndim - 2))


# Two bits hold a spike, so an int32 holds 16 steps; stacking a float for each
# would cost more than the arithmetic. Unrolled, XLA's CPU compiler computes a
# step again for each that follows: it pays up to three (benchmarks/neuron.py).
_STEPS_PER_WORD = 16
_STEPS_TO_UNROLL = 3


def simulate(currents, theta, rule):
  """Spikes [B, T + settle, ...] of so many currents, or of one for T steps."""
  wide = jnp.promote_types(currents.dtype, jnp.float32)
  return _integrate(currents, jnp.asarray(theta, wide), rule)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _integrate(currents, theta, rule):
  shape = (currents.shape[0], *currents.shape[2:])
  constant = currents.shape[1] == 1

  def step(state, t):
    voltage, count, word = state
    at = 0 if constant else t
    current = lax.dynamic_index_in_dim(currents, at, 1, keepdims=False)
    current = current.astype(theta.dtype)
    if constant and rule.settle:
      current = jnp.where(t < rule.steps, current, 0)
    voltage = voltage + current
    fire = voltage >= theta
    if rule.max_count is not None:
      fire &= count < rule.max_count
    voltage = jnp.where(fire, voltage - theta, voltage)
    spike = fire.astype(jnp.int32)
    if rule.signed:
      back = (voltage <= rule.negative_threshold) & (count + spike > 0)
      voltage = jnp.where(back, voltage + theta, voltage)
      spike -= back.astype(jnp.int32)
    word |= (spike & 3) << (2 * (t % _STEPS_PER_WORD))
    return (voltage, count + spike, word), None

  voltage = jnp.broadcast_to(theta / 2, shape)
  count = jnp.zeros(shape, jnp.int32)
  words = []
  for start in range(0, rule.total_steps, _STEPS_PER_WORD):
    stop = min(start + _STEPS_PER_WORD, rule.total_steps)
    times = jnp.arange(start, stop, dtype=jnp.int32)  # under x64 too
    state = (voltage, count, jnp.zeros(shape, jnp.int32))
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
  return ((word << (30 - shift)) >> 30).astype(currents.dtype)


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
