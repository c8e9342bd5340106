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

  Charge is conserved: v_T = theta / 2 + sum(currents) - theta sum(spikes), and
  0 <= K <= T. The state is at least float32 and follows wider currents.

  The derivative is that of the quantised twin r(m, theta) at the mean current
  m, r = quantize_activation with T levels: with the cotangents g_t of the
  theta-scaled spikes, the current of every step gets r'(m) sum(g) / T, and
  theta gets dr/dtheta sum(g).

  Args:
    currents: (T, ...), float.
    theta: firing threshold, positive, broadcasts against currents[0]; same unit
      as the currents.
    signed: negative spikes on or off.
    negative_threshold: absolute, in the currents' unit.
    max_count: cap on K, or None.

  Returns:
    Spikes in {-1, 0, 1}, shape and dtype of `currents`.

  Raises:
    UserError: `currents` without a time axis or not of floating point.

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
  steps = currents.shape[0]
  rule = Rule(signed, negative_threshold, max_count, 0, steps, steps, False)
  theta = jnp.asarray(theta, jnp.promote_types(currents.dtype, jnp.float32))
  return simulate(currents, theta, rule)


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is static in a simulation."""

  signed: bool
  negative_threshold: float
  max_count: int | None
  axis: int  # of time
  steps: int  # with input
  total_steps: int
  constant: bool  # one current (time axis of 1), shown for `steps`


# Two bits hold a spike, so an int32 holds 16 steps. Only such words leave the
# scan: stacking a float for every step would cost more than the arithmetic.
# Unrolled, XLA's CPU compiler fuses the steps and computes each one again for
# all that follow; it pays for three at most (benchmarks/neuron.py).
_STEPS_PER_WORD = 16
_STEPS_TO_UNROLL = 3


def _integrate(currents, theta, rule):
  """Spikes in {-1, 0, 1}, time on `rule.axis`, dtype of the currents."""
  state_dtype = jnp.promote_types(currents.dtype, jnp.float32)
  shape = list(currents.shape)
  del shape[rule.axis]

  def step(state, t):
    voltage, count, word = state
    at = 0 if rule.constant else t
    current = lax.dynamic_index_in_dim(currents, at, rule.axis, keepdims=False)
    current = current.astype(state_dtype)
    if rule.constant and rule.total_steps > rule.steps:
      current = jnp.where(t < rule.steps, current, 0)
    voltage = voltage + current
    fire = voltage >= theta
    if rule.max_count is not None:
      fire &= count < rule.max_count
    voltage = jnp.where(fire, voltage - theta, voltage)
    spike = fire.astype(jnp.int32)
    count = count + spike
    if rule.signed:
      back = (voltage <= rule.negative_threshold) & (count > 0)
      voltage = jnp.where(back, voltage + theta, voltage)
      taken = back.astype(jnp.int32)
      count = count - taken
      spike = spike - taken
    word |= (spike & 3) << (2 * (t % _STEPS_PER_WORD))
    return (voltage, count, word), None

  voltage = jnp.broadcast_to(theta / 2, shape).astype(state_dtype)
  count = jnp.zeros(shape, jnp.int32)
  words = []
  for start in range(0, rule.total_steps, _STEPS_PER_WORD):
    stop = min(start + _STEPS_PER_WORD, rule.total_steps)
    times = jnp.arange(start, stop, dtype=jnp.int32)  # under x64 too
    state = (voltage, count, jnp.zeros(shape, jnp.int32))
    (voltage, count, word), _ = lax.scan(
      step, state, times, unroll=len(times) <= _STEPS_TO_UNROLL
    )
    words.append(jnp.expand_dims(word, rule.axis))

  along = [1] * (len(shape) + 1)
  along[rule.axis] = -1
  time = jnp.arange(rule.total_steps, dtype=jnp.int32).reshape(along)
  word = words[0]
  for i, later in enumerate(words[1:], 1):
    word = jnp.where(time < i * _STEPS_PER_WORD, word, later)
  shift = 2 * (time % _STEPS_PER_WORD)
  # Left, then arithmetically right: the upper of the two bits is the sign.
  return ((word << (30 - shift)) >> 30).astype(currents.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def simulate(currents, theta, rule):
  return _integrate(currents, theta, rule)


@simulate.defjvp
def _(rule, primals, tangents):
  (currents, theta), (dcurrents, dtheta) = primals, tangents
  spikes = simulate(currents, theta, rule)

  def mean(x):
    total = jnp.sum(x.astype(theta.dtype), rule.axis, keepdims=True)
    return total if rule.constant else total / rule.steps

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
