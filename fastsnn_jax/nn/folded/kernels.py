"""A convolution or dense layer whose kernel, scale and offset are ready."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.layers import Conv, Dense, Synapse
from fastsnn_jax.nn.quantizers import against, wider
from fastsnn_jax.nn.weights import EightBit
from fastsnn_jax.nn.whole import Quantum, exact_product, float_product, spread

_EXACT = 2**24  # float32 holds every whole number up to here


class Folded(Synapse):
  """scale * (x * kernel) + offset, what `fs.fold` makes of `Conv` and `Dense`.

  Attributes:
    part: the synapse that it stands for.
    base: P, where the kernel is of whole numbers: a power of two above 2 M, M
      the largest sum of magnitudes of any output channel; 0 if unknown.
    split: groups of input channels with products of their own, for a smaller M:
      no more multiplications, and more steps in each.
  """

  affine: ClassVar[bool | None] = True
  quantal: ClassVar[bool] = True

  part: Conv | Dense
  base: int = 0
  split: int = 1

  @property
  def axes(self):
    return self.part.axes

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

  @nn.compact
  def __call__(self, x, train=False, quanta=()):
    if train:
      raise UserError(
        'train=True, but the network is folded: its weights are quantised and '
        'its batch norms are gone; train the network that fs.fold was given'
      )
    shape = self.part._operands(x)[1]
    dtype = jnp.int8 if self.base else jnp.float32
    zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones
    tree = {
      'kernel': self.param('kernel', zeros, shape, dtype),
      'scale': self.param('scale', ones, shape[-1:]),
      'offset': self.param('offset', zeros, shape[-1:]),
    }
    quantum = (quanta and quanta[0]) or Quantum()
    if quantum.unit is not None:
      x = quantum.numbers(x)
    kernel, scale = self.scaled(tree, quantum)
    return self.affinely(self.product(x, kernel, quantum), scale, tree)

  def scaled(self, tree, quantum):
    """(kernel, scale) for whole numbers of such an input; units of channels go
    into the kernel, in both twins alike."""
    kernel, scale, unit = tree['kernel'], tree['scale'], quantum.unit
    if unit is None:
      return kernel, scale
    if unit.ndim:
      kernel = kernel.astype(scale.dtype)
      kernel, unit = kernel * spread(unit.astype(scale.dtype), kernel), 1
    parts = jnp.asarray(quantum.parts, scale.dtype)
    if parts.ndim:  # one for each row of the batch
      parts = parts[:, None]
    return kernel, scale * (jnp.asarray(unit, scale.dtype) / parts)

  def affinely(self, y, scale, tree, lit=True):
    """scale y + offset, where there is light."""
    wide = wider(y.dtype, scale.dtype, jnp.float32)
    middle = (1,) * (y.ndim - 2)
    scale = scale.reshape(-1, *middle, y.shape[-1])
    y = y.astype(wide) * scale.astype(wide)
    offset = against(tree['offset'].astype(wide), y.ndim)
    return y + offset if lit else y

  def product(self, x, kernel, quantum):
    """x * kernel of a float x, or of whole numbers."""
    shape = self.part._operands(x)[1]
    if kernel.shape != shape:
      raise UserError(
        f'{type(self.part).__name__}: a kernel of shape {kernel.shape}, but an '
        f'input of shape {x.shape} needs {shape}; give inputs of the shape '
        'that the network was made for'
      )
    x, _ = self.part._operands(x)
    if isinstance(self.part.weights, EightBit) and quantum.unit is not None:
      quantum = dataclasses.replace(quantum, precision=quantum.of_ends)
    dtype, largest, pieces = x.dtype, quantum.largest, quantum.pieces
    if jnp.issubdtype(kernel.dtype, jnp.integer):
      largest, pieces = max(largest, jnp.iinfo(kernel.dtype).max), 1
    elif dtype.itemsize >= 4:
      dtype = wider(dtype, kernel.dtype)
    x, kernel, multiply = x.astype(dtype), kernel.astype(dtype), self._multiply
    if quantum.unit is None:
      return float_product(x, kernel, quantum, multiply)
    return exact_product(x, kernel, largest, quantum, pieces, multiply)

  def _multiply(self, *operands):
    return self.part._multiply(*operands)

  def products(self, words, kernel, quantum, steps):
    """t -> the product of a step's spikes, several of them in one."""
    if jnp.issubdtype(kernel.dtype, jnp.floating) or self.steps_at_once == 1:
      y = self._each(words, kernel, quantum, steps)
      return lambda t: y[:, t]
    count = -(-steps // self.steps_at_once)
    size = -(-steps // count)
    parts = [range(i, min(i + size, steps)) for i in range(0, steps, size)]

    # Products stay apart: to join their inputs costs more than it saves.
    def together(kernel, *words):
      find = functools.partial(packed.step, words)
      inputs = (self._at_once(find, part) for part in parts)
      return [self.product(x, kernel, quantum) for x in inputs]

    def each(kernel, *words):
      y = jnp.round(self._each(words, kernel, quantum, steps))
      return [self._at_once(lambda t: y[:, t], part) for part in parts]

    groups = [
      lax.platform_dependent(*operands, cpu=together, default=each)
      for operands in self._split(kernel, words)
    ]

    def product(t):
      place, count = t % size, len(parts[t // size])
      return sum(self._digit(y[t // size], place, count) for y in groups)

    return product

  def _split(self, kernel, words):
    """(kernel, *words) of each group of input channels."""
    if isinstance(self.part, Dense):
      words = [word.reshape(len(word), -1) for word in words]
    kernels = jnp.split(kernel, self.split, -2)
    return zip(
      kernels, *(jnp.split(word, self.split, -1) for word in words), strict=True
    )

  def _each(self, words, kernel, quantum, steps):
    x = packed.train(words, steps)
    y = self.product(x.reshape(-1, *x.shape[2:]), kernel, quantum)
    return y.reshape(-1, steps, *y.shape[1:])

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

  def connect(self, x):
    return self.part.connect(x)


def is_folded(part) -> bool:
  """Whether a synapse, or one that it is made of, is `Folded`."""
  return isinstance(part, Folded) or any(
    map(is_folded, getattr(part, 'parts', ()))
  )
