"""Settling until no neuron fires: a few steps of the whole network at a time.

The T steps with input run row by row, as always. A spike after them reaches all
rows behind it in the same step; so further steps of the whole network, one
after another, are the same as further steps row by row, but they can end with
the last spike, and nothing is compiled for their number. Rows that are folded
run some steps at a time, in words; others one.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.charge import State, busy_rows, last_step
from fastsnn_jax.nn.folded.run import STEPS_TO_UNROLL
from fastsnn_jax.nn.folded.settle import Row as FoldedRow
from fastsnn_jax.nn.folded.settle import in_words
from fastsnn_jax.nn.folded.static import hoisted
from fastsnn_jax.nn.integrate_and_fire import simulate
from fastsnn_jax.nn.neurons import Memory
from fastsnn_jax.nn.quantizers import against, quantize_uniform
from fastsnn_jax.nn.tables.table import own_variables


class Settled(NamedTuple):
  """What `Network.settle` gives of B images.

  Attributes:
    output: the read-out, [B, ...].
    activations: {firing row: [B, T + 1, ...]}, as of `Network.apply`.
    spikes: {firing row: [B, ...]}, how often each neuron fired in all, spikes
      taken back included.
    steps: [B], the step at which a neuron fired last, counted from the first
      step with input; 0 where none fired.
    quiet: [B], False where a neuron would still fire at the bound.
  """

  output: Any
  activations: dict[str, Any]
  spikes: dict[str, Any]
  steps: Any
  quiet: Any


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def settled(network, variables, images) -> Settled:
  """`Network.settle`.

  The derivative is that of the quantised rows, each at the settled activity of
  what feeds it: a loop that ends by itself has none.
  """
  *rows, readout = _rows(network, variables, images)
  messages: dict[str, Any] = {}
  states, shown, fired, means = {}, {}, {}, {}
  for row in rows:
    inputs = row.inputs(images, messages)
    messages[row.name], states[row.name] = row.show(inputs)
  before = {name: state for name, (state, _) in states.items()}
  steps = jnp.zeros(images.shape[:1], jnp.int32)
  quiet = jnp.ones(images.shape[:1], bool)
  if rows:
    lasts = (row.last(messages[row.name]) for row in rows)
    last = functools.reduce(jnp.maximum, lasts)
    states, late, awake = _settle(rows, images, states, network.bound)
    steps = jnp.where(late > 0, network.neuron.steps + late, last)
    quiet = ~awake
  for row in rows:
    name, state = row.name, states[row.name][0]
    net = jnp.expand_dims(row.scaled(state.net(before[name])), 1)
    shown[name] = jnp.concatenate([row.train(messages[name]), net], 1)
    fired[name] = row.magnitude(messages[name]) + state.fired
    means[name] = row.mean(shown[name], state)
  output = readout.answer(readout.inputs(images, means))
  if images.dtype.itemsize < 4:  # half precision stays so
    shown = {name: a.astype(images.dtype) for name, a in shown.items()}
  return Settled(output, shown, fired, steps, quiet)


def _rows(network, variables, images):
  """Of all layers, the last one the read-out."""
  few = network.neuron.steps <= STEPS_TO_UNROLL
  ready = few and network.in_words(variables)
  if not (ready and all(in_words(layer.synapse) for layer in network.layers)):
    return [Row(network, x, variables, images) for x in network.layers]
  quanta = network.quanta(variables, images.dtype)
  return [
    FoldedRow(network, x, own_variables(variables, x.name), quanta[x.name])
    for x in network.layers
  ]


@settled.defjvp
def _(network, primals, tangents):
  found = settled(network, *primals)
  (variables, images), (dvariables, dimages) = primals, tangents
  neuron, readout = network.neuron, network.layers[-1]
  means = {name: neuron.decode(a) for name, a in found.activations.items()}
  dmeans: dict[str, Any] = {}
  dactivations: dict[str, Any] = {}

  def rate(layer, variables, *inputs):
    run = network.currents(layer, variables, images, decoded=True)
    current = run(*inputs)
    if layer is readout:
      return current
    theta = jnp.asarray(variables['params'][layer.name]['theta'], current.dtype)
    return quantize_uniform(current, against(theta, current.ndim), neuron.steps)

  for layer in network.layers:
    name, run = layer.name, functools.partial(rate, layer)
    primal = variables, *_inputs(layer, images, means)
    tangent = dvariables, *_inputs(layer, dimages, dmeans)
    _, dmeans[name] = jax.jvp(run, primal, tangent)
    if layer is not readout:
      activity = found.activations[name]
      dmeans[name] = dmeans[name].astype(activity.dtype)
      # Decoded, all entries together shall have this tangent.
      part = dmeans[name] * (neuron.steps / neuron.total_steps)
      part = jnp.broadcast_to(jnp.expand_dims(part, 1), activity.shape)
      dactivations[name] = part
  output = dmeans[readout.name]
  none = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), found[2:])
  return found, Settled(output, dactivations, *none)


def _inputs(layer, images, activations):
  return [activations.get(name, images) for name in layer.inputs]


def either(truths):
  """Where any of several arrays is true."""
  return functools.reduce(operator.or_, truths, False)


class Row:
  """A row, its currents and its threshold: what is not folded.

  Attributes:
    steps: without input, at a time.
  """

  steps = 1

  def __init__(self, network, layer, variables, images):
    self.layer, self.name = layer, layer.name
    self.rule = dataclasses.replace(network.neuron, settle=0)
    self.static = network.unit(layer).static
    self.variables = variables
    self.theta = variables['params'].get(layer.name, {}).get('theta')
    self.synapse = functools.partial(network.currents, layer, images=images)

  def inputs(self, images, messages):
    return _inputs(self.layer, images, messages)

  def answer(self, inputs):
    """Of the read-out."""
    return self.synapse(variables=self.variables)(*inputs)

  def show(self, inputs):
    """(activity of the T steps, [B, T, ...], (state, sums) after them)."""
    rule, memory = self.rule, Memory()
    synapse = self.synapse(variables=self.variables)
    currents = rule.currents(synapse, inputs, self.static, memory)
    spikes = simulate(currents, self.theta, rule)
    self.kind, sums = currents.dtype, tuple(memory.sums)
    self.late: Callable | None = None
    if not all(self.static):
      step = [
        x if alone else x[:, 0]
        for x, alone in zip(inputs, self.static, strict=True)
      ]
      self.late = hoisted(self._late, self.variables, sums, *step)
    state = State.after(currents, spikes, self.theta, rule)
    return self.scaled(spikes), (state, sums)

  def _late(self, variables, sums, *inputs):
    """(current of a step without input, sums after it)."""
    synapse, memory = self.synapse(variables=variables), Memory(sums)
    bias = memory.dark(synapse, inputs)
    current = memory.lit(synapse, inputs, np.array([False]))
    return current - bias, tuple(memory.sums)

  def go_on(self, inputs, busy, carry):
    """(activity of a step without input, [B, 1, ...], and what follows)."""
    state, sums = carry

    if (late := self.late) is not None:

      def charged(voltage, sums):
        step = (
          x if alone else x[:, 0]
          for x, alone in zip(inputs, self.static, strict=True)
        )
        current, sums = late(sums, *step)
        return voltage + current.astype(voltage.dtype), sums

      voltage, sums = lax.cond(
        busy, charged, lambda *same: same, state.voltage, sums
      )
      state = state._replace(voltage=voltage)
    spikes, state = state.fire(self.theta, self.rule)
    return jnp.expand_dims(self.scaled(spikes), 1), (state, sums)

  def awake(self, carry):
    """[B]: whether any neuron would fire without a current."""
    return busy_rows(carry[0].fire(self.theta, self.rule)[0])

  def last(self, activity):
    """[B]: the last step with a spike, from 1 up; 0 for none."""
    return last_step(abs(activity) > 0)

  def train(self, activity):
    """[B, steps, ...], of 0, theta and -theta."""
    return activity

  def magnitude(self, activity):
    """How many spikes of either sign each neuron fired."""
    return jnp.sum(abs(activity) > 0, 1, jnp.int32)

  def mean(self, activity, state):
    """What the read-out gets."""
    return self.rule.decode(activity)

  def scaled(self, spikes):
    """Activity, of the type that the next row gets in the T steps too."""
    spikes = spikes.astype(self.kind)
    theta = jnp.asarray(self.theta, self.kind)
    return spikes * against(theta, spikes.ndim)


def _settle(rows, images, states, most):
  """Steps without input: (states, the last step with a spike, who is awake)."""

  def any_awake(states):
    return either(row.awake(states[row.name]) for row in rows)

  def step(states):
    after: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    late: dict[str, Any] = {}
    for row in rows:
      inputs = row.inputs(jnp.zeros_like(images), messages)
      names = row.layer.inputs
      busy = either(jnp.any(late[name] > 0) for name in names if name in late)
      message, after[row.name] = row.go_on(inputs, busy, states[row.name])
      messages[row.name], late[row.name] = message, row.last(message)
    return after, functools.reduce(jnp.maximum, late.values()), any_awake(after)

  return go_on(step, states, any_awake(states), most, rows[0].steps)


def go_on(step, states, awake, most, size=1):
  """Steps without input, until all images are quiet, `most` at the most.

  Args:
    step: states -> (states, [B] the last of its steps with a spike, 0 for none,
      [B] who would fire again).
    states: after the T steps.
    awake: [B], who would fire then.
    most: steps; a call of `step` that has begun ends.
    size: how many steps a call of `step` is.

  Returns:
    (states, [B] the last step with a spike or 0, [B] who is awake).
  """

  def once(carry):
    t, states, last, _ = carry
    states, late, awake = step(states)
    last = jnp.where(late > 0, t + late, last)
    return t + size, states, last, awake

  def goes_on(carry):
    t, _, _, awake = carry
    return jnp.any(awake) & (t < most)

  start = jnp.int32(0), states, jnp.zeros_like(awake, jnp.int32), awake
  _, states, last, awake = lax.while_loop(goes_on, once, start)
  return states, last, awake
