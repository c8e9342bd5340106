"""Data sets too large for memory: pictures stay encoded, on disk.

`open_stream` finds the set and `Source` hands out its examples by number, in
any order; what is made of them is `loader`'s affair.
"""

import dataclasses
import pathlib

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data.dataset import CLASSES, MEAN_STD, split
from fastsnn_jax.data.readers import folder, tfds
from fastsnn_jax.errors import UserError

_PATIENCE = 100  # pictures that are tried before none can be decoded


class Source:
  """Encoded pictures and labels, by number.

  `source[i]` is (encoded bytes, label), or a dict of labels in its place.
  Sources can be pickled, and read from several threads at once.

  Args:
    records: has `len`, `[i]` as above, `name(i)`, and `channels` (1, 3, or None
      if each picture has its own).
    rows: which of the records, in which order; all if not given.
  """

  def __init__(self, records, rows=None):
    self._records = records
    self._rows = np.arange(len(records)) if rows is None else rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    return self._records[self._rows[index]]

  @property
  def channels(self) -> int | None:
    return self._records.channels

  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the first picture that can be decoded.

    Raises:
      UserError: there is none among the first hundred.
    """
    for index in range(min(len(self), _PATIENCE)):
      try:
        return decode.whole(self[index][0], self.channels).shape
      except decode.Undecodable as error:
        reason = error
    raise UserError(
      f'{self.name(0)} and {index} more are no pictures ({reason}); pictures '
      'must be JPEG, PNG or the like, so look at the files'
    )

  def name(self, index: int) -> str:
    """What an example is called in messages: a path, or a number."""
    return self._records.name(self._rows[index])

  def boxes(self):
    """Boxes [N, G, 4] and their labels [N, G], where the records have them."""
    return tuple(x[self._rows] for x in self._records.boxes())

  def take(self, rows) -> 'Source':
    """The examples of these numbers, in this order.

    Raises:
      UserError: a number outside of 0 … len - 1.
    """
    rows = np.asarray(rows, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
      raise UserError(
        f'rows run from {rows.min()} to {rows.max()}; the set has {len(self)}, '
        f'so they must be 0 to {len(self) - 1}'
      )
    return Source(self._records, self._rows[rows])

  def split(self, fraction: float, seed: int) -> tuple['Source', 'Source']:
    """(train part, held-out part), the rows that `data.split` gives.

    Raises:
      UserError: as `data.split`.
    """
    parts = split({'row': np.arange(len(self))}, fraction, seed)
    return self.take(parts[0]['row']), self.take(parts[1]['row'])


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
  """A data set on disk.

  Attributes:
    name: what it is called in reports and checkpoints.
    train: a `Source`.
    test: a `Source`, to be looked at once.
    classes: names of the classes; labels index them.
    mean: per channel, of images in 0..1: the known ones of the set, otherwise
      ImageNet's; for as many channels as images will have.
    std: likewise.
    notes: what was found wrong and mended, for the user to know.
    validation: a third split, if the set has its own.
    size: side of the squares that pictures and masks are padded to; None where
      the loader's user says.
  """

  name: str
  train: Source
  test: Source
  classes: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  notes: tuple[str, ...] = ()
  validation: Source | None = None
  size: int | None = None


def open_stream(
  name: str, path: str | None = None, *, size: int | None = None
) -> Streamed:
  """Finds a data set on disk without reading its pictures.

  Args:
    name: of the TFDS data set, or any name for a folder of pictures.
    path: a TFDS data_dir (or the folder of the set, or of one version), or a
      folder with `train/CLASS/PICTURE` and `test/CLASS/PICTURE` (or `val`, or
      `validation`). None for TFDS's default.
    size: that a `Loader` will give them, which makes them RGB; None for
      pictures as they are.

  Raises:
    UserError: neither is there, or it is not as it should be.
  """
  if path is None:
    directory = tfds.default_directory()
    if tfds.find(name, directory):
      return _tfds(name, directory, size)
    raise UserError(
      f'no prepared TFDS data set {name!r} in {directory}; prepare it once '
      f'with: {tfds.prepare_command(name, directory)}; or give the path '
      f'of pictures arranged as {folder.LAYOUT}'
    )
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(
      f'{path} is not a directory; give one with a prepared TFDS data set, or '
      f'with pictures arranged as {folder.LAYOUT}'
    )
  if tfds.find(name, directory):
    return _tfds(name, directory, size)
  if folder.has_classes(directory):
    train, test, classes = folder.read(directory)
    return _streamed(name, train, test, classes, size)
  raise UserError(
    f'{path} holds neither a prepared TFDS data set {name!r} nor pictures '
    f'arranged as {folder.LAYOUT}; prepare or arrange it, or give another path'
  )


def _tfds(name, directory, size):
  return _streamed(name, *tfds.records(name, directory), size)


def _streamed(name, train, test, classes, size):
  train = Source(train)
  channels = 3 if size else train.channels
  if channels not in (1, 3):
    channels = train.shape()[-1]
  known = MEAN_STD.get(name, MEAN_STD['imagenet2012'])
  mean, std = (_fitted(values, channels) for values in known)
  classes = CLASSES.get(name) or classes
  return Streamed(name, train, Source(test), classes, mean, std)


def _fitted(values, channels):
  """What is known of a channel, for each of another number of channels."""
  if len(values) == channels:
    return values
  return (sum(values) / len(values),) * channels
