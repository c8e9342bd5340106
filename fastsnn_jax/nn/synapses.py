"""Synapses made of other synapses, and synapses without weights."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.layers import Synapse, declared


class _Composed(Synapse):
  quantal: ClassVar[bool] = True

  @property
  def affine(self):
    known = [declared(part) for part in self.parts if part is not None]
    return False if False in known else None if None in known else True


def run(part, *inputs, train, quanta):
  """A synapse's current; without a synapse, the one input itself."""
  if part is None:
    return inputs[0]
  settings = {'quanta': quanta} if part.quantal and quanta else {}
  return part(*inputs, train=train, **settings)


def _connect(part, x):
  return x if part is None else part.connect(x)


class Residual(_Composed):
  """body(x) + shortcut(skip); without a shortcut, body(x) + skip.

  >>> import jax, fastsnn_jax as fs
  >>> block = fs.Residual(fs.Conv(8))
  >>> x = jnp.ones((1, 4, 4, 8))
  >>> block.apply(block.init(jax.random.key(0), x, x), x, x).shape
  (1, 4, 4, 8)
  """

  body: Synapse
  shortcut: Synapse | None = None

  @property
  def parts(self):
    return self.body, self.shortcut

  @nn.compact
  def __call__(self, x, skip, train=False, quanta=(None, None)):
    y = run(self.body, x, train=train, quanta=quanta[:1])
    return y + run(self.shortcut, skip, train=train, quanta=quanta[1:])

  def connect(self, x, skip):
    return self.body.connect(x) + _connect(self.shortcut, skip)


class Chain(_Composed):
  """One synapse after another, with no neuron between: p_n(… p_1(inputs)).

  >>> import jax, fastsnn_jax as fs
  >>> pooled = fs.Chain((fs.Conv(8), fs.GlobalAveragePool()))
  >>> x = jnp.ones((1, 4, 4, 3))
  >>> pooled.apply(pooled.init(jax.random.key(0), x), x).shape
  (1, 8)
  """

  parts: tuple[Synapse, ...]

  @nn.compact
  def __call__(self, *inputs, train=False, quanta=()):
    for part in self.parts:
      inputs = (run(part, *inputs, train=train, quanta=quanta),)
      quanta = ()  # a current is a multiple of nothing
    return inputs[0]

  def connect(self, *inputs):
    for part in self.parts:
      inputs = (part.connect(*inputs),)
    return inputs[0]


class Concat(_Composed):
  """The channels of several inputs in a row: maps of C and D -> of C + D.

  Each input runs through its part first, a synapse or None.

  >>> joined = Concat((None, SpaceToDepth(2)))
  >>> joined.apply({}, jnp.ones((1, 2, 2, 3)), jnp.ones((1, 4, 4, 1))).shape
  (1, 2, 2, 7)
  """

  parts: tuple[Synapse | None, ...]

  def __call__(self, *inputs, train=False, quanta=()):
    maps = [
      run(part, x, train=train, quanta=quanta[i : i + 1])
      for i, (part, x) in enumerate(zip(self.parts, inputs, strict=True))
    ]
    return jnp.concatenate(maps, -1)

  def connect(self, *inputs):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate([_connect(part, x) for part, x in pairs], -1)


class GlobalAveragePool(Synapse):
  """Mean over the map: [N, H, W, C] -> [N, C].

  >>> GlobalAveragePool().apply({}, jnp.ones((1, 4, 4, 2))).tolist()
  [[1.0, 1.0]]
  """

  affine: ClassVar[bool | None] = True

  def __call__(self, x, train=False):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, (1, 2), dtype=wide).astype(x.dtype)

  def connect(self, x):
    return jnp.sum(x, (1, 2))


class SpaceToDepth(Synapse):
  """Blocks of pixels as channels: [N, H, W, C] -> [N, H/b, W/b, b b C].

  out[i, j, (dy b + dx) C + c] = in[b i + dy, b j + dx, c]

  UserError, when it runs, for sides that are no multiples of the block.

  >>> SpaceToDepth(2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 12)
  """

  affine: ClassVar[bool | None] = True
  block: int = 2

  def __call__(self, x, train=False):
    return self.connect(x)

  def connect(self, x):
    (n, height, width, channels), b = x.shape, self.block
    if height % b or width % b:
      raise UserError(
        f'SpaceToDepth: a map of {height} x {width}, but its sides must be '
        f'multiples of {b}; give images whose sides are multiples of more'
      )
    blocks = x.reshape(n, height // b, b, width // b, b, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, height // b, width // b, b * b * channels)


class MaxPool(Synapse):
  """Maximum over windows, [N, H, W, C]; for an ANN, refused at conversion.

  >>> MaxPool(window=2, stride=2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 3)
  """

  affine: ClassVar[bool | None] = False
  window: int = 2
  stride: int = 2

  def __call__(self, x, train=False):
    return nn.max_pool(x, (self.window,) * 2, strides=(self.stride,) * 2)
