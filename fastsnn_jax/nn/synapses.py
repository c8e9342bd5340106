"""Synapses: what turns the activity of some layers into the current of another.

A synapse is affine in its inputs at inference and knows nothing of time. It is
a Linen module, so it owns its weights; one row of a network's table holds one.
`MaxPool` is the exception that conversion refuses by name.

`connect(*inputs)` is the map with every weight one and no bias; its transpose
counts the connections of each input, which is what a spike there costs.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.layers import BatchNorm, Conv, Dense, Synapse
from fastsnn_jax.nn.weights import (
  Apot,
  EightBit,
  kaiming,
  small_normal,
  torch_bias,
  torch_uniform,
  zero_bias,
)

__all__ = [
  'Apot',
  'BatchNorm',
  'Chain',
  'Concat',
  'Conv',
  'Dense',
  'EightBit',
  'GlobalAveragePool',
  'MaxPool',
  'Residual',
  'SpaceToDepth',
  'Synapse',
  'kaiming',
  'small_normal',
  'torch_bias',
  'torch_uniform',
  'zero_bias',
]


class GlobalAveragePool(Synapse):
  """Mean over the map: [N, H, W, C] -> [N, C]."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, (1, 2), dtype=wide).astype(x.dtype)

  def connect(self, x):
    return jnp.sum(x, (1, 2))


def _call(synapse, x, train, quantum):
  if synapse.quantal:
    return synapse(x, train=train, quanta=(quantum,))
  return synapse(x, train=train)


class Residual(Synapse):
  """body(x) + shortcut(skip); without a shortcut module, skip itself."""

  body: Synapse
  shortcut: Synapse | None = None

  @property
  def affine(self):
    parts = (self.body, self.shortcut)
    return all(part.affine for part in parts if part is not None)

  quantal: ClassVar[bool] = True

  @nn.compact
  def __call__(self, x, skip, train=False, quanta=(None, None)):
    y = _call(self.body, x, train, quanta[0])
    if self.shortcut is not None:
      skip = _call(self.shortcut, skip, train, quanta[1])
    return y + skip

  def connect(self, x, skip):
    if self.shortcut is not None:
      skip = self.shortcut.connect(skip)
    return self.body.connect(x) + skip


class Chain(Synapse):
  """One synapse after another, with no neuron between."""

  parts: tuple[Synapse, ...]

  @property
  def affine(self):
    return all(part.affine for part in self.parts)

  @nn.compact
  def __call__(self, *inputs, train=False):
    first, *rest = self.parts
    y = first(*inputs, train=train)
    for part in rest:
      y = part(y, train=train)
    return y

  def connect(self, *inputs):
    first, *rest = self.parts
    y = first.connect(*inputs)
    for part in rest:
      y = part.connect(y)
    return y


class SpaceToDepth(Synapse):
  """Blocks of pixels as channels: [N, H, W, C] -> [N, H/b, W/b, b b C].

  out[i, j, (dy b + dx) C + c] = in[b i + dy, b j + dx, c]
  """

  block: int = 2

  def __call__(self, x, train=False):
    del train
    return self.connect(x)

  def connect(self, x):
    (n, height, width, channels), b = x.shape, self.block
    if height % b or width % b:
      raise UserError(
        f'SpaceToDepth: a map of {height} x {width}, but its sides must be '
        f'multiples of {b}; give images whose sides are multiples of more'
      )
    x = x.reshape(n, height // b, b, width // b, b, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // b, width // b, b * b * channels)


class Concat(Synapse):
  """The channels of several inputs in a row, each through its part if any."""

  parts: tuple[Synapse | None, ...]

  @property
  def affine(self):
    return all(part.affine for part in self.parts if part is not None)

  def __call__(self, *inputs, train=False):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate(
      [x if part is None else part(x, train=train) for part, x in pairs], -1
    )

  def connect(self, *inputs):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate(
      [x if part is None else part.connect(x) for part, x in pairs], -1
    )


class MaxPool(Synapse):
  """Maximum over windows; fine in an ANN, refused at conversion."""

  affine: ClassVar[bool] = False
  window: int = 2
  stride: int = 2

  @nn.compact
  def __call__(self, x, train=False):
    del train
    window, stride = (self.window,) * 2, (self.stride,) * 2
    return nn.max_pool(x, window, strides=stride)
