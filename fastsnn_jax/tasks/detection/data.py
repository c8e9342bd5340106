"""Data sets with boxes by name: whole in memory, or streamed from disk."""

import pathlib

import numpy as np

from fastsnn_jax.data import records, squares
from fastsnn_jax.data.dataset import MEAN_STD, Dataset
from fastsnn_jax.data.readers import coco, scenes, tfds, voc
from fastsnn_jax.data.stream import Source, Streamed
from fastsnn_jax.errors import UserError


def load(
  name: str, path: str | None = None, *, size: int, train_size: int = 0
) -> Dataset:
  """Reads a data set with boxes; the pictures are squashed to squares.

  Args:
    name: scenes, for the drawn ones; voc, coco or another set that TFDS
      prepared; or any name for what is in `path`.
    path: a TFDS data_dir, or a directory in VOC's or COCO's layout (`voc`,
      `coco`). None for TFDS's default.
    size: side of the test images, in pixels.
    train_size: side of the training images; `size` if 0.

  Returns:
    The data set; its parts have 'image', 'boxes', 'label' and, but for scenes,
    'difficult', 'crowd', 'area' and 'size', see `squares.box_arrays`. Difficult
    objects are not trained on.

  Raises:
    UserError: neither is there, or nothing in it that can be read.

  >>> load('scenes', size=32).train['image'].shape
  (2700, 32, 32, 3)
  """
  if name == 'scenes':
    if train_size not in (0, size):
      raise UserError(
        f'data.sizes up to {train_size}: scenes are drawn at one size, '
        f'{size}; leave data.sizes out'
      )
    return scenes.detection(size)
  found = _read(name, path)
  return Dataset(
    name,
    squares.box_arrays(found.train, train_size or size, difficult=False),
    squares.box_arrays(found.test, size),
    found.classes,
    *MEAN_STD['imagenet2012'],
    notes=records.notes(found),
  )


def open_stream(name: str, path: str | None = None) -> Streamed:
  """Finds what `load` reads, and leaves the pictures where they are.

  Raises:
    UserError: as `load`; or scenes, which are on no disk.
  """
  if name == 'scenes':
    raise UserError('scenes are drawn in memory; leave data.stream out')
  found = _read(name, path)
  return Streamed(
    name,
    Source(Encoded(found.train, difficult=False)),
    Source(Encoded(found.test)),
    found.classes,
    *MEAN_STD['imagenet2012'],
    notes=records.notes(found),
  )


class Encoded:
  """Records for a `Source`: `[i]` is (encoded picture, its labels).

  Args:
    rows: records of a split.
    difficult: keep difficult objects.
  """

  channels = 3

  def __init__(self, rows, *, difficult: bool = True):
    self._records = rows
    self._labels = squares.box_labels(rows, difficult=difficult)

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    labels = {name: value[index] for name, value in self._labels.items()}
    return records.encoded(self._records[index].picture), labels

  def name(self, index) -> str:
    return str(self._records[index].picture)

  def boxes(self) -> tuple[np.ndarray, np.ndarray]:
    """All boxes [N, G, 4] and labels [N, G]."""
    return self._labels['boxes'], self._labels['label']


def _read(name, path):
  directory = tfds.default_directory()
  if path is not None:
    directory = pathlib.Path(path).expanduser()
    if not directory.is_dir():
      raise UserError(
        f'{path} is not a directory; give one with a prepared TFDS data set, '
        f'or with {voc.BOX_LAYOUT}, or with {coco.LAYOUT}'
      )
  if tfds.has_boxes(name, directory):
    return tfds.read_boxes(name, directory)
  if path is None:
    raise UserError(
      f'no prepared TFDS data set {name!r} in {directory}; prepare it once '
      f'with: {tfds.prepare_command(name, directory)}; or give the path '
      f'of pictures with {voc.BOX_LAYOUT}'
    )
  if coco.has_annotations(directory):
    return coco.read_boxes(directory)
  return voc.read_boxes(directory)
