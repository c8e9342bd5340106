"""What neurons hold between two steps."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from fastsnn_jax.nn.folded.words import fire
from fastsnn_jax.nn.quantizers import against, positive, wider

_STEPS_TO_UNROLL = 16


class State(NamedTuple):
  """Of neurons after some steps, [B, ...].

  Attributes:
    voltage: what is left of the charge.
    count: spikes less those taken back.
    fired: how often each fired, since the input ended in `until_quiet`.
  """

  voltage: Any
  count: Any
  fired: Any

  @classmethod
  def empty(cls, shape, theta, kind):
    """Before the first step: half a threshold, so that rates are rounded."""
    voltage = _resting(jnp.zeros(shape, wider(kind, jnp.float32)), theta)
    count = jnp.zeros(shape, jnp.int32)
    return cls(voltage, count, count)

  @classmethod
  def after(cls, currents, spikes, theta, rule):
    """That of `simulate`, by what it was given and gave."""
    wide = wider(currents.dtype, jnp.float32)
    constant = currents.shape[1] == 1

    def step(voltage, t):
      current = lax.dynamic_index_in_dim(
        currents, 0 if constant else t, 1, keepdims=False
      )
      spike = lax.dynamic_index_in_dim(spikes, t, 1, keepdims=False)
      voltage = voltage + current.astype(wide)
      threshold = _threshold(theta, voltage)
      return voltage - threshold * spike.astype(wide), None

    voltage = _resting(jnp.zeros_like(currents[:, 0], wide), theta)
    times = jnp.arange(rule.steps, dtype=jnp.int32)
    unroll = rule.steps <= _STEPS_TO_UNROLL
    voltage, _ = lax.scan(step, voltage, times, unroll=unroll)
    count = jnp.sum(spikes, 1, wide).astype(jnp.int32)
    return cls(voltage, count, jnp.zeros_like(count))

  def charged(self, current):
    """The state with a step's current, not fired yet."""
    voltage = self.voltage + current.astype(self.voltage.dtype)
    return self._replace(voltage=voltage)

  def fire(self, theta, rule):
    """(spikes, state after them), of the charge that is there."""
    threshold = _threshold(theta, self.voltage)
    voltage, spikes = fire(self.voltage, self.count, threshold, rule)
    fired = self.fired + jnp.abs(spikes)
    return spikes, State(voltage, self.count + spikes, fired)

  def net(self, before=None):
    """What was fired since a state, or in all, spikes taken back subtracted."""
    count = self.count if before is None else self.count - before.count
    net = count.astype(self.voltage.dtype)
    return jnp.where(jnp.isnan(self.voltage), jnp.nan, net)


def _resting(zeros, theta):
  return zeros + _threshold(theta, zeros) / 2


def _threshold(theta, voltage):
  theta = jnp.asarray(theta, voltage.dtype)
  return positive(against(theta, voltage.ndim))


def busy_rows(spikes):
  """[B]: in which rows any neuron fires."""
  return jnp.any(spikes != 0, range(1, spikes.ndim))


def last_step(spiking):
  """[B] of truths [B, T, ...]: the last step with a spike, 0 for none."""
  busy = jnp.any(spiking, range(2, spiking.ndim))
  times = jnp.arange(1, busy.shape[1] + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(busy, times, 0), 1)
