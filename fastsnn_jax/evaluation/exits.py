"""Answers that come early: a network runs until it is sure of each image.

Where a step needs nothing but the voltages, the whole network goes step by step
in one loop, and ends when all images are done. A function, and a table with max
pooling, runs on prefixes of 1, 2, 4 … steps in its place.
"""

import dataclasses
import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.charge import State, busy_rows
from fastsnn_jax.nn.quantizers import against
from fastsnn_jax.nn.tables.table import IMAGE


class Exited(NamedTuple):
  """What `run_until_sure` gives of B images.

  Attributes:
    output: [B, …], after the step at which each image was done.
    steps: [B], that step, counted from 1.
    ran: steps that were computed, for all images.
  """

  output: Any
  steps: Any
  ran: Any


def check_exit(network, threshold) -> None:
  """Raises a UserError for a network or a threshold of no use."""
  if not network.spiking:
    raise UserError(
      f'exit_margin={threshold!r}: the neuron is {network.neuron}, but only a '
      'spiking network has steps to leave out; convert it by fs.to_spiking'
    )
  real = isinstance(threshold, numbers.Real) and 0 <= threshold <= 1
  if not real:
    raise UserError(
      f'exit_margin={threshold!r}, but it must be a number from 0 to 1, the '
      'margin above which an image is done; fs.exit_curve chooses one'
    )


def run_until_sure(network, variables, images, margin, threshold) -> Exited:
  """Runs each image until `margin` of the output is above the threshold.

  Args:
    network, variables: spiking.
    images: [B, …], normalised.
    margin: output -> [B]; hashable.
    threshold: an image is done at the first step behind which its margin is
      above it; else after all steps, with settle='auto' once it is quiet.
  """
  if network.single_steps:
    return _stepwise(
      variables, images, threshold, network=network, margin=margin
    )
  return _by_prefixes(network, variables, images, threshold, margin)


@functools.partial(jax.jit, static_argnames=('network', 'margin'))
def _stepwise(variables, images, threshold, *, network, margin):
  still = dataclasses.replace(
    network, neuron=dataclasses.replace(network.neuron, settle=0)
  )
  output, shapes = jax.eval_shape(still.apply, variables, images)
  rows = [
    _Row(network, layer, variables, images, shapes) for layer in network.firing
  ]
  neuron, total = network.neuron, network.most_steps
  readout, named = network.layers[-1], {row.name: row for row in rows}

  def answer(t, states):
    time = jnp.minimum(t, neuron.steps)
    means = [
      images if x == IMAGE else named[x].mean(states[x], time)
      for x in readout.inputs
    ]
    return network.read_out(variables, means, jnp.full(len(images), time))

  def step(carry):
    t, states, output, steps, done = carry
    after, activity = {}, {}
    for row in rows:
      after[row.name], activity[row.name] = row.step(
        t, activity, states[row.name]
      )
    t = t + 1
    found = answer(t, after)
    fresh = against_rows(~done, found)
    output = jnp.where(fresh, found.astype(output.dtype), output)
    steps = jnp.where(done, steps, t)
    done |= margin(found) > threshold
    if network.until_quiet:
      awake = [row.awake(after[row.name]) for row in rows]
      quiet = ~functools.reduce(jnp.logical_or, awake)
      done |= quiet & (t >= neuron.steps)
    return t, after, output, steps, done

  def goes_on(carry):
    return (carry[0] < total) & ~jnp.all(carry[-1])

  start = (
    jnp.int32(0),
    {row.name: row.start() for row in rows},
    jnp.zeros(output.shape, output.dtype),
    jnp.zeros(len(images), jnp.int32),
    jnp.zeros(len(images), bool),
  )
  ran, _, output, steps, _ = lax.while_loop(goes_on, step, start)
  return Exited(output, steps, ran)


def against_rows(truth, x):
  return truth.reshape(-1, *(1,) * (x.ndim - 1))


class _Row:
  """A firing row that goes one step at a time."""

  def __init__(self, network, layer, variables, images, shapes):
    self.layer, self.name, self.images = layer, layer.name, images
    self.rule = network.neuron
    self.synapse = network.currents(layer, variables, images)
    self.theta = variables['params'][layer.name]['theta']
    self.constant = set(layer.inputs) == {IMAGE}
    if self.constant:
      self.current = self.synapse(*[images] * len(layer.inputs))
      self.kind = self.current.dtype
    else:
      dark = [
        jnp.zeros((1, *_one(name, images, shapes)), images.dtype)
        for name in layer.inputs
      ]
      self.bias = self.synapse(*dark)
      self.kind = self.bias.dtype
    self.shape = (len(images), *shapes[self.name].shape[2:])

  def start(self):
    return State.empty(self.shape, self.theta, self.kind)

  def step(self, t, activity, state):
    """(state, activity) after step t, counted from 0."""
    late = t >= self.rule.steps
    if self.constant:
      current = jnp.where(late, 0, self.current)
    else:
      inputs = [
        jnp.where(late, 0, self.images) if x == IMAGE else activity[x]
        for x in self.layer.inputs
      ]
      current = self.synapse(*inputs)
      current = jnp.where(late, current - self.bias, current)
    before = state
    _, state = state.charged(current).fire(self.theta, self.rule)
    return state, self._scaled(state.net(before))

  def mean(self, state, time):
    """The activity so far, over so many steps."""
    return self._scaled(state.net()) / time

  def awake(self, state):
    """[B]: whether any neuron would fire without a current."""
    return busy_rows(state.fire(self.theta, self.rule)[0])

  def _scaled(self, counts):
    theta = jnp.asarray(self.theta, self.kind)
    return counts.astype(self.kind) * against(theta, counts.ndim)


def _one(name, images, shapes):
  return images.shape[1:] if name == IMAGE else shapes[name].shape[2:]


def _by_prefixes(network, variables, images, threshold, margin):
  total, shown = network.neuron.total_steps, network.neuron.steps
  output = steps = done = None
  ran, length = 0, 1
  while True:
    neuron = dataclasses.replace(
      network.neuron,
      steps=min(length, shown),
      settle=max(length - shown, 0),
    )
    prefix = dataclasses.replace(network, neuron=neuron)
    found, first, sure = _prefix(
      variables, images, threshold, network=prefix, margin=margin
    )
    if done is None:
      output, steps, done = found, first, sure
    else:
      keep = done
      output = jax.tree.map(
        lambda new, old, keep=keep: jnp.where(
          against_rows(keep, new), old, new
        ),
        found,
        output,
      )
      steps, done = jnp.where(keep, steps, first), keep | sure
    ran = length
    if ran == total or bool(np.all(done)):
      return Exited(output, steps, ran)
    length = min(2 * length, total)


@functools.partial(jax.jit, static_argnames=('network', 'margin'))
def _prefix(variables, images, threshold, *, network, margin):
  """(output, step, whether the image is sure then) of its first sure step."""
  _, activations = network.apply(variables, images)
  outputs = network.output_over_time(variables, activations, images)
  over = jax.vmap(margin, 1, 1)(outputs) > threshold
  sure = jnp.any(over, 1)
  at = jnp.where(sure, jnp.argmax(over, 1), over.shape[1] - 1)
  rows = jnp.arange(len(images))
  output = jax.tree.map(lambda x: x[rows, at], outputs)
  return output, (at + 1).astype(jnp.int32), sure
