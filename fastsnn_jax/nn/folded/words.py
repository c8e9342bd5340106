"""Spikes of all steps of a neuron in one word, two bits a step.

Trains of floats cost more to write and read than the arithmetic of a neuron.
So the steps are unrolled into one fusion that reads currents and writes an
int32 for 16 steps: 0, 1 and -1 as two's complement, and -2 for NaN.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STEPS_PER_WORD = 16
LOW = 0x55555555  # the lower of each two bits: that of a spike
_ALL_NAN = -0x55555556  # 10 in all places


def at_rest(like, theta):
  """(voltage, count) before the first step."""
  voltage = jnp.zeros(like.shape, like.dtype) + theta / 2
  return voltage, jnp.zeros(like.shape, jnp.int32)


def gather(current, theta, rule, steps, start):
  """Words of `fs.integrate_and_fire`, bit for bit, without a scan.

  Each word but the first goes through the steps before it again, by their
  spikes: long runs are better scanned.

  Args:
    current: t -> the current of step t.
    theta: positive, or NaN; broadcasts against a current.
    rule: what is static, an `integrate_and_fire.Rule`.
    steps: how many.
    start: () -> (voltage, count) before them, such as of `at_rest`. An array
      that is made outside of `kept` waits for it, however long.

  Returns:
    A tuple of int32 arrays of a current's shape, for 16 steps each.
  """
  words: list[jax.Array] = []
  for first in range(0, steps, STEPS_PER_WORD):
    voltage, count = start()
    word = jnp.zeros_like(count)
    for t in range(min(first + STEPS_PER_WORD, steps)):
      voltage = voltage + current(t)
      known = code(words, t) if t < first else None
      voltage, spike = fire(voltage, count, theta, rule, known)
      count = count + spike
      if known is None:
        spike = jnp.where(jnp.isnan(voltage), -2, spike)
        word = word | ((spike & 3) << (2 * (t - first)))
    words.append(word)
  return tuple(words)


def kept(words, theta, current, steps):
  """`words()`, computed once, however many read them.

  XLA's CPU compiler removes barriers before it fuses, and would compute all
  steps again for each reader; the result of a conditional it cannot fuse. NaN
  is what a neuron without a positive theta gives, alone or among others.
  """
  count = -(-steps // STEPS_PER_WORD)

  def nothing():
    # Of a current, whose devices and mesh axes the words share.
    return (jnp.full_like(current(0), _ALL_NAN, jnp.int32),) * count

  return lax.cond(jnp.any(theta > 0), words, nothing)


def charge(words, current, theta, rule, steps, start):
  """The voltage after the steps of such words, as `gather` made them."""
  voltage, count = start()
  for t in range(steps):
    spike = code(words, t)
    voltage, _ = fire(voltage + current(t), count, theta, rule, spike)
    count = count + spike
  return voltage


def fire(voltage, count, theta, rule, known=None):
  """(voltage, spike) after a step whose current is in the voltage, by the rule
  of `fs.integrate_and_fire`; `known` is the spike, where it is known.

  One expression for the spike makes XLA compute each step once.
  """
  low = rule.negative_threshold
  fires = voltage >= theta
  if rule.max_count is not None:
    fires &= count < rule.max_count
  if rule.signed and low > 0:  # what fires may be taken back at once
    voltage = jnp.where(fires, voltage - theta, voltage)
    spike = fires.astype(jnp.int32)
    back = (voltage <= low) & (count + spike > 0)
    voltage = jnp.where(back, voltage + theta, voltage)
    return voltage, spike - back.astype(jnp.int32)
  spike = fires.astype(jnp.int32)
  if rule.signed:
    if low == 0:  # firing from theta leaves 0, which is taken back
      fires &= voltage != theta
    back = (voltage <= low) & (count > 0)
    spike = jnp.where(fires, 1, jnp.where(back, -1, 0))
  if known is not None:
    spike = known
  return voltage - theta * spike.astype(voltage.dtype), spike


def code(words, t):
  """What a step's two bits say: -2 for NaN, -1, 0, 1; int32."""
  word, place = words[t // STEPS_PER_WORD], t % STEPS_PER_WORD
  # Left, then arithmetically right: the upper of the two bits is the sign.
  return (word << (30 - 2 * place)) >> 30


def step(words, t, dtype=jnp.float32):
  """The spikes of one step, whole numbers as floats."""
  return _as_float(code(words, t), dtype)


def _as_float(codes, dtype):
  return jnp.where(codes < -1, jnp.nan, codes.astype(dtype))


def train(words, steps, dtype=jnp.float32):
  """Words of shape [B, ...] -> the spikes of all steps, [B, steps, ...]."""
  ndim = words[0].ndim
  time = jnp.arange(steps, dtype=jnp.int32).reshape(1, -1, *(1,) * (ndim - 1))
  word, *later = (jnp.expand_dims(word, 1) for word in words)
  for i, more in enumerate(later, 1):
    word = jnp.where(time < i * STEPS_PER_WORD, word, more)
  shift = 2 * (time % STEPS_PER_WORD)
  return _as_float((word << (30 - shift)) >> 30, dtype)


def total(words, dtype=jnp.float32):
  """The sum of the spikes of all steps."""
  ones, minus = both_signs(words)
  broken = functools.reduce(operator.or_, map(_has_nan, words))
  return jnp.where(broken, jnp.nan, (ones - minus).astype(dtype))


def both_signs(words):
  """(how many spikes of 1, how many of -1)."""
  ones = minus = jnp.zeros_like(words[0])
  for word in words:
    low, high = word & LOW, (word >> 1) & LOW
    # 1 is 01 and -1 is 11.
    ones += lax.population_count(low & ~high)
    minus += lax.population_count(low & high)
  return ones, minus


def last(words):
  """[B]: the last step with a spike, from 1 up; 0 for none."""
  found = jnp.zeros(words[0].shape[:1], jnp.int32)
  for i, word in enumerate(words):
    axes = tuple(range(1, word.ndim))
    bits = lax.reduce(word, np.int32(0), lax.bitwise_or, axes) & LOW
    place = (33 - lax.clz(bits)) // 2  # of the highest pair, from 1 up
    found = jnp.where(bits != 0, i * STEPS_PER_WORD + place, found)
  return found


def _has_nan(word):
  return (word >> 1) & ~word & LOW != 0
