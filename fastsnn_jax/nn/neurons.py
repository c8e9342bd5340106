r"""The nonlinearities of a network, and the only code that knows of time.

A network has one neuron, `Relu`, `QuantRelu` or `IntegrateAndFire`, and is
converted by replacing one by another; they have the same four members:

  initial_theta                      None where the neuron has no threshold
  respond(synapse, inputs, theta)    currents through `synapse`, then activity
  decode(activity)                   activity -> the activation it stands for
  quantum(theta, decoded)            what it is a multiple of: a `Quantum`, or
                                     None; `decoded`: of its means over time

Time is the second axis, [B, T, ...], and folded into the batch as (B T) for the
synapses: a batch sharded over devices then stays where it is.
"""

import contextvars
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from fastsnn_jax.errors import UserError, check_fields
from fastsnn_jax.nn.integrate_and_fire import (
  Rule,
  along_time,
  at_each_step,
  is_finite,
  simulate,
)
from fastsnn_jax.nn.quantizers import check_bits, quantize_activation
from fastsnn_jax.nn.whole import Quantum

_ANY = 2**24  # a count of which nothing is known


@dataclasses.dataclass(frozen=True)
class Relu:
  """max(current, 0), of any shape: the neuron of the float network.

  >>> Relu().respond(lambda x: 2 * x, (jnp.array([-1.0, 3.0]),)).tolist()
  [0.0, 6.0]
  """

  initial_theta: ClassVar[None] = None

  def respond(self, synapse, inputs, theta=None, *, static=()):
    return jnp.maximum(synapse(*inputs), 0)

  def decode(self, activity):
    return activity

  def quantum(self, theta, decoded=False):
    return None


@dataclasses.dataclass(frozen=True)
class QuantRelu:
  """`fs.quantize_activation` of the current, with theta as the learned clip.

  UserError if bits are not 1 to 16, or initial_theta is not positive.

  >>> QuantRelu(2).respond(lambda x: x, (jnp.array([-1.0, 3.5]),), 6.0).tolist()
  [0.0, 4.0]
  """

  bits: int
  initial_theta: float = 6.0

  def __post_init__(self):
    check_bits(self.bits, 1, 16, 'activation')
    valid = is_finite(self.initial_theta) and self.initial_theta > 0
    check_fields(self, ('initial_theta', valid, 'a positive number'))

  def respond(self, synapse, inputs, theta, *, static=()):
    return quantize_activation(synapse(*inputs), theta, self.bits)

  def decode(self, activity):
    return activity

  def quantum(self, theta, decoded=False):
    levels = 2**self.bits - 1
    return Quantum(theta, levels, levels)


def differences(values, first=None):
  """[B, T, ...] -> x_t - x_(t-1), with x_0 = `first`, [B, ...], or 0."""
  before = values[:, :-1]
  if first is None:
    ends = [(0, 0), (1, 0), *[(0, 0)] * (values.ndim - 2)]
    return values - jnp.pad(before, ends)
  return values - jnp.concatenate([jnp.expand_dims(first, 1), before], 1)


def largest_so_far(messages, largest, past=None):
  """Max pooling over time, of messages [B, T, ...] -> (messages, sums).

  It sends by how much the largest sum of what came in so far has changed:
  spikes of one layer give spikes again, and all of them together the maximum of
  the sums. `largest` pools each step, `past` are the sums [B, ...] before the
  first one; those after the last are given.
  """
  sums = jnp.cumsum(messages, 1)
  first = None
  if past is not None:
    sums = sums + jnp.expand_dims(past, 1)
    first = largest(jnp.expand_dims(past, 1))[:, 0]
  return differences(largest(sums), first), sums[:, -1]


class Memory:
  """What lets max pooling in a synapse see the steps that are folded in (B T).

  A bias in front of it is found by a run in the dark, on zeros, and is
  withdrawn after T steps.

  Attributes:
    past: sums of the steps before, if there were any.
    sums: of all that each pooling got, [B, ...], after the last step.
  """

  def __init__(self, past=()):
    self.biases, self.past, self.sums = [], past, []
    self._shown = None

  def dark(self, synapse, inputs):
    """The bias of a synapse: what it makes of no input at all."""
    self.biases, self._shown = [], None
    zeros = (jnp.zeros((1, *x.shape[1:]), x.dtype) for x in inputs)
    return self._run(synapse, zeros)

  def lit(self, synapse, inputs, shown):
    """(B T) currents; `shown` says of each of the T steps if it has input."""
    self.sums, self._shown = [], shown
    return self._run(synapse, inputs)

  def _run(self, synapse, inputs):
    token = _MEMORY.set(self)
    try:
      return synapse(*inputs)
    finally:
      _MEMORY.reset(token)

  def pooled(self, x, largest, quantum):
    """Max pooling, by `largest`, of messages of which a `Quantum` is known."""
    if self._shown is None:
      self.biases.append(x)
      return jnp.zeros_like(largest(x))
    whole = quantum is not None and quantum.unit is not None
    # Whole numbers, whose sums are exact.
    numbers = quantum.numbers(x) if whole else x
    shown, i = self._shown, len(self.sums)
    steps = numbers.reshape(-1, len(shown), *x.shape[1:])
    if self.biases and not whole:
      bias = jnp.expand_dims(self.biases[i].astype(steps.dtype), 1)
      steps = jnp.where(along_time(shown, steps), steps, steps - bias)

    def each(sums):
      most = largest(sums.reshape(-1, *sums.shape[2:]))
      return most.reshape(*sums.shape[:2], *most.shape[1:])

    past = self.past[i] if self.past else None
    sent, sums = largest_so_far(steps, each, past)
    self.sums.append(sums)
    sent = sent.reshape(-1, *sent.shape[2:])
    return quantum.scale(sent, quantum.unit).astype(x.dtype) if whole else sent


_MEMORY: contextvars.ContextVar[Memory | None] = contextvars.ContextVar(
  'memory', default=None
)


def memory() -> Memory | None:
  """That of the spiking row whose synapse runs; None outside of one."""
  return _MEMORY.get()


@dataclasses.dataclass(frozen=True)
class IntegrateAndFire(Rule):
  """Integrate-and-fire neurons that may take a spike back.

  The dynamics are those of `fs.integrate_and_fire` (Fast-SNN,
  https://arxiv.org/abs/2305.19868), with spikes of the height theta:
  [B, H, W, C] images or [B, T, ...] spikes -> [B, T + settle, ...].

  With settle='auto' a network goes on until none of its neurons fires, see
  `Network.settle`; what one layer fires after the T steps is then one entry.

  Attributes:
    steps: T, the steps during which the input is shown; rates divide by it.
    signed, negative_threshold, max_count: as of `fs.integrate_and_fire`.
    settle: steps after the T-th with zero input and no bias: the current is
      synapse(x) - synapse(0) there, so that late charge is still answered. Or
      'auto', as many as there are spikes.

  UserError for a field of another kind or out of range.

  >>> neuron = IntegrateAndFire(steps=3)
  >>> image = jnp.array([[0.1, 2.0]])
  >>> spikes = neuron.respond(lambda x: x, (image,), 1.0, static=(True,))
  >>> spikes.shape, neuron.decode(spikes).tolist()
  ((1, 3, 2), [[0.0, 1.0]])
  """

  initial_theta: ClassVar[float] = 1.0

  def respond(self, synapse, inputs, theta, *, static=()):
    """Spikes; a static input has no time axis, and is shown for T steps."""
    if self.until_quiet:
      raise UserError(
        "respond: settle='auto', but a layer alone does not know when the "
        'network is quiet; use network.apply, or a number of steps'
      )
    static = static or (False,) * len(inputs)
    spikes = simulate(self.currents(synapse, inputs, static), theta, self)
    return spikes * at_each_step(jnp.asarray(theta, spikes.dtype), spikes)

  def currents(self, synapse, inputs, static, memory=None):
    """[B, T + settle, ...], or [B, 1, ...] if it is the same for T steps."""
    if all(static):
      # The same current at each step: one synapse, and no copy per step.
      return jnp.expand_dims(synapse(*inputs), 1)
    shown = jnp.arange(self.total_steps) < self.steps
    folded = []
    for x, alone in zip(inputs, static, strict=True):
      if alone:
        x = jnp.expand_dims(x, 1)
        x = jnp.where(along_time(shown, x), x, 0)
      folded.append(x.reshape(-1, *x.shape[2:]))
    memory = memory or Memory()
    bias = memory.dark(synapse, folded) if self.settle else None
    current = memory.lit(synapse, folded, shown)
    current = current.reshape(-1, self.total_steps, *current.shape[1:])
    if bias is not None:
      late = current - jnp.expand_dims(bias, 1)
      current = jnp.where(along_time(shown, current), current, late)
    return current

  def quantum(self, theta, decoded=False):
    if decoded:
      most = _ANY if self.until_quiet else self.total_steps
      most = min(most, self.max_count or most)
      return Quantum(theta, self.steps, most)
    return Quantum(theta, 1, 1)

  def decode(self, activity):
    """Mean over T, settled charge included: [B, T, ...] -> [B, ...]."""
    return jnp.sum(activity, 1) / self.steps

  def decode_over_time(self, activity):
    """After each step t, the mean over t, or over T if t > T; same shape."""
    time = jnp.minimum(jnp.arange(1, self.total_steps + 1), self.steps)
    time = along_time(time.astype(activity.dtype), activity)
    return jnp.cumsum(activity, 1) / time
