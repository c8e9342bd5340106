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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.folded.run import STEPS_TO_UNROLL
from fastsnn_jax.nn.folded.settle import Row as FoldedRow
from fastsnn_jax.nn.folded.settle import State
from fastsnn_jax.nn.folded.words import fire
from fastsnn_jax.nn.integrate_and_fire import simulate
from fastsnn_jax.nn.quantizers import (
  against,
  positive,
  quantize_uniform,
  wider,
)
from fastsnn_jax.nn.tables.table import bound, own_variables

_STEPS_TO_UNROLL = 16


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
  before = {name: state.count for name, state in states.items()}
  steps = jnp.zeros(len(images), jnp.int32)
  quiet = jnp.ones(len(images), bool)
  if rows:
    lasts = (row.last(messages[row.name]) for row in rows)
    last = functools.reduce(jnp.maximum, lasts)
    states, late, awake = _settle(rows, images, states, bound(network))
    steps = jnp.where(late > 0, network.neuron.steps + late, last)
    quiet = ~awake
  for row in rows:
    name, state = row.name, states[row.name]
    broken, kind = jnp.isnan(state.voltage), state.voltage.dtype
    net = jnp.where(broken, jnp.nan, state.count.astype(kind) - before[name])
    net = jnp.expand_dims(row.scaled(net), 1)
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
  if not (few and network.in_words(variables)):
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


def _either(truths):
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
    self.synapse = network.currents(layer, variables, images)
    self.theta = variables['params'].get(layer.name, {}).get('theta')

  def inputs(self, images, messages):
    return _inputs(self.layer, images, messages)

  def answer(self, inputs):
    """Of the read-out."""
    return self.synapse(*inputs)

  def show(self, inputs):
    """(activity of the T steps, [B, T, ...], the state after them)."""
    rule = self.rule
    currents = rule.currents(self.synapse, inputs, self.static)
    spikes = simulate(currents, self.theta, rule)
    self.kind, wide = currents.dtype, wider(currents.dtype, jnp.float32)
    constant = currents.shape[1] == 1

    def step(voltage, t):
      current = lax.dynamic_index_in_dim(
        currents, 0 if constant else t, 1, keepdims=False
      )
      spike = lax.dynamic_index_in_dim(spikes, t, 1, keepdims=False)
      voltage = voltage + current.astype(wide)
      return voltage - self._threshold(voltage) * spike.astype(wide), None

    voltage = jnp.zeros_like(currents[:, 0], wide)
    voltage = voltage + self._threshold(voltage) / 2
    times = jnp.arange(rule.steps, dtype=jnp.int32)
    unroll = rule.steps <= _STEPS_TO_UNROLL
    voltage, _ = lax.scan(step, voltage, times, unroll=unroll)
    count = jnp.sum(spikes, 1, wide).astype(jnp.int32)
    # Once the input has ended, no spike means no current.
    dark = [
      jnp.zeros((1, *x.shape[1 if alone else 2 :]), x.dtype)
      for x, alone in zip(inputs, self.static, strict=True)
    ]
    self.bias = None if all(self.static) else self.synapse(*dark)
    state = State(voltage, count, jnp.zeros_like(count))
    return self.scaled(spikes), state

  def go_on(self, inputs, busy, state):
    """(activity of a step without input, [B, 1, ...], the state after it)."""
    voltage, count, fired = state

    def late(voltage):
      step = (
        x if alone else x[:, 0]
        for x, alone in zip(inputs, self.static, strict=True)
      )
      current = self.synapse(*step) - self.bias
      return voltage + current.astype(voltage.dtype)

    if self.bias is not None:
      voltage = lax.cond(busy, late, lambda voltage: voltage, voltage)
    voltage, count, spikes = self._fire(voltage, count)
    activity = jnp.expand_dims(self.scaled(spikes), 1)
    return activity, State(voltage, count, fired + jnp.abs(spikes))

  def awake(self, state):
    """[B]: whether any neuron would fire without a current."""
    spikes = self._fire(state.voltage, state.count)[2]
    return jnp.any(spikes != 0, range(1, spikes.ndim))

  def last(self, activity):
    """[B]: the last step with a spike, from 1 up; 0 for none."""
    busy = jnp.any(abs(activity) > 0, range(2, activity.ndim))
    times = jnp.arange(1, busy.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(busy, times, 0), 1)

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

  def _threshold(self, voltage):
    theta = jnp.asarray(self.theta, voltage.dtype)
    return positive(against(theta, voltage.ndim))

  def _fire(self, voltage, count):
    theta = self._threshold(voltage)
    voltage, spikes = fire(voltage, count, theta, self.rule)
    return voltage, count + spikes, spikes


def _settle(rows, images, states, most):
  """Steps without input: (states, the last step with a spike, who is awake)."""
  size = rows[0].steps

  def any_awake(states):
    return _either(row.awake(states[row.name]) for row in rows)

  def step(carry):
    t, states, last, _ = carry
    after: dict[str, Any] = {}
    fired: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for row in rows:
      inputs = row.inputs(jnp.zeros_like(images), messages)
      names = row.layer.inputs
      busy = _either(
        jnp.any(fired[name] > 0) for name in names if name in fired
      )
      own = row.go_on(inputs, busy, states[row.name])
      messages[row.name], after[row.name] = own
      fired[row.name] = row.last(messages[row.name])
    late = functools.reduce(jnp.maximum, fired.values())
    last = jnp.where(late > 0, t + late, last)
    return t + size, after, last, any_awake(after)

  def goes_on(carry):
    t, _, _, awake = carry
    return jnp.any(awake) & (t < most)

  awake = any_awake(states)
  start = jnp.int32(0), states, jnp.zeros_like(awake, jnp.int32), awake
  _, states, last, awake = lax.while_loop(goes_on, step, start)
  return states, last, awake
