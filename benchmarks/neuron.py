"""Neurons alone: ours, the plain way, and those of other libraries."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers import peers
from benchmarks.timing import compare, table
from fastsnn_jax.nn.folded.words import at_rest, gather
from fastsnn_jax.nn.neurons import IntegrateAndFire


def stacked(currents, theta):
  """The plain way: a scan over time that stacks theta-scaled spikes."""

  def step(state, current):
    voltage, count = state
    voltage = voltage + current
    fire = voltage >= theta
    voltage = jnp.where(fire, voltage - theta, voltage)
    count = count + fire
    back = (voltage <= -1e-3) & (count > 0)
    voltage = jnp.where(back, voltage + theta, voltage)
    count = count - back
    return (voltage, count), theta * (fire.astype(jnp.float32) - back)

  time_first = jnp.moveaxis(currents, 1, 0)
  start = (jnp.full(time_first.shape[1:], theta / 2), 0 * time_first[0])
  _, spikes = lax.scan(step, start, time_first)
  return jnp.moveaxis(spikes, 0, 1)


def ours(currents, theta):
  neuron = IntegrateAndFire(currents.shape[1])
  return neuron.respond(lambda x: x, (currents,), theta)


def in_words(currents, theta):
  """As a folded network keeps them: two bits a step."""
  steps, like = currents.shape[1], jax.eval_shape(lambda x: x[:, 0], currents)
  start = functools.partial(at_rest, like, theta)
  rule = IntegrateAndFire(steps)
  return gather(lambda t: currents[:, t], theta, rule, steps, start)


def capped(currents, theta):
  """As in mode 'settled', where NaN is looked for; signed ones need not."""
  steps = currents.shape[1]
  neuron = IntegrateAndFire(steps, negative_threshold=0.0, max_count=steps)
  return neuron.respond(lambda x: x, (currents,), theta)


def unchecked(currents, theta):
  """The same without what keeps NaN NaN, to see what that costs."""
  unseen = mock.patch.object(jnp, 'isnan', return_value=False)
  with unseen:  # while it is traced
    return capped(currents, theta)


def tables(quick):
  shape = (2, 8, 8, 16) if quick else (8, 32, 32, 64)
  for steps in (3,) if quick else (3, 7, 15):
    folded = (shape[0], steps, *shape[1:])
    currents = 0.7 * jax.random.normal(jax.random.key(0), folded)
    first = jnp.moveaxis(currents, 1, 0)
    copy = 'a copy of the currents'
    took = compare(
      {
        copy: (jax.jit(lambda x: x + 1), currents),
        'fs.IntegrateAndFire': (jax.jit(ours), currents, 1.0),
        'of mode settled': (jax.jit(capped), currents, 1.0),
        'the same, NaN unchecked': (jax.jit(unchecked), currents, 1.0),
        'words, of a folded network': (jax.jit(in_words), currents, 1.0),
        'a scan that stacks floats': (jax.jit(stacked), currents, 1.0),
        **peers(first),
      },
      repeats=2 if quick else 15,
    )
    yield table(f'Neurons {shape}, T = {steps}', took, copy)
