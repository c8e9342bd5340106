r"""The nonlinearities of a network, and the only code that knows of time.

A network has one neuron: `Relu` (float), `QuantRelu` (quantised) or
`IntegrateAndFire` (spiking). They are frozen dataclasses with the same three
members, so that a network is converted by replacing one by another:

  initial_theta                      None where the neuron has no threshold
  respond(synapse, inputs, theta)    currents through `synapse`, then activity
  decode(activity)                   activity -> the activation it stands for

Time is the second axis, [B, T, ...], and is folded into the batch as (B T) for
the synapses: a batch sharded over devices then stays where it is.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.quantize import quantize_activation, quantize_uniform


@dataclasses.dataclass(frozen=True)
class Relu:
  """max(current, 0): the neuron of the float network."""

  initial_theta: ClassVar[None] = None

  def respond(self, synapse, inputs, theta=None, *, static=()):
    del theta, static
    return jnp.maximum(synapse(*inputs), 0)

  def decode(self, activity):
    return activity


@dataclasses.dataclass(frozen=True)
class QuantRelu:
  """`quantize_activation` of the current, with theta as the learned clip."""

  bits: int
  initial_theta: float = 6.0

  def respond(self, synapse, inputs, theta, *, static=()):
    del static
    return quantize_activation(synapse(*inputs), theta, self.bits)

  def decode(self, activity):
    return activity


@dataclasses.dataclass(frozen=True)
class IntegrateAndFire:
  """Integrate-and-fire neurons that may take a spike back.

  Attributes:
    steps: T, the steps during which the input is shown; rates divide by it.
    signed: negative spikes on or off.
    negative_threshold: a spike is taken back at a voltage of this or less.
    max_count: cap on the net spike count, or None.
    settle: steps after the T-th with zero input and no bias: the current is
      synapse(x) - synapse(0) there, so that late charge is still answered.
  """

  steps: int
  signed: bool = True
  negative_threshold: float = -1e-3
  max_count: int | None = None
  settle: int = 0

  initial_theta: ClassVar[float] = 1.0

  def __post_init__(self):
    for name, low in (('steps', 1), ('settle', 0), ('max_count', 1)):
      value = getattr(self, name)
      if name == 'max_count' and value is None:
        continue
      if not isinstance(value, int) or value < low:
        raise UserError(
          f'IntegrateAndFire: {name}={value!r}, but it must be a whole number '
          f'of at least {low}'
        )

  @property
  def total_steps(self) -> int:
    return self.steps + self.settle

  def respond(self, synapse, inputs, theta, *, static=()):
    """Spikes [B, T + settle, ...] in {-theta, 0, theta}.

    `static[i]` says that input i has no time axis: an image, shown for T steps
    and then withdrawn.
    """
    static = static or (False,) * len(inputs)
    if all(static):
      # The same current at each step: one synapse, and no copy per step.
      current = jnp.expand_dims(synapse(*inputs), 1)
      return self._fire(current, theta, constant=True)
    inputs = [
      self._show(x) if alone else x
      for x, alone in zip(inputs, static, strict=True)
    ]
    batch, time = inputs[0].shape[:2]
    folded = [x.reshape(batch * time, *x.shape[2:]) for x in inputs]
    current = synapse(*folded)
    current = current.reshape(batch, time, *current.shape[1:])
    if self.settle:
      bias = synapse(*(jnp.zeros_like(x[:1]) for x in folded))
      late = jnp.arange(time) >= self.steps
      late = late.reshape(time, *(1,) * (current.ndim - 2))
      current = jnp.where(late, current - bias, current)
    return self._fire(current, theta, constant=False)

  def decode(self, activity):
    """Mean over T, settled charge included: [B, T, ...] -> [B, ...]."""
    return jnp.sum(activity, 1) / self.steps

  def decode_over_time(self, activity):
    """What `decode` would say after each step: mean over t, or over T if t > T.

    [B, T + settle, ...] -> the same shape.
    """
    time = jnp.minimum(jnp.arange(1, self.total_steps + 1), self.steps)
    time = time.reshape(-1, *(1,) * (activity.ndim - 2))
    return jnp.cumsum(activity, 1) / time.astype(activity.dtype)

  def _show(self, image):
    shown = jnp.arange(self.total_steps) < self.steps
    shown = shown.reshape(1, -1, *(1,) * (image.ndim - 1))
    return jnp.where(shown, jnp.expand_dims(image, 1), 0)

  def _fire(self, current, theta, constant):
    spikes = _simulate(
      current,
      jnp.asarray(theta, jnp.promote_types(current.dtype, jnp.float32)),
      _Rule(
        self.signed,
        self.negative_threshold,
        self.max_count,
        axis=1,
        steps=self.steps,
        total_steps=self.total_steps,
        constant=constant,
      ),
    )
    return spikes * jnp.asarray(theta, spikes.dtype)


def integrate_and_fire(
  currents, theta, *, signed=True, negative_threshold=-1e-3, max_count=None
):
  r"""Simulates integrate-and-fire neurons with soft reset, by a scan over time.

  The voltage starts at theta / 2, the net count K at 0. Each step, in order
  (spec/classification.md 3.2):

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
  if currents.ndim < 1 or not jnp.issubdtype(currents.dtype, jnp.floating):
    raise UserError(
      f'integrate_and_fire: currents of shape {currents.shape} and dtype '
      f'{currents.dtype}, but they must be floating point with time as the '
      'first axis'
    )
  steps = currents.shape[0]
  rule = _Rule(signed, negative_threshold, max_count, 0, steps, steps, False)
  theta = jnp.asarray(theta, jnp.promote_types(currents.dtype, jnp.float32))
  return _simulate(currents, theta, rule)


@dataclasses.dataclass(frozen=True)
class _Rule:
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
    times = jnp.arange(start, min(start + _STEPS_PER_WORD, rule.total_steps))
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
def _simulate(currents, theta, rule):
  return _integrate(currents, theta, rule)


@_simulate.defjvp
def _(rule, primals, tangents):
  (currents, theta), (dcurrents, dtheta) = primals, tangents
  spikes = _simulate(currents, theta, rule)

  def mean(x):
    total = jnp.sum(x.astype(theta.dtype), rule.axis, keepdims=True)
    return total if rule.constant else total / rule.steps

  _, drate = jax.jvp(
    lambda m, th: quantize_uniform(m, th, rule.steps),
    (mean(currents), theta),
    (mean(dcurrents), dtheta),
  )
  # theta * spikes shall have the tangent of the rate, at every step.
  dspikes = (drate - spikes.astype(theta.dtype) * dtheta) / theta
  return spikes, dspikes.astype(spikes.dtype)
