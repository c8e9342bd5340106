"""A folded row that settles: some steps at a time, in words."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.nn.charge import State, busy_rows
from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.folded.activity import Activity, ours
from fastsnn_jax.nn.folded.run import current_of
from fastsnn_jax.nn.quantizers import positive
from fastsnn_jax.nn.synapses import remembers
from fastsnn_jax.nn.whole import Quantum

# A word's steps share products, but those after the last spike are for nothing.
STEPS_AT_ONCE = 4


def in_words(part) -> bool:
  """Whether nothing in a synapse remembers the steps before: what is not of
  this library may do so inside."""
  if part is None:
    return True
  inner = getattr(part, 'parts', ())
  return ours(part) and not remembers(part) and all(map(in_words, inner))


class Row:
  """A firing row of a folded network: see `until_quiet.Row`."""

  def __init__(self, network, layer, tree, quanta):
    self.layer, self.name, self.tree = layer, layer.name, tree
    self.rule = dataclasses.replace(network.neuron, settle=0)
    self.quanta = quanta
    self.steps = min(self.rule.steps, STEPS_AT_ONCE)
    most = self.rule.max_count or math.inf
    self.narrow = jnp.int8 if most <= jnp.iinfo(jnp.int8).max else jnp.int32

  def inputs(self, images, messages):
    given = Activity(images)
    return [messages.get(name, given) for name in self.layer.inputs]

  def answer(self, inputs):
    """Of the read-out."""
    return self._current(inputs, lit=1)(0)

  def show(self, inputs):
    """(`Activity` of the T steps, the state after them)."""
    steps = self.rule.steps
    current = self._current(inputs, lit=steps)
    like = jax.eval_shape(lambda: current(0))
    theta = jnp.asarray(self.tree['params']['theta'], like.dtype)
    self.theta = positive(theta)
    start = functools.partial(packed.at_rest, like, self.theta)
    words, voltage, count = self._run(current, steps, start)
    state = State(voltage, count, jnp.zeros_like(words[0]))
    return Activity(words, steps), (state, ())

  def go_on(self, inputs, busy, carry):
    """(`Activity` of `steps` steps without input, the state after them)."""
    state, _ = carry

    def start():
      return state.voltage, state.count.astype(jnp.int32)

    def late():
      return self._run(self._current(inputs, lit=0), self.steps, start)

    def alone():
      nothing = jnp.zeros_like(state.voltage)
      return self._run(lambda t: nothing, self.steps, start)

    words, voltage, count = lax.cond(busy, late, alone)
    fired = state.fired + sum(packed.both_signs(words))
    return Activity(words, self.steps), (State(voltage, count, fired), ())

  def _current(self, inputs, lit):
    return current_of(self.layer, self.tree, inputs, self.quanta, lit)

  def _run(self, current, steps, start):
    """(words, voltage and count after them)."""
    settings = current, self.theta, self.rule, steps, start
    gather = functools.partial(packed.gather, *settings)
    words = packed.kept(gather, self.theta, current, steps)
    ones, minus = packed.both_signs(words)
    count = (start()[1] + ones - minus).astype(self.narrow)
    return words, packed.charge(words, *settings), count

  def awake(self, carry):
    """[B]: whether any neuron would fire without a current."""
    return busy_rows(carry[0].fire(self.theta, self.rule)[0])

  def last(self, activity):
    """[B]: the last step with a spike, from 1 up; 0 for none."""
    return packed.last(activity.values)

  def train(self, activity):
    """[B, steps, ...], of 0, theta and -theta."""
    return dataclasses.replace(activity, quantum=Quantum(self.theta)).scaled()

  def mean(self, activity, state):
    """What the read-out gets: sums, of a part of theta."""
    return Activity(state.net())

  def scaled(self, net):
    """The same of a sum over steps."""
    return net * self.theta

  def magnitude(self, activity):
    """How many spikes of either sign each neuron fired."""
    return sum(packed.both_signs(activity.values))
