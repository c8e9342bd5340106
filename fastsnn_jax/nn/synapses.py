"""Synapses made of other synapses, and synapses without weights."""

import inspect
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.convolve import (
  axes_of,
  check_map,
  check_window,
  each,
  window_pads,
)
from fastsnn_jax.nn.layers import Synapse, declared
from fastsnn_jax.nn.neurons import memory
from fastsnn_jax.nn.quantizers import wider
from fastsnn_jax.nn.whole import join


class _Composed(Synapse):
  quantal: ClassVar[bool] = True

  @property
  def affine(self):
    known = [declared(part) for part in self.parts if part is not None]
    return False if False in known else None if None in known else True

  @property
  def axes(self):
    stated = (getattr(part, 'axes', None) for part in self.parts)
    return next(filter(None, stated), None)


def check_inputs(part, count):
  """UserError for what is no synapse, or takes another number of inputs."""
  name = type(part).__name__
  if not isinstance(part, Synapse):
    raise UserError(
      f'{name} ({type(part).__module__}) is no synapse; use fs.Conv, fs.Dense '
      'or another one, or derive one of your own from Synapse'
    )
  try:
    if isinstance(part, Concat) and count != len(part.parts):
      raise TypeError
    inspect.signature(type(part).__call__).bind(part, *range(count), train=0)
  except TypeError:
    raise UserError(
      f'{name} does not take {count} inputs; join several by fs.Concat or add '
      'two by fs.Residual'
    ) from None


def run(part, *inputs, train, quanta):
  """A synapse's current; without a synapse, the one input itself."""
  if part is None:
    return inputs[0]
  check_inputs(part, len(inputs))
  settings = {'quanta': quanta} if part.quantal and quanta else {}
  return part(*inputs, train=train, **settings)


def _widened(*arrays):
  wide = wider(*(x.dtype for x in arrays))
  return [x.astype(wide) for x in arrays]


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
    skip = run(self.shortcut, skip, train=train, quanta=quanta[1:])
    return jnp.add(*_widened(y, skip))

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
      handed = part.hands_on(quanta, *inputs)
      inputs = (run(part, *inputs, train=train, quanta=quanta),)
      quanta = (handed,)
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
    return jnp.concatenate(_widened(*maps), -1)

  def hands_on(self, quanta, *inputs):
    if len(quanta) < len(inputs):
      return None
    handed, channels = [], []
    for part, quantum, x in zip(self.parts, quanta, inputs, strict=True):
      shown = jax.eval_shape(part.connect, x) if part else x
      handed.append(part.hands_on((quantum,), x) if part else quantum)
      channels.append(shown.shape[-1])
    return join(handed, channels)

  def connect(self, *inputs):
    pairs = zip(self.parts, inputs, strict=True)
    return jnp.concatenate([_connect(part, x) for part, x in pairs], -1)


class GlobalAveragePool(Synapse):
  """Mean over the map: [N, H, W, C] -> [N, C]; maps of any axes.

  >>> GlobalAveragePool().apply({}, jnp.ones((1, 4, 4, 2))).tolist()
  [[1.0, 1.0]]
  """

  affine: ClassVar[bool | None] = True

  def __call__(self, x, train=False):
    check_map(self, x, None)
    wide = wider(x.dtype, jnp.float32)
    return jnp.mean(x, tuple(range(1, x.ndim - 1)), dtype=wide).astype(x.dtype)

  def hands_on(self, quanta, *inputs):
    count = math.prod(inputs[0].shape[1:-1])
    return quanta[0].shared(count) if quanta and quanta[0] else None

  def connect(self, x):
    return jnp.sum(x, tuple(range(1, x.ndim - 1)))


class _Pool(Synapse):
  window: int | tuple[int, ...] = 2
  stride: int | tuple[int, ...] | None = None
  padding: int | str | tuple[Any, ...] = 0

  def __post_init__(self):
    if self.stride is None:
      object.__setattr__(self, 'stride', self.window)
    check_window(self, 'window', 'stride')
    super().__post_init__()

  @property
  def axes(self):
    return axes_of(self.window, self.stride, self.padding)

  def _reduce(self, x, start, operation):
    check_map(self, x, self.axes)
    window, strides = (each(n, x.ndim - 2) for n in (self.window, self.stride))
    pads = window_pads(x.shape[1:-1], window, strides, self.padding)
    ends = (0, 0)
    return lax.reduce_window(
      *(x, np.asarray(start, x.dtype), operation),
      *((1, *window, 1), (1, *strides, 1), (ends, *pads, ends)),
    )


class AveragePool(_Pool):
  """Mean over windows, zeros of the padding included: affine.

  In a row by itself, the mean of an even number of levels may lie half-way
  between two, where the two networks round differently (docs/method.md); a
  convolution behind it, in a `Chain`, has no such ties.

  Attributes:
    window, stride: of all axes, or a tuple with each axis's; None for windows
      side by side.
    padding: as of `Conv`.

  >>> AveragePool(2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 3)
  """

  affine: ClassVar[bool | None] = True

  def __call__(self, x, train=False):
    wide = x.astype(wider(x.dtype, jnp.float32))
    count = math.prod(each(self.window, x.ndim - 2))
    return (self.connect(wide) / count).astype(x.dtype)

  def hands_on(self, quanta, *inputs):
    count = math.prod(each(self.window, inputs[0].ndim - 2))
    return quanta[0].shared(count) if quanta and quanta[0] else None

  def connect(self, x):
    return self._reduce(x, 0, lax.add)


class SpaceToDepth(Synapse):
  """Blocks of pixels as channels: [N, H, W, C] -> [N, H/b, W/b, b b C].

  out[i, j, (dy b + dx) C + c] = in[b i + dy, b j + dx, c]

  UserError, when it runs, for sides that are no multiples of the block.

  >>> SpaceToDepth(2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 12)
  """

  affine: ClassVar[bool | None] = True
  block: int = 2

  @property
  def axes(self):
    return 2

  def __call__(self, x, train=False):
    return self.connect(x)

  def hands_on(self, quanta, *inputs):
    return quanta[0].blocks(self.block**2) if quanta and quanta[0] else None

  def connect(self, x):
    check_map(self, x, 2)
    (n, height, width, channels), b = x.shape, self.block
    if height % b or width % b:
      raise UserError(
        f'SpaceToDepth: a map of {height} x {width}, but its sides must be '
        f'multiples of {b}; give images whose sides are multiples of more'
      )
    blocks = x.reshape(n, height // b, b, width // b, b, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, height // b, width // b, b * b * channels)


def remembers(part) -> bool:
  """Whether a synapse, or a part of it, needs what came in before."""
  inner = getattr(part, 'parts', None) or ()
  return getattr(part, 'over_time', False) or any(map(remembers, inner))


class MaxPool(_Pool):
  """Maximum over windows, [N, H, W, C]; nothing of the padding is a maximum.

  In a spiking network it sends, at each step, by how much the largest sum of
  what came in so far has changed. The spikes of one layer give spikes again:
  theta, 0 and -theta. Attributes as of `AveragePool`.

  >>> MaxPool(window=2, stride=2).apply({}, jnp.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 3)
  """

  affine: ClassVar[bool | None] = False
  over_time: ClassVar[bool] = True
  quantal: ClassVar[bool] = True
  stride: int | tuple[int, ...] | None = 2

  def __call__(self, x, train=False, quanta=(None,)):
    if (past := memory()) is None:
      return self._largest(x)
    return past.pooled(x, self._largest, quanta[0])

  def hands_on(self, quanta, *inputs):
    return quanta[0] if quanta else None  # one of those that came in

  def _largest(self, x):
    return self._reduce(x, -np.inf, lax.max)

  def connect(self, x):
    return self._reduce(x, 0, lax.add)
