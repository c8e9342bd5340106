"""What rows of a folded network hand on: whole numbers times a unit."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from fastsnn_jax.nn import words as packed
from fastsnn_jax.nn.convolve import each
from fastsnn_jax.nn.synapses import (
  AveragePool,
  Chain,
  Concat,
  GlobalAveragePool,
  SpaceToDepth,
)


@dataclasses.dataclass(frozen=True)
class Activity:
  """values * unit.

  Attributes:
    values: [B, ...]; with `steps` [B steps, ...], or `packed` words of [B, ...].
    unit: what whole numbers of `values` stand for, a scalar or one a channel;
      None where they are no whole numbers.
    steps: how many, 0 for an activity without time.
  """

  values: Any
  unit: Any = None
  steps: int = 0

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
    """[B, ...], or [B, steps, ...]: values * unit."""
    values = self.folded().values
    if self.unit is not None:
      values = values * self.unit
    if self.steps:
      values = values.reshape(-1, self.steps, *values.shape[1:])
    return values

  def at(self, t):
    """values * unit of one step, [B, ...]."""
    if not self.steps:
      values = self.values
    elif self.packed:
      values = packed.step(self.values, t)
    else:
      values = self.values.reshape(-1, self.steps, *self.shape[1:])[:, t]
    return values if self.unit is None else values * self.unit

  def mean(self, steps):
    """The sum over time by `steps`."""
    if not self.steps:
      return self
    return Activity(packed.total(self.values), self.unit / steps)


def rearranged(part, inputs) -> Activity | None:
  """The activity behind a synapse without weights; None for any other."""
  match part:
    case None:
      return inputs[0]
    case SpaceToDepth():
      return _each(part.connect, inputs[0])
    case GlobalAveragePool() | AveragePool() if inputs[0].unit is not None:
      return _pooled(part, inputs[0].folded())
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


def _each(function, x):
  values = tuple(map(function, x.values)) if x.packed else function(x.values)
  return dataclasses.replace(x, values=values)


def _pooled(part, x):
  sides = x.shape[1:-1]
  window = each(getattr(part, 'window', sides), len(sides))
  unit = x.unit / math.prod(window)
  return dataclasses.replace(x, values=part.connect(x.values), unit=unit)


def _joined(maps):
  """Channels side by side; None where they are of several kinds."""
  if len({(x.steps, x.unit is None) for x in maps}) > 1:
    return None
  if len({x.packed for x in maps}) > 1:
    maps = [x.folded() for x in maps]
  first, unit = maps[0], maps[0].unit
  if any(x.unit is not unit for x in maps):
    units = (jnp.broadcast_to(x.unit, x.shape[-1:]) for x in maps)
    unit = jnp.concatenate(list(units))
  values = [x.values for x in maps]
  if first.packed:
    values = tuple(jnp.concatenate(w, -1) for w in zip(*values, strict=True))
  else:
    values = jnp.concatenate(values, -1)
  return Activity(values, unit, first.steps)
