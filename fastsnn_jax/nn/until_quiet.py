"""Settling until no neuron fires: single steps of the whole network.

The T steps with input run row by row, as always. A spike after them reaches all
rows behind it in the same step; so further steps of the whole network, one
after another, are the same as further steps row by row, but they can end with
the last spike, and nothing is compiled for their number.
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

from fastsnn_jax.nn.folded.static import hoisted
from fastsnn_jax.nn.folded.words import fire
from fastsnn_jax.nn.integrate_and_fire import simulate
from fastsnn_jax.nn.neurons import Memory
from fastsnn_jax.nn.quantizers import (
  against,
  positive,
  quantize_uniform,
  wider,
)

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


def bound(network) -> int:
  """Steps without input after which the loop ends in any case.

  Once all that feeds a row is quiet, its current is 0, and each of its neurons
  moves its count by one a step until it rests: by the largest count at most. So
  where counts are capped at T, L rows in a chain are quiet after L T steps.
  """
  neuron = network.neuron
  return max(neuron.steps, neuron.max_count or 0) * network.depth


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def settled(network, variables, images) -> Settled:
  """`Network.settle`.

  The derivative is that of the quantised rows, each at the settled activity of
  what feeds it: a loop that ends by itself has none.
  """
  neuron, rows, states = network.neuron, [], {}
  shown: dict[str, Any] = {}
  for layer in network.firing:
    row = _Row(network, layer, variables, images)
    shown[row.name], states[row.name] = row.show(_inputs(layer, images, shown))
    rows.append(row)
  before = {name: state for name, (state, _) in states.items()}
  fired = {name: jnp.sum(a != 0, 1, jnp.int32) for name, a in shown.items()}
  steps = jnp.zeros(len(images), jnp.int32)
  quiet = jnp.ones(len(images), bool)
  if rows:
    states, late, awake = _settle(rows, images, states, bound(network))
    steps = jnp.where(late > 0, neuron.steps + late, _last(shown))
    quiet = ~awake
  for row in rows:
    name, state = row.name, states[row.name][0]
    net = row.scaled(state.net(before[name]))
    shown[name] = jnp.concatenate([shown[name], jnp.expand_dims(net, 1)], 1)
    fired[name] += state.fired
  readout = network.layers[-1]
  means = {name: neuron.decode(a) for name, a in shown.items()}
  answer = network.currents(readout, variables, images)
  output = answer(*_inputs(readout, images, means))
  if images.dtype.itemsize < 4:  # half precision stays so
    shown = {name: a.astype(images.dtype) for name, a in shown.items()}
  return Settled(output, shown, fired, steps, quiet)


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


def _last(shown):
  """[B]: the last of the T steps with a spike, 0 for none."""
  busy = either(jnp.any(a != 0, range(2, a.ndim)) for a in shown.values())
  times = jnp.arange(1, busy.shape[1] + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(busy, times, 0), 1)


def either(truths):
  """Where any of several arrays is true."""
  return functools.reduce(operator.or_, truths, False)


class State(NamedTuple):
  """Of neurons after the T steps, [B, ...].

  Attributes:
    voltage: what is left of the charge.
    count: spikes less those taken back.
    fired: how often each fired since the input ended.
  """

  voltage: Any
  count: Any
  fired: Any

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

    voltage = jnp.zeros_like(currents[:, 0], wide)
    voltage = voltage + _threshold(theta, voltage) / 2
    times = jnp.arange(rule.steps, dtype=jnp.int32)
    unroll = rule.steps <= _STEPS_TO_UNROLL
    voltage, _ = lax.scan(step, voltage, times, unroll=unroll)
    count = jnp.sum(spikes, 1, wide).astype(jnp.int32)
    return cls(voltage, count, jnp.zeros_like(count))

  def fire(self, theta, rule):
    """(spikes, state after them), of the charge that is there."""
    threshold = _threshold(theta, self.voltage)
    voltage, spikes = fire(self.voltage, self.count, threshold, rule)
    fired = self.fired + jnp.abs(spikes)
    return spikes, State(voltage, self.count + spikes, fired)

  def net(self, before):
    """What was fired since a state, spikes taken back subtracted."""
    net = (self.count - before.count).astype(self.voltage.dtype)
    return jnp.where(jnp.isnan(self.voltage), jnp.nan, net)


def _threshold(theta, voltage):
  theta = jnp.asarray(theta, voltage.dtype)
  return positive(against(theta, voltage.ndim))


def busy_rows(spikes):
  """[B]: in which rows any neuron fires."""
  return jnp.any(spikes != 0, range(1, spikes.ndim))


class _Row:
  """A firing row, its currents and its threshold."""

  def __init__(self, network, layer, variables, images):
    self.layer, self.name = layer, layer.name
    self.rule = dataclasses.replace(network.neuron, settle=0)
    self.static = network.unit(layer).static
    self.variables = variables
    self.theta = variables['params'][layer.name]['theta']
    self.synapse = functools.partial(network.currents, layer, images=images)

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
    """(spikes of a step without input, (state, sums) after it)."""
    state, sums = carry

    if (late := self.late) is not None:

      def charged(voltage, sums):
        current, sums = late(sums, *inputs)
        return voltage + current.astype(voltage.dtype), sums

      voltage, sums = lax.cond(
        busy, charged, lambda *same: same, state.voltage, sums
      )
      state = state._replace(voltage=voltage)
    spikes, state = state.fire(self.theta, self.rule)
    return spikes, (state, sums)

  def awake(self, carry):
    """[B]: whether any neuron would fire without a current."""
    return busy_rows(carry[0].fire(self.theta, self.rule)[0])

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
    activity: dict[str, Any] = {}
    fired: dict[str, Any] = {}
    for row in rows:
      names = row.layer.inputs
      inputs = _inputs(row.layer, jnp.zeros_like(images), activity)
      busy = either(jnp.any(fired[name]) for name in names if name in fired)
      spikes, after[row.name] = row.go_on(inputs, busy, states[row.name])
      activity[row.name] = row.scaled(spikes)
      fired[row.name] = busy_rows(spikes)
    return after, either(fired.values()), any_awake(after)

  return go_on(step, states, any_awake(states), most)


def go_on(step, states, awake, most):
  """Steps without input, until all images are quiet, `most` at the most.

  Args:
    step: states -> (states, [B] who fired, [B] who would fire again).
    states: after the T steps.
    awake: [B], who would fire then.
    most: steps.

  Returns:
    (states, [B] the last step with a spike or 0, [B] who is awake).
  """

  def once(carry):
    t, states, last, _ = carry
    t, (states, fired, awake) = t + 1, step(states)
    return t, states, jnp.where(fired, t, last), awake

  def goes_on(carry):
    t, _, _, awake = carry
    return jnp.any(awake) & (t < most)

  start = jnp.int32(0), states, jnp.zeros_like(awake, jnp.int32), awake
  _, states, last, awake = lax.while_loop(goes_on, once, start)
  return states, last, awake
