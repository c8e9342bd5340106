"""A convolution or dense layer whose kernel, scale and offset are ready."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn import words as packed
from fastsnn_jax.nn.layers import Conv, Dense, Synapse
from fastsnn_jax.nn.quantizers import against, wider

_EXACT = 2**24  # float32 holds every whole number up to here


class Folded(Synapse):
  """scale * (x * kernel) + offset, what `fs.fold` makes of `Conv` and `Dense`.

  Attributes:
    part: the synapse that it stands for.
    base: P, where the kernel is of whole numbers: a power of two above 2 M, M
      the largest sum of magnitudes of any output channel; 0 if unknown.
  """

  affine: ClassVar[bool | None] = True
  quantal: ClassVar[bool] = True

  part: Conv | Dense
  base: int = 0

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
  def __call__(self, x, train=False, quanta=(None,)):
    if train:
      raise UserError(
        'train=True, but the network is folded: its weights are quantised and '
        'its batch norms are gone; train the network that fs.fold was given'
      )
    shape = self.part._operands(x)[1]
    zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones
    tree = {
      'kernel': self.param('kernel', zeros, shape),
      'scale': self.param('scale', ones, shape[-1:]),
      'offset': self.param('offset', zeros, shape[-1:]),
    }
    if (unit := quanta[0]) is not None:
      x = jnp.round(x / unit.astype(x.dtype))
    kernel, scale = self.scaled(tree, unit)
    y = self.product(x, kernel)
    return y * against(scale, y.ndim) + against(tree['offset'], y.ndim)

  def scaled(self, tree, unit):
    """(kernel, scale) for an input whose whole numbers stand for `unit`, or for
    a unit a channel, which the kernel has to take in."""
    kernel, scale = tree['kernel'], tree['scale']
    if unit is None:
      return kernel, scale
    if not unit.ndim:
      return kernel, scale * unit
    groups = getattr(self.part, 'groups', 1)
    inputs, outputs = kernel.shape[-2:]
    unit = jnp.tile(unit, inputs * groups // len(unit))  # maps are flattened
    unit = jnp.repeat(unit.reshape(groups, inputs).T, outputs // groups, 1)
    return kernel * unit, scale

  def product(self, x, kernel):
    """x * kernel, in the dtype of a half, or else in the wider one."""
    shape = self.part._operands(x)[1]
    if kernel.shape != shape:
      raise UserError(
        f'{type(self.part).__name__}: a kernel of shape {kernel.shape}, but an '
        f'input of shape {x.shape} needs {shape}; give inputs of the shape '
        'that the network was made for'
      )
    dtype = x.dtype
    if dtype.itemsize >= 4 and jnp.issubdtype(kernel.dtype, jnp.floating):
      dtype = wider(dtype, kernel.dtype)
    x, _ = self.part._operands(x.astype(dtype))
    return self.part._multiply(x, kernel.astype(dtype))

  def products(self, words, kernel, steps):
    """t -> the product of a step's spikes, several of them in one."""
    if jnp.issubdtype(kernel.dtype, jnp.floating) or self.steps_at_once == 1:
      x = packed.train(words, steps)
      y = self.product(x.reshape(-1, *x.shape[2:]), kernel)
      y = y.reshape(-1, steps, *y.shape[1:])
      return lambda t: y[:, t]
    count = -(-steps // self.steps_at_once)
    size = -(-steps // count)
    # Products stay apart: to join their inputs costs more than it saves.
    sums = [
      self.product(self._at_once(words, start, min(start + size, steps)), kernel)
      for start in range(0, steps, size)
    ]
    return lambda t: self._digit(
      sums[t // size], t % size, min(size, steps - t // size * size)
    )

  def _at_once(self, words, start, stop):
    """s_1 + P s_2 + P^2 s_3 + …"""
    x = packed.step(words, stop - 1)
    for t in reversed(range(start, stop - 1)):
      x = x * self.base + packed.step(words, t)
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
