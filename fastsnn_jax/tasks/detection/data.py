"""Images with boxes: squashed to squares, in memory or on disk."""

import dataclasses
import pathlib

import numpy as np

from fastsnn_jax.data import decode, records, squares
from fastsnn_jax.data.dataset import MEAN_STD
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.data.readers import coco, scenes, tfds, voc
from fastsnn_jax.data.stream import Stream
from fastsnn_jax.errors import UserError


def open_data(settings, size: int) -> Dataset:
  """The data set that `Data` of a config names.

  'scenes' are drawn; `voc`, `coco` or another set may be prepared by TFDS; or
  `path` has VOC's or COCO's layout. Difficult objects are not trained on.

  Args:
    settings: `Data` of a config.
    size: side of the squares; training images are as large as the largest of
      `settings.sizes`.

  Raises:
    UserError: neither is there, or nothing in it that can be read.
  """
  largest = max(size, *settings.sizes, 0)
  if settings.name == 'scenes':
    if settings.stream:
      raise UserError('scenes are drawn in memory; leave data.stream out')
    if largest != size:
      raise UserError(
        f'data.sizes up to {largest}: scenes are drawn at one size, {size}; '
        'leave data.sizes out'
      )
    return scenes.detection(size)
  parts = _read(settings.name, settings.path)
  if settings.stream:
    train, test = (
      Stream(
        Encoded(part, difficult=part is not parts.train),
        Squash(size),
        Squash(largest),
        workers=settings.workers,
      )
      for part in (parts.train, parts.test)
    )
  else:
    train = squares.box_arrays(parts.train, largest, difficult=False)
    test = squares.box_arrays(parts.test, size)
  return Dataset(
    settings.name,
    train,
    test,
    parts.classes,
    *MEAN_STD['imagenet2012'],
    notes=records.notes(parts),
  )


@dataclasses.dataclass(frozen=True)
class Squash:
  """(encoded picture, labels) -> the whole picture as a square."""

  size: int

  def __call__(self, record, draws):
    del draws
    encoded, labels = record
    image = decode.resized(encoded, self.size)
    return {'image': image, **labels}


class Encoded:
  """Records as a `Stream` reads them: `[i]` is (encoded picture, labels)."""

  def __init__(self, part, *, difficult: bool):
    self._part = part
    self._labels = squares.box_labels(part, difficult=difficult)

  def __len__(self):
    return len(self._part)

  def __getitem__(self, index):
    labels = {name: value[index] for name, value in self._labels.items()}
    return records.encoded(self._part[index].picture), labels

  def name(self, index) -> str:
    return str(self._part[index].picture)

  def column(self, name) -> np.ndarray | None:
    return self._labels.get(name)


def _read(name, path):
  directory = tfds.default_directory()
  if path is not None:
    directory = pathlib.Path(path).expanduser()
    if not directory.is_dir():
      raise UserError(
        f'{path} is not a directory; give one with a prepared TFDS data set, '
        f'or with {voc.BOX_LAYOUT}, or with {coco.LAYOUT}'
      )
  if tfds.find(name, directory):
    return tfds.read_boxes(name, directory)
  if path is None:
    raise UserError(
      f'no prepared TFDS data set {name!r} in {directory}; prepare it once '
      f'with: {tfds.prepare_command(name, directory)}; or give the path of '
      f'pictures with {voc.BOX_LAYOUT}'
    )
  if coco.has_annotations(directory):
    return coco.read_boxes(directory)
  return voc.read_boxes(directory)
