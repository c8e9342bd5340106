"""Synapses made of other synapses, and synapses without weights."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.layers import Synapse


class _Composed(Synapse):
  """What synapses made of others share: affine if all their parts are."""

  quantal: ClassVar[bool] = True

  @property
  def affine(self):
    return all(part.affine for part in self._parts() if part is not None)

  def _parts(self):
    return self.parts


def _run(part, inputs, train, quanta):
  """A part's current; without a part, the one input itself."""
  if part is None:
    return inputs[0]
  if part.quantal and quanta:
    return part(*inputs, train=train, quanta=quanta)
  return part(*inputs, train=train)


def _connect(part, x):
  return x if part is None else part.connect(x)


class Residual(_Composed):
  """body(x) + shortcut(skip); without a shortcut, body(x) + skip.

  Attributes:
    body: a synapse of one input, the row's first.
    shortcut: of the row's second input, or None.

  >>> import jax
  >>> from fastsnn_jax.nn.layers import Conv
  >>> block = Residual(Conv(8))
  >>> x = jnp.ones((1, 4, 4, 8))
  >>> block.apply(block.init(jax.random.key(0), x, x), x, x).shape
  (1, 4, 4, 8)
  """

  body: Synapse
  shortcut: Synapse | None = None

  def _parts(self):
    return self.body, self.shortcut

  @nn.compact
  def __call__(self, x, skip, train=False, quanta=(None, None)):
    y = _run(self.body, (x,), train, quanta[:1])
    return y + _run(self.shortcut, (skip,), train, quanta[1:])

  def connect(self, x, skip):
    return self.body.connect(x) + _connect(self.shortcut, skip)


class Chain(_Composed):
  """One synapse after another, with no neuron between: p_n(… p_1(inputs)).

  Attributes:
    parts: synapses; the first takes all inputs of the row, each other one the
      current of the one before it.

  >>> import jax
  >>> from fastsnn_jax.nn.layers import Conv
  >>> pooled = Chain((Conv(8), GlobalAveragePool()))
  >>> x = jnp.ones((1, 4, 4, 3))
  >>> pooled.apply(pooled.init(jax.random.key(0), x), x).shape
  (1, 8)
  """

  parts: tuple[Synapse, ...]

  @nn.compact
  def __call__(self, *inputs, train=False, quanta=()):
    for part in self.parts:
      inputs = (_run(part, inputs, train, quanta),)
      quanta = ()  # a current is a multiple of nothing
    return inputs[0]

  def connect(self, *inputs):
    for part in self.parts:
      inputs = (part.connect(*inputs),)
    return inputs[0]


class Concat(_Composed):
  """The channels of several inputs in a row: maps of C and D -> of C + D.

  Attributes:
    parts: for each input the synapse that it runs through first, or None.

  Raises:
    ValueError: when it runs, another number of inputs than of parts.

  >>> joined = Concat((None, SpaceToDepth(2)))
  >>> joined.apply({}, jnp.ones((1, 2, 2, 3)), jnp.ones((1, 4, 4, 1))).shape
  (1, 2, 2, 7)
  """

  parts: tuple[Synapse | None, ...]

  def __call__(self, *inputs, train=False, quanta=()):
    quanta = quanta or (None,) * len(inputs)
    rows = zip(self.parts, inputs, quanta, strict=True)
    return jnp.concatenate(
      [_run(part, (x,), train, (quantum,)) for part, x, quantum in rows], -1
    )

  def connect(self, *inputs):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate([_connect(part, x) for part, x in pairs], -1)


class GlobalAveragePool(Synapse):
  """Mean over the map: [N, H, W, C] -> [N, C].

  >>> GlobalAveragePool().apply({}, jnp.ones((1, 4, 4, 2))).tolist()
  [[1.0, 1.0]]
  """

  @nn.compact
  def __call__(self, x, train=False):
    del train
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x, (1, 2), dtype=wide).astype(x.dtype)

  def connect(self, x):
    return jnp.sum(x, (1, 2))


class SpaceToDepth(Synapse):
  """Blocks of pixels as channels: [N, H, W, C] -> [N, H/b, W/b, b b C].

  out[i, j, (dy b + dx) C + c] = in[b i + dy, b j + dx, c]

  Raises:
    UserError: when it runs, sides that are no multiples of the block.

  >>> SpaceToDepth(2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 12)
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


class MaxPool(Synapse):
  """Maximum over windows, [N, H, W, C]; for an ANN, refused at conversion.

  >>> MaxPool(window=2, stride=2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 3)
  """

  affine: ClassVar[bool] = False
  window: int = 2
  stride: int = 2

  @nn.compact
  def __call__(self, x, train=False):
    del train
    window, stride = (self.window,) * 2, (self.stride,) * 2
    return nn.max_pool(x, window, strides=stride)
