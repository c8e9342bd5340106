"""Drawn scenes: the embedded digits, enlarged and coloured, on a texture.

For detection and for segmentation. A scene is the same from the seed on every
machine. Train, validation and test scenes show different digits.
"""

import numpy as np

from fastsnn_jax.data.dataset import Dataset, statistics
from fastsnn_jax.data.readers import digits, drawing
from fastsnn_jax.data.records import IGNORED
from fastsnn_jax.errors import UserError


def detection(
  size: int = 96,
  train: int = 2700,
  validation: int = 300,
  test: int = 1000,
  seed: int = 0,
) -> Dataset:
  """Scenes with a box around each digit.

  One to five digits, about 3/16 to 1/2 of the scene high; of those behind
  others at least half of the ink is in sight. A scene depends on its number,
  its split, the size and the seed, not on how many there are.

  Args:
    size: side of the scenes in pixels, a multiple of 32.
    train, validation, test: how many scenes; their digits are disjoint.
    seed: 0 or more.

  Returns:
    A data set of {'image': uint8 [N, size, size, 3], 'boxes': float32 [N, 5,
    4], (x1, y1, x2, y2) in shares of the scene, tight around the ink of the
    whole digit, hidden or not, 'label': int32 [N, 5], -1 where there is none}.

  >>> scenes = detection(train=2, validation=1, test=1)
  >>> scenes.train['image'].shape, scenes.validation['boxes'].shape
  ((2, 96, 96, 3), (1, 5, 4))
  """
  parts = _parts((train, validation, test), size, seed)
  return _dataset(
    [{k: x[k] for k in ('image', 'boxes', 'label')} for x in parts],
    tuple('0123456789'),
  )


def segmentation(
  size: int = 96,
  train: int = 2700,
  validation: int = 300,
  test: int = 1000,
  seed: int = 0,
) -> Dataset:
  """The scenes of `detection` with a class for each pixel.

  Returns:
    A data set of {'image': uint8 [N, size, size, 3], 'label': uint8 [N, size,
    size]}: 0 for the background, 1 to 10 for the digits 0 to 9, and 255 (to be
    ignored) where the digit in front is less than three quarters opaque.

  >>> scenes = segmentation(train=1, validation=1, test=1)
  >>> scenes.test['label'].shape, scenes.classes[:3]
  ((1, 96, 96), ('background', '0', '1'))
  """
  parts = _parts((train, validation, test), size, seed)
  return _dataset(
    [{'image': x['image'], 'label': x['pixels']} for x in parts],
    ('background', *'0123456789'),
  )


def digits_of(part: str) -> np.ndarray:
  """Which of the embedded digits the scenes of a split show.

  Indices into the digits' own training split, of which validation scenes get a
  tenth, evenly among the classes; for 'test', into their test split.
  """
  embedded = digits.load()
  if part == 'test':
    return np.arange(len(embedded.test['label']))
  order = np.argsort(embedded.train['label'], kind='stable')
  held = np.arange(len(order)) % 10 == 0
  return order[held if part == 'validation' else ~held]


def _dataset(parts, classes):
  train, validation, test = parts
  # Four digits: the last bits of a mean need not be the same everywhere.
  mean, std = (
    tuple(round(x, 4) for x in values) for values in statistics(train['image'])
  )
  return Dataset('scenes', train, test, classes, mean, std, validation)


def _parts(counts, size, seed):
  if size < 32 or size % 32:
    raise UserError(
      f'size is {size}; the side of a scene must be a multiple of 32, such as '
      '96'
    )
  if min(counts) < 1:
    raise UserError(
      f'{counts} scenes to train, validate and test with; each split needs at '
      'least 1'
    )
  if seed < 0:
    raise UserError(f'seed is {seed}; it must be 0 or a positive integer')
  embedded, result = digits.load(), []
  for i, part in enumerate(('train', 'validation', 'test')):
    source = embedded.test if part == 'test' else embedded.train
    rows = digits_of(part)
    images, labels = source['image'][rows, :, :, 0], source['label'][rows]
    # NumPy promises the raw stream for ever, but not what is made of it.
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(i,)))
    words = stream.random_raw(counts[i] * drawing.WORDS)
    words = words.reshape(counts[i], drawing.WORDS)
    result.append(_scenes(words, images, labels, size))
  return result


def _scenes(words, images, labels, size):
  count = len(words)
  result = {
    'image': np.zeros((count, size, size, 3), np.uint8),
    'boxes': np.zeros((count, drawing.MOST, 4), np.float32),
    'label': np.full((count, drawing.MOST), -1, np.int32),
    'pixels': np.zeros((count, size, size), np.uint8),
  }
  for i, row in enumerate(words):
    result['image'][i], things = drawing.draw(row, images, labels, size)
    for j, thing in enumerate(things):
      result['boxes'][i, j] = np.float32(thing.corners) / np.float32(size)
      result['label'][i, j] = thing.label
      pixels = result['pixels'][i][thing.window]
      pixels[thing.cover > 0] = IGNORED  # only tinged
      pixels[thing.cover >= 192] = thing.label + 1
  return result
