"""Several steps of a train in one product of whole numbers, exactly."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

_EXACT = 2**24  # float32 holds every whole number up to here
_SPLITS = 1, 2, 4, 8
_CHANNELS = 32  # of a group at least: narrower products are slower
_ENOUGH = 3  # steps in one product, for which kernels are split


@dataclasses.dataclass(frozen=True)
class Packing:
  """How steps share products with a kernel of whole numbers.

  Attributes:
    base: P: a power of two above 2 M, M the largest sum of magnitudes of any
      output channel; 0 if unknown, and each step has its own product.
    split: groups of input channels with products of their own, for a smaller M:
      no more multiplications, and more steps in each.
  """

  base: int = 0
  split: int = 1

  @classmethod
  def of(cls, whole, inputs: int = -2, output: int = -1, *, alone=False):
    """That by which most steps fit, of a kernel on the host.

    Args:
      whole: the kernel.
      inputs, output: its axes of channels.
      alone: it may not be split.
    """
    whole, found = np.abs(np.asarray(whole, np.int64)), []
    whole = np.moveaxis(whole, (inputs, output), (-2, -1))
    channels = whole.shape[-2]
    for split in _SPLITS:
      narrow = channels % split or channels // split < _CHANNELS
      if split == 1 or not (narrow or alone):
        base = max(_base(x) for x in np.split(whole, split, -2))
        steps = min(cls(base).steps_at_once, _ENOUGH)
        found.append((steps, -split, base))
    _, split, base = max(found)
    return cls(base, -split)

  @property
  def steps_at_once(self) -> int:
    """How many steps one float32 product holds, exactly: the largest n with
    M (1 + P + … + P^(n - 1)) < 2^24."""
    most, count = self.base // 2 - 1, 1
    while self.base and most * (self.base ** (count + 1) - 1) < _EXACT * (
      self.base - 1
    ):
      count += 1
    return count

  def sums(
    self,
    groups: Iterable[tuple],
    steps: int,
    at: Callable[..., Any],
    train: Callable[..., Any],
    multiply: Callable[..., Any],
  ) -> list:
    """Products of several steps in one, for each group.

    Args:
      groups: (kernel, *arrays) of each group of input channels.
      steps: how many.
      at: (t, *arrays) -> the numbers of a step, [B, …].
      train: (*arrays) -> those of all steps, [B, steps, …].
      multiply: (numbers [N, …], kernel) -> their product.
    """
    parts = self._parts(steps)

    # Products stay apart: to join their inputs costs more than it saves.
    def together(kernel, *arrays):
      return [
        multiply(self._at_once(lambda t: at(t, *arrays), part), kernel)
        for part in parts
      ]

    def each(kernel, *arrays):
      y = jnp.round(one_by_one(train(*arrays), kernel, multiply))
      return [self._at_once(lambda t: y[:, t], part) for part in parts]

    return [
      lax.platform_dependent(*group, cpu=together, default=each)
      for group in groups
    ]

  def step(self, sums, t: int, steps: int):
    """The product of step t, of what `sums` gives."""
    parts = self._parts(steps)
    place, i = t % len(parts[0]), t // len(parts[0])
    return sum(self._digit(y[i], place, len(parts[i])) for y in sums)

  def _parts(self, steps):
    count = -(-steps // self.steps_at_once)
    size = -(-steps // count)
    return [range(i, min(i + size, steps)) for i in range(0, steps, size)]

  def _at_once(self, find, steps):
    """s_1 + P s_2 + P^2 s_3 + …"""
    *rest, last = steps
    x = find(last)
    for t in reversed(rest):
      x = x * self.base + find(t)
    return x

  def _digit(self, y, place, count):
    for _ in range(place):
      y = jnp.round(y * (1 / self.base))
    if place == count - 1:
      return y
    return y - jnp.round(y * (1 / self.base)) * self.base


def one_by_one(train, kernel, multiply):
  """[B, steps, …] -> the products of all steps, which fold into the batch."""
  y = multiply(train.reshape(-1, *train.shape[2:]), kernel)
  return y.reshape(*train.shape[:2], *y.shape[1:])


def _base(whole) -> int:
  """The power of two above twice the largest sum of an output channel."""
  most = np.sum(whole, tuple(range(whole.ndim - 1))).max(initial=0)
  return 2 ** int(2 * most).bit_length()
