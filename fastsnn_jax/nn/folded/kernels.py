"""A convolution or dense layer whose kernel, scale and offset are ready."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.folded.together import Packing, one_by_one
from fastsnn_jax.nn.layers import Conv, Dense, Synapse
from fastsnn_jax.nn.quantizers import against, wider
from fastsnn_jax.nn.weights import EightBit
from fastsnn_jax.nn.whole import Quantum, exact_product, float_product, spread


class Folded(Synapse):
  """scale * (x * kernel) + offset, what `fs.fold` makes of `Conv` and `Dense`.

  Attributes:
    part: the synapse that it stands for.
    packing: how steps share products, where the kernel is of whole numbers.
  """

  affine: ClassVar[bool | None] = True
  quantal: ClassVar[bool] = True

  part: Conv | Dense
  packing: Packing = Packing()

  @property
  def axes(self):
    return self.part.axes

  @nn.compact
  def __call__(self, x, train=False, quanta=()):
    if train:
      raise UserError(
        'train=True, but the network is folded: its weights are quantised and '
        'its batch norms are gone; train the network that fs.fold was given'
      )
    shape = self.part._operands(x)[1]
    dtype = jnp.int8 if self.packing.base else jnp.float32
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

    def multiply(x, kernel):
      return self.product(x, kernel, quantum)

    def train(*words):
      return packed.train(words, steps)

    if (
      jnp.issubdtype(kernel.dtype, jnp.floating)
      or self.packing.steps_at_once == 1
    ):
      y = one_by_one(train(*words), kernel, multiply)
      return lambda t: y[:, t]

    def at(t, *words):
      return packed.step(words, t)

    groups = self._split(kernel, words)
    sums = self.packing.sums(groups, steps, at, train, multiply)
    return lambda t: self.packing.step(sums, t, steps)

  def _split(self, kernel, words):
    """(kernel, *words) of each group of input channels."""
    count = self.packing.split
    if isinstance(self.part, Dense):
      words = [word.reshape(len(word), -1) for word in words]
    kernels = jnp.split(kernel, count, -2)
    return zip(
      kernels, *(jnp.split(word, count, -1) for word in words), strict=True
    )

  def connect(self, x):
    return self.part.connect(x)


def is_folded(part) -> bool:
  """Whether a synapse, or one that it is made of, is `Folded`."""
  return isinstance(part, Folded) or any(
    map(is_folded, getattr(part, 'parts', ()))
  )
