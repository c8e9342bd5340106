"""Settling until no neuron fires: single steps of the whole network.

The T steps with input run row by row, as always. A spike after them reaches all
rows behind it in the same step; so further steps of the whole network, one
after another, are the same as further steps row by row, but they can end with
the last spike, and nothing is compiled for their number.
"""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.folded.words import fire
from fastsnn_jax.nn.integrate_and_fire import simulate
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
  depths: dict[str, int] = {}
  for layer in network.firing:
    before = (depths.get(name, 0) for name in layer.inputs)
    depths[layer.name] = 1 + max(before, default=0)
  neuron = network.neuron
  return max(neuron.steps, neuron.max_count or 0) * max([0, *depths.values()])


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
  before = {name: state.count for name, state in states.items()}
  fired = {name: jnp.sum(a != 0, 1, jnp.int32) for name, a in shown.items()}
  steps = jnp.zeros(images.shape[:1], jnp.int32)
  quiet = jnp.ones(images.shape[:1], bool)
  if rows:
    states, late, awake = _settle(rows, images, states, bound(network))
    steps = jnp.where(late > 0, neuron.steps + late, _last(shown))
    quiet = ~awake
  for row in rows:
    name, state = row.name, states[row.name]
    net = (state.count - before[name]).astype(state.voltage.dtype)
    net = row.scaled(jnp.where(jnp.isnan(state.voltage), jnp.nan, net))
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
  busy = _either(jnp.any(a != 0, range(2, a.ndim)) for a in shown.values())
  times = jnp.arange(1, busy.shape[1] + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(busy, times, 0), 1)


def _either(truths):
  return functools.reduce(operator.or_, truths, False)


class _State(NamedTuple):
  voltage: Any
  count: Any
  fired: Any  # spikes since the input ended


class _Row:
  """A firing row, its currents and its threshold."""

  def __init__(self, network, layer, variables, images):
    self.layer, self.name = layer, layer.name
    self.rule = dataclasses.replace(network.neuron, settle=0)
    self.static = network.unit(layer).static
    self.synapse = network.currents(layer, variables, images)
    self.theta = variables['params'][layer.name]['theta']

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
    state = _State(voltage, count, jnp.zeros_like(count))
    return self.scaled(spikes), state

  def go_on(self, inputs, busy, state):
    """(spikes of a step without input, the state after it)."""
    voltage, count, fired = state

    def late(voltage):
      current = self.synapse(*inputs) - self.bias
      return voltage + current.astype(voltage.dtype)

    if self.bias is not None:
      voltage = lax.cond(busy, late, lambda voltage: voltage, voltage)
    voltage, count, spikes = self._fire(voltage, count)
    return spikes, _State(voltage, count, fired + jnp.abs(spikes))

  def awake(self, state):
    """[B]: whether any neuron would fire without a current."""
    spikes = self._fire(state.voltage, state.count)[2]
    return jnp.any(spikes != 0, range(1, spikes.ndim))

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

  def any_awake(states):
    return _either(row.awake(states[row.name]) for row in rows)

  def step(carry):
    t, states, last, _ = carry
    t, after = t + 1, {}
    activity: dict[str, Any] = {}
    fired: dict[str, Any] = {}
    for row in rows:
      names = row.layer.inputs
      inputs = _inputs(row.layer, jnp.zeros_like(images), activity)
      busy = _either(jnp.any(fired[name]) for name in names if name in fired)
      spikes, after[row.name] = row.go_on(inputs, busy, states[row.name])
      activity[row.name] = row.scaled(spikes)
      fired[row.name] = jnp.any(spikes != 0, range(1, spikes.ndim))
    last = jnp.where(_either(fired.values()), t, last)
    return t, after, last, any_awake(after)

  def goes_on(carry):
    t, _, _, awake = carry
    return jnp.any(awake) & (t < most)

  awake = any_awake(states)
  start = jnp.int32(0), states, jnp.zeros_like(awake, jnp.int32), awake
  _, states, last, awake = lax.while_loop(goes_on, step, start)
  return states, last, awake
