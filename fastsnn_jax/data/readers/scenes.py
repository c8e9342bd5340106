"""Drawn scenes: the embedded digits, enlarged and coloured, on a texture.

A scene is the same from the seed on every machine and for every NumPy: all
arithmetic is on integers, or on floats that are small enough to be exact.
"""

import functools
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data.own import Dataset, statistics
from fastsnn_jax.data.readers import digits
from fastsnn_jax.data.records import IGNORED
from fastsnn_jax.errors import UserError

MOST = 5  # digits in a scene
_DIGITS = tuple('0123456789')
_TRIES = 12  # to find a digit a place
_COLOURS = 6  # of which it gets one
# The layers of a background: cells along a side, channels, strength of 256.
_LAYERS = ((2, 3, 110), (4, 3, 50), (8, 1, 44), (32, 1, 34))
_BYTES = sum(cells**2 * channels for cells, channels, _ in _LAYERS)
# Random words of a scene: of its background, and more than all else can take.
_GROUND = -(-_BYTES // 8)
WORDS = _GROUND + 1 + MOST * (3 + 2 * _TRIES + 2 * _COLOURS)


def detection(size=96, train=2700, validation=300, test=1000) -> Dataset:
  """Scenes with a box around each of one to five digits.

  Digits are about 3/16 to 1/2 of the scene high; of those behind others at
  least half of the ink is in sight. A scene depends on its number, its split
  and the size (a multiple of 32), not on how many there are.

  The splits are {'image': uint8 [N, size, size, 3], 'boxes': float32 [N, 5, 4],
  (x1, y1, x2, y2) in shares of the scene, tight around the ink of the whole
  digit, hidden or not, 'label': int32 [N, 5], -1 where there is none}.

  >>> scenes = detection(train=2, validation=1, test=1)
  >>> scenes.train['image'].shape, scenes.validation['boxes'].shape
  ((2, 96, 96, 3), (1, 5, 4))
  """
  keys = {'image': 'image', 'boxes': 'boxes', 'label': 'label'}
  return _dataset(size, (train, validation, test), keys, _DIGITS)


def segmentation(size=96, train=2700, validation=300, test=1000) -> Dataset:
  """The scenes of `detection` with a class for each pixel.

  'label' is uint8 [N, size, size]: 0 for the background, 1 to 10 for the digits
  0 to 9, and 255 where the digit in front is less than three quarters opaque.
  """
  keys, classes = (
    {'image': 'image', 'label': 'pixels'},
    ('background', *_DIGITS),
  )
  return _dataset(size, (train, validation, test), keys, classes)


def digits_of(part: str) -> np.ndarray:
  """Rows of the digits of a split: validation has a tenth of train's."""
  embedded = digits.load()
  if part == 'test':
    return np.arange(len(embedded.test['label']))
  order = np.argsort(embedded.train['label'], kind='stable')
  held = np.arange(len(order)) % 10 == 0
  return order[held if part == 'validation' else ~held]


def _dataset(size, counts, keys, classes):
  if size < 32 or size % 32:
    raise UserError(f'size is {size}; it must be a multiple of 32, such as 96')
  embedded, parts = digits.load(), []
  for i, part in enumerate(('train', 'validation', 'test')):
    source = embedded.test if part == 'test' else embedded.train
    rows = digits_of(part)
    images, labels = source['image'][rows, :, :, 0], source['label'][rows]
    # NumPy promises the raw stream for ever, but not what is made of it.
    stream = np.random.PCG64(np.random.SeedSequence(0, spawn_key=(i,)))
    words = stream.random_raw(counts[i] * WORDS).reshape(counts[i], WORDS)
    arrays = _scenes(words, images, labels, size)
    parts.append({name: arrays[key] for name, key in keys.items()})
  train, validation, test = parts
  # Four digits: the last bits of a mean need not be the same everywhere.
  mean, std = map(tuple, np.round(statistics(train['image']), 4).tolist())
  return Dataset('scenes', train, test, classes, mean, std, validation)


def _scenes(words, images, labels, size):
  count = len(words)
  image = np.zeros((count, size, size, 3), np.uint8)
  boxes = np.zeros((count, MOST, 4), np.float32)
  label = np.full((count, MOST), -1, np.int32)
  pixels = np.zeros((count, size, size), np.uint8)
  for i, row in enumerate(words):
    image[i], things = draw(row, images, labels, size)
    for j, thing in enumerate(things):
      boxes[i, j] = np.float32(thing.corners) / np.float32(size)
      label[i, j] = thing.label
      window = pixels[i][thing.window]
      window[thing.cover > 0] = IGNORED  # only tinged
      window[thing.cover >= 192] = thing.label + 1
  return {'image': image, 'boxes': boxes, 'label': label, 'pixels': pixels}


class Thing(NamedTuple):
  """A digit, its rectangle in pixels, and that as an index of the scene."""

  label: int
  cover: np.ndarray  # opacity 0 to 256, int32 [h, w]
  top: int
  left: int

  @property
  def corners(self):
    height, width = self.cover.shape
    return self.left, self.top, self.left + width, self.top + height

  @property
  def window(self):
    x1, y1, x2, y2 = self.corners
    return slice(y1, y2), slice(x1, x2)


def draw(words, images, labels, size) -> tuple[np.ndarray, list[Thing]]:
  """A scene, uint8 [size, size, 3], and its `Thing`s, the front one last.

  `words` are random, uint64 [WORDS]; the digits are uint8 [N, 8, 8].
  """
  rest = iter(words[_GROUND:].tolist())

  def below(n):  # a random integer
    return next(rest) % n

  things = _place(below, images, labels, size)
  canvas, used = _background(words[:_GROUND], size), []
  for thing in things:  # in the colour that stands out most of some
    window = canvas[thing.window]
    others = [*used, window.sum((0, 1)) // thing.cover.size]
    colours = np.stack([_colour(below) for _ in range(_COLOURS)])
    steps = colours[:, None] - np.stack(others)
    apart = 2 * np.abs(steps @ [3, 6, 1]) + 5 * np.abs(steps).sum(-1)
    used.append(colours[apart.min(1).argmax()])
    window += (used[-1] - window) * thing.cover[..., None] >> 8
  return canvas.astype(np.uint8), things


def _place(below, images, labels, size):
  """Some digits, the front one last; what has no room is left out."""
  things, owner = [], np.full((size, size), MOST)  # that is nobody
  for _ in range(1 + below(MOST)):
    index = below(len(images))
    height = size * 3 // 16 + below(size * 5 // 16 + 1)
    width = height * (90 + below(26)) // 100
    cover = _cover(images[index], height, width)
    for _ in range(_TRIES):
      top, left = (below(size - side + 1) for side in cover.shape)
      thing = Thing(int(labels[index]), cover, top, left)
      if any(_crowded(thing, other) for other in things):
        continue
      drawn = owner.copy()
      drawn[thing.window][cover > 0] = len(things)
      seen = np.bincount(drawn.ravel())
      inks = [np.count_nonzero(x.cover) for x in (*things, thing)]
      # Of each at least half of the ink stays in sight.
      if all(2 * s >= ink for s, ink in zip(seen, inks, strict=False)):
        things, owner = [*things, thing], drawn
        break
  return things


def _crowded(thing, other):
  """Whether a third of the smaller rectangle or more is in both."""
  a, b = thing.corners, other.corners
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  overlap = max(width, 0) * max(height, 0)
  return 3 * overlap > min(thing.cover.size, other.cover.size)


def _cover(image, height, width):
  padded = np.pad(image.astype(np.float64), 1)
  value = _enlarged(padded, height * 10 // 8, width * 10 // 8)
  # The outline is where the grey is 120 of 255, and a pixel or two wide.
  value = (value - 120 * 2**16) * max(height // 8, 1)
  cover = np.clip(value.astype(np.int64) // 2**16 + 128, 0, 256)
  cover[cover < 64] = 0
  rows, columns = (np.flatnonzero(cover.any(axis)) for axis in (1, 0))
  cover = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  return cover.astype(np.int32)


def _background(words, size):
  """Four layers of noise, the first a gradient, the last two grey."""
  # The low byte of a word first, whatever the machine's own order.
  noise = words.astype('<u8').view(np.uint8)[:_BYTES]
  noise = noise.astype(np.float64) - 128
  result = np.zeros((3, size, size))
  for cells, channels, strength in _LAYERS:
    layer, noise = np.split(noise, [cells**2 * channels])
    layer = layer.reshape(channels, cells, cells)
    result += _enlarged(layer, size, size) * strength
  result = (result.astype(np.int64) >> 24) + 128
  return np.clip(result, 0, 255).astype(np.int32).transpose(1, 2, 0)


def _colour(below):
  """One of the hues, somewhat towards black or white."""
  hue, tone = below(1530), below(384)
  colour = np.abs((hue + 510 * np.arange(3)) % 1530 - 765) - 255
  colour = np.clip(colour, 0, 255)
  if tone < 192:
    return colour * (256 - tone) >> 8
  return 255 - ((255 - colour) * (448 - tone) >> 8)


def _enlarged(image, height, width):
  """[..., h, w] integers to [..., height, width] ones, 2^16 times as large."""
  rows, columns = image.shape[-2:]
  return _weights(rows, height) @ image @ _weights(columns, width).T


@functools.lru_cache(maxsize=1024)
def _weights(inputs, outputs):
  """Cubic interpolation as a matrix of integers; rows sum to about 256."""
  unit = 2 * outputs  # distances are counted in such parts of a cell
  centre = (2 * np.arange(outputs, dtype=np.int64)[:, None] + 1) * inputs
  cells = np.arange(-2, inputs + 2)
  d = np.abs(centre - outputs - unit * cells)
  near = 3 * d**3 - 5 * d**2 * unit + 2 * unit**3
  far = -(d**3) + 5 * d**2 * unit - 8 * d * unit**2 + 4 * unit**3
  value = np.where(d < unit, near, np.where(d < 2 * unit, far, 0))
  value = (value * 128 + unit**3 // 2) // unit**3
  result = np.zeros((outputs, inputs))
  # Beyond the edge all is as at the edge.
  np.add.at(result.T, np.clip(cells, 0, inputs - 1), value.T)
  return result
