"""What rows of a folded network hand on: whole numbers, and what they stand
for."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.synapses import (
  AveragePool,
  Chain,
  Concat,
  GlobalAveragePool,
  SpaceToDepth,
)
from fastsnn_jax.nn.whole import Quantum, join


@dataclasses.dataclass(frozen=True)
class Activity:
  """Numbers of a `Quantum`, or values of which nothing is known.

  Attributes:
    values: [B, ...]; with `steps` [B steps, ...], or words of [B, ...].
    steps: how many, 0 for an activity without time.
    quantum: what whole numbers stand for.
  """

  values: Any
  steps: int = 0
  quantum: Quantum = dataclasses.field(default_factory=Quantum)

  @property
  def packed(self) -> bool:
    return isinstance(self.values, tuple)

  @property
  def shape(self):
    return (self.values[0] if self.packed else self.values).shape

  def folded(self):
    """The same with time in the batch."""
    if not self.packed:
      return self
    train = packed.train(self.values, self.steps)
    values = train.reshape(-1, *train.shape[2:])
    return dataclasses.replace(self, values=values)

  def scaled(self):
    """[B, ...], or [B, steps, ...], in the unit of the network."""
    values = self._in_unit(self.folded().values)
    if self.steps:
      values = values.reshape(-1, self.steps, *values.shape[1:])
    return values

  def _in_unit(self, values):
    if self.quantum.unit is None:
      return values
    return self.quantum.scale(values, self.quantum.unit)

  def at(self, t):
    """One step, [B, ...], in the unit of the network."""
    if not self.steps:
      values = self.values
    elif self.packed:
      values = packed.step(self.values, t)
    else:
      values = self.values.reshape(-1, self.steps, *self.shape[1:])[:, t]
    return self._in_unit(values)

  def total(self):
    """The sum over time."""
    if not self.steps:
      return self
    return Activity(packed.total(self.values), 0, self.quantum)


def ours(part) -> bool:
  """Whether a synapse's class is of this library: others do what they like."""
  return type(part).__module__.startswith('fastsnn_jax.')


def rearranged(part, inputs) -> Activity | None:
  """The activity behind a synapse without weights; None for any other."""
  if part is None:
    return inputs[0]
  if not ours(part):
    return None
  match part:
    case SpaceToDepth():
      return _through(part, inputs[0])
    case GlobalAveragePool() | AveragePool():
      x = inputs[0].folded()
      return None if x.quantum.unit is None else _through(part, x)
    case Chain():
      for inner in part.parts:
        inputs = (rearranged(inner, inputs),)
        if inputs[0] is None:
          return None
      return inputs[0]
    case Concat():
      pairs = zip(part.parts, inputs, strict=True)
      maps = [rearranged(inner, (x,)) for inner, x in pairs]
      return None if None in maps else _joined(maps)
  return None


def _through(part, x):
  shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
  quantum = part.hands_on((x.quantum,), shape)
  if x.packed:
    values = tuple(map(part.connect, x.values))
  else:
    values = part.connect(x.values)
  return Activity(values, x.steps, quantum)


def _joined(maps):
  """Channels side by side; None where they are of several kinds."""
  if len({(x.steps, x.quantum.unit is None) for x in maps}) > 1:
    return None
  if len({x.packed for x in maps}) > 1:
    maps = [x.folded() for x in maps]
  quantum = join([x.quantum for x in maps], [x.shape[-1] for x in maps])
  found = [x.values for x in maps]
  if maps[0].packed:
    words = (jnp.concatenate(w, -1) for w in zip(*found, strict=True))
    return Activity(tuple(words), maps[0].steps, quantum)
  return Activity(jnp.concatenate(found, -1), maps[0].steps, quantum)
