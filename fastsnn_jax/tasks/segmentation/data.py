"""Data sets with masks by name: whole in memory, or streamed from disk."""

import dataclasses
import pathlib

import numpy as np

from fastsnn_jax.data import records, squares
from fastsnn_jax.data.dataset import MEAN_STD, Dataset
from fastsnn_jax.data.readers import coco, scenes, voc
from fastsnn_jax.data.stream import Source, Streamed
from fastsnn_jax.errors import UserError

_SCENE = 32  # sides of scenes are multiples of this
_USUAL = 96


def load(
  name: str,
  path: str | None = None,
  *,
  stride: int,
  size: int | None = None,
  crowd: str = 'background',
) -> Dataset:
  """Reads a data set with masks; pictures and masks are padded to squares.

  Args:
    name: scenes, for the drawn ones; or any name for what is in `path`.
    path: a directory in VOC's or COCO's layout (`voc`, `coco`).
    stride: of the network; sides are 1 modulo it.
    size: side of the squares, S, in pixels; None for the least one that fits
      all pictures. Scenes are drawn as large as fits, 96 if it is None.
    crowd: as for `coco.read_masks`.

  Returns:
    The data set; its parts are {'image': uint8 [N, S, S, 3], 'label': uint8 [N,
    S, S], 'size': int32 [N, 2]}, see `squares.mask_arrays`. Pictures are
    padded with its mean.

  Raises:
    UserError: nothing there that can be read, a size that does not fit.

  >>> load('scenes', stride=8, size=33).train['label'].shape
  (2700, 33, 33)
  """
  if name == 'scenes':
    return _scenes(stride, size)
  found = _read(name, path, crowd)
  size = squares.side_for(_all(found), stride, size)
  mean, std = MEAN_STD['imagenet2012']

  def arrays(part):
    return squares.mask_arrays(
      part,
      size,
      squares.fill_of(mean),
      classes=len(found.classes),
      repairs=found.repairs,
    )

  return Dataset(
    name,
    arrays(found.train),
    arrays(found.test),
    found.classes,
    mean,
    std,
    arrays(found.validation) if found.validation else None,
    notes=records.notes(found),
  )


def open_stream(
  name: str,
  path: str | None = None,
  *,
  stride: int,
  size: int | None = None,
  crowd: str = 'background',
) -> Streamed:
  """Finds what `load` reads, and leaves pictures and masks where they are.

  Masks are looked at once, so that what is wrong is known before it is trained
  on. A `Loader` of the parts needs crop='pad', the size that the result has and
  `squares.fill_of` its mean.

  Args, Raises: as `load`; scenes are on no disk.
  """
  if name == 'scenes':
    raise UserError('scenes are drawn in memory; leave data.stream out')
  found = _read(name, path, crowd)
  size = squares.side_for(_all(found), stride, size)

  def source(part):
    return Source(Encoded(part, size, len(found.classes)))

  return Streamed(
    name,
    source(found.train),
    source(found.test),
    found.classes,
    *MEAN_STD['imagenet2012'],
    notes=records.notes(found),
    validation=source(found.validation) if found.validation else None,
    size=size,
  )


class Encoded:
  """Records for a `Source`: `[i]` is (encoded picture, {'label', 'size'}).

  'label' is the mask, padded with 255, uint8 [S, S], 'size' the picture's
  (width, height). Where a file cannot be read, both are empty, so that a loader
  leaves the example out.

  Args:
    rows: records of a split.
    size: S.
    classes: how many there are.
  """

  channels = 3

  def __init__(self, rows, size: int, classes: int):
    self._records, self._size, self._classes = rows, size, classes

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    record = self._records[index]
    pair = records.picture_and_mask(record, self._classes)
    encoded, label = pair or (b'', np.empty((0, 0), np.uint8))
    return encoded, {
      'label': squares.padded(label, self._size, records.IGNORED),
      'size': np.array(record.size, np.int32),
    }

  def name(self, index) -> str:
    return str(self._records[index].picture)


def _all(found):
  return [*found.train, *found.test, *(found.validation or ())]


def _read(name, path, crowd):
  layouts = f'{voc.MASK_LAYOUT}; or with {coco.LAYOUT}'
  if path is None:
    raise UserError(
      f'data set {name!r} needs the path of its directory, with {layouts}; '
      "only 'scenes' needs none"
    )
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(f'{path} is not a directory; give one with {layouts}')
  if voc.has_masks(directory):
    return voc.read_masks(directory)
  if coco.has_annotations(directory):
    return coco.read_masks(directory, crowd=crowd)
  raise UserError(
    f'{path} has neither ImageSets/Segmentation/train.txt nor annotations of '
    f'COCO; arrange it with {layouts}'
  )


def _scenes(stride, size):
  side = _USUAL
  if size is None:
    size = squares.fitting_size(side, stride)
  else:
    squares.check_stride(size, stride)
    side = size // _SCENE * _SCENE
  if not side:
    raise UserError(f'size={size}: scenes need {_SCENE + 1} pixels or more')
  drawn = scenes.segmentation(side)
  fill = squares.fill_of(drawn.mean)

  def padded(rows, color):
    return np.stack([squares.padded(row, size, color) for row in rows])

  def part(arrays):
    return {
      'image': padded(arrays['image'], fill),
      'label': padded(arrays['label'], records.IGNORED),
      'size': np.full((len(arrays['label']), 2), side, np.int32),
    }

  return dataclasses.replace(
    drawn,
    train=part(drawn.train),
    test=part(drawn.test),
    validation=part(drawn.validation),
  )
