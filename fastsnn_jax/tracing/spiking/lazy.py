"""Values that come in steps, made where they are read: all, or one step.

A train of floats costs more to write and read than the arithmetic on it. So
spikes stand in words, and what only moves, scales or adds messages waits until
a neuron asks for a step, inside of its own fusion, or a product for its input.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.whole import Quantum


@dataclasses.dataclass
class Timed:
  """[N, T + k, …], or [T + k] of a scalar: messages, or levels.

  Attributes:
    graded: they are, or came of, differences.
  """

  value: Any
  level: bool = False
  graded: bool = False


class Steps(NamedTuple):
  """How messages are read.

  Attributes:
    at: (t, {}) -> those of a step, [B, …]. The dict keeps what several of them
      share, so it must not leave the function that is traced.
    train: () -> those of all steps, [B, T, …].
    words: that they are read from; () for none.
  """

  at: Callable[..., Any]
  train: Callable[[], Any]
  words: tuple = ()


def by_step(at, train, words=()) -> Steps:
  def once(t, memo):
    key = id(once), t
    if key not in memo:
      memo[key] = at(t, memo)
    return memo[key]

  return Steps(once, functools.cache(train), words)


def of_words(words, count, dtype) -> Steps:
  return by_step(
    lambda t, _: packed.step(words, t, dtype),
    lambda: packed.train(words, count, dtype),
    words,
  )


def of_train(train) -> Steps:
  axis = min(train.ndim - 1, 1)

  def at(t, _):
    return lax.index_in_dim(train, t, axis, keepdims=False)

  return by_step(at, lambda: train)


def each(function, source: Steps) -> Steps:
  """A function that takes a step or all of them."""
  return by_step(
    lambda t, memo: function(source.at(t, memo)),
    lambda: function(source.train()),
  )


class Lazy(Timed):
  """Messages of a shape without time, [B, …]: whole numbers if a `Quantum` is
  known, else in the unit of the network."""

  def __init__(self, shape, source: Steps, quantum=None, graded=False):
    self.shape, self.source, self.graded = shape, source, graded
    self.quantum = quantum if quantum and quantum.unit is not None else None
    self.level = False

  @functools.cached_property
  def value(self):
    return self.scaled().train()

  def scaled(self) -> Steps:
    quantum = self.quantum
    if quantum is None:
      return self.source
    return each(lambda x: quantum.scale(x, quantum.unit), self.source)


def read(x: Timed, quantum: Quantum | None = None) -> Steps:
  """Messages, or the whole numbers of a quantum."""
  if isinstance(x, Lazy):
    return x.scaled() if quantum is None else x.source
  return of_train(x.value if quantum is None else quantum.numbers(x.value))


def product(found, x: Steps, count: int, multiply, lifted, rare=False) -> Steps:
  """Products of whole numbers with a kernel, several steps in one.

  Args:
    found: a `products.Exact`.
    x: the numbers.
    count: of steps.
    multiply: the product of some rows, as a function of (numbers, kernel).
    lifted: that of a train.
    rare: most often x is nothing, and then so is the product.
  """
  packing = found.packing
  if packing.steps_at_once == 1:
    y = where_any(lambda train: lifted(train(), found.kernel), x, count, rare)
    return each(found.scaled, of_train(y))
  mine, theirs = found.axes

  def sums(_):
    kernels = jnp.split(found.kernel, packing.split, theirs)
    arrays = (x.at(t, {}) for t in range(count))
    parts = (jnp.split(array, packing.split, mine) for array in arrays)
    return packing.sums(
      zip(kernels, *parts, strict=True),
      count,
      lambda t, *arrays: arrays[t],
      lambda *arrays: jnp.stack(arrays, 1),
      multiply,
    )

  y = where_any(sums, x, count, rare)

  def at(t, _=None):
    return found.scaled(packing.step(y, t, count))

  return by_step(at, lambda: jnp.stack([at(t) for t in range(count)], 1))


def where_any(function, x, count, rare):
  """`function` of the train of x; 0 where x is, if that is rarely not so."""
  if not rare:
    return function(x.train)
  some = functools.reduce(
    jnp.logical_or, (x.at(t, {}) != 0 for t in range(count))
  )
  zero = x.at(0, {}).ravel()[0]  # on the devices of x; read if all are 0

  def run():
    # Made inside, or all of the train would be there before.
    return function(lambda: jnp.stack([x.at(t, {}) for t in range(count)], 1))

  def nothing():
    return jax.tree.map(
      lambda y: jnp.broadcast_to(zero.astype(y.dtype), y.shape), shapes
    )

  shapes = jax.eval_shape(run)
  return lax.cond(jnp.any(some), run, nothing)
