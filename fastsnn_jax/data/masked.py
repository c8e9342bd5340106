"""Pictures with a class for each pixel: what their readers have in common.

Pictures and masks are padded, never resized (`padding`). What cannot be used is
left out; that, and what was mended, is counted.
"""

import collections
import concurrent.futures
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data import decode, padding
from fastsnn_jax.data.workers import cores
from fastsnn_jax.errors import UserError

IGNORED = 255  # the label of pixels that are neither learnt nor judged
# What was found wrong -> what was done about it.
REPAIRS = {
  'gone': 'pictures that are listed, but not there, left out',
  'bare': 'pictures without a mask left out',
  'unreadable': 'pictures left out that, or whose masks, cannot be read',
  'resized': 'pictures left out whose masks have another size',
  'no_class': 'masks with labels of no class; these pixels are ignored',
  'stray': 'objects of no picture that is listed left out',
  'unknown': 'objects of an unknown class left out',
  'skipped': 'objects of no size, beside the picture or to be ignored left out',
  'no_outline': 'objects without an outline that can be read left out',
  'crowd': 'crowds taken for background',
  'crowd_ignored': 'crowds whose pixels are ignored',
}
_REMEDY = (
  'a mask has one index of a class per pixel: save it as PNG with a palette or '
  'of 8-bit grey'
)
_NAMED = 5  # classes in a note


class Record(NamedTuple):
  """One picture and its mask.

  Attributes:
    picture: its path.
    mask: the path of a PNG of indices, or a function that gives an integer
      array [height, width].
    size: (width, height) of both, in pixels.
    labels: the classes of its pixels, a byte each; none if all are ignored.
  """

  picture: pathlib.Path
  mask: pathlib.Path | Callable[[], np.ndarray]
  size: tuple[int, int]
  labels: bytes = b''


class Masked(NamedTuple):
  """The splits, the names of the classes, and {repair: [where, …]}."""

  train: list[Record]
  test: list[Record]
  classes: tuple[str, ...]
  repairs: dict[str, list[str]]
  validation: list[Record] | None = None


def new_repairs() -> dict[str, list[str]]:
  """To be filled: `repairs[key].append(where)`."""
  return collections.defaultdict(list)


def warnings(repairs) -> list[str]:
  """A line for each kind of repair, with the first place where it was made.

  >>> warnings({'bare': ['a.jpg', 'c.jpg']})
  ['2 pictures without a mask left out (first: a.jpg)']
  """
  return [
    f'{len(repairs[key])} {REPAIRS[key]} (first: {repairs[key][0]})'
    for key in REPAIRS
    if repairs.get(key)
  ]


def notes(found: Masked) -> tuple[str, ...]:
  """What the user should know: the repairs, and classes that are not there.

  >>> path = pathlib.Path('a.png')
  >>> record = Record(path, path, (1, 1), labels=bytes([0]))
  >>> notes(Masked([record], [record], ('ground', 'object'), {}))
  ("no training mask has the index of 'object'; 255 means ignored",)
  """
  there = set().union(*(record.labels for record in found.train))
  gone = [repr(name) for i, name in enumerate(found.classes) if i not in there]
  lines = warnings(found.repairs)
  if gone:
    names = ', '.join(gone[:_NAMED])
    if gone[_NAMED:]:
      names += f' and {len(gone) - _NAMED} more classes'
    lines.append(
      f'no training mask has the index of {names}; {IGNORED} means ignored'
    )
  return tuple(lines)


def check_classes(classes) -> tuple[str, ...]:
  """The names as a tuple; UserError if there are none or too many."""
  classes = tuple(classes)
  if not 1 <= len(classes) <= IGNORED:
    raise UserError(
      f'{len(classes)} classes: masks hold the indices 0 to {IGNORED - 1} and '
      f'{IGNORED} for pixels to be ignored, so give 1 to {IGNORED} names'
    )
  return classes


def check(records, where, layout, repairs) -> None:
  """Raises UserError if nothing is left of a split, or no pixel has a class."""
  if not records:
    found = '; '.join(warnings(repairs)) or 'the list is empty'
    raise UserError(
      f'{where} has no picture that can be read with its mask ({found}); a '
      f'split needs at least one ({layout})'
    )
  if not any(record.labels for record in records):
    found = ''.join(f'; {line}' for line in warnings(repairs))
    raise UserError(
      f'{where}: no mask of its {len(records)} pictures has a pixel of a class '
      f'({IGNORED} means ignored{found}); a split needs at least one, so write '
      'masks with the indices of the classes'
    )


def examine(
  pairs, classes, repairs, *, threads: int | None = None
) -> list[Record]:
  """Looks at pictures (their headers) and masks (whole), and keeps good ones.

  Args:
    pairs: (name, path of the picture, path of its mask); None for what is not
      there.
    classes: names; other labels than their indices and 255 are counted.
    repairs: added to.
    threads: that read; None for one a core.

  Raises:
    UserError: a mask that has no indices; it is named.
  """
  count, kept = len(check_classes(classes)), []
  with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
    look = pool.map(lambda pair: _examined(*pair, count), list(pairs))
    for record, repair, where in look:
      if repair:
        repairs[repair].append(where)
      if record:
        kept.append(record)
  return kept


def _examined(name, picture, mask, count):
  """(record or None, repair or None, where)."""
  if picture is None:
    return None, 'gone', name
  if mask is None:
    return None, 'bare', str(picture)
  path = picture
  try:
    size = decode.size_of(picture)
    path = mask
    found = _indices(mask)
  except (OSError, decode.Undecodable):
    return None, 'unreadable', str(path)
  if found.shape[::-1] != size:
    width, height = found.shape[::-1]
    where = f'{mask}, {width} x {height} and not {size[0]} x {size[1]}'
    return None, 'resized', where
  beyond = found[(found >= count) & (found != IGNORED)]
  record = Record(picture, mask, size, labels_in(found, count))
  if beyond.size:
    return record, 'no_class', f'{mask}, {beyond[0]} with {count} classes'
  return record, None, None


def labels_in(mask, classes: int) -> bytes:
  """The classes of a mask's pixels, for `Record.labels`.

  >>> list(labels_in(np.array([[2, 0], [2, 255]]), 21))
  [0, 2]
  """
  return bytes(np.flatnonzero(np.bincount(mask.ravel())[:classes]).tolist())


def _indices(path):
  try:
    return decode.indices(path.read_bytes())
  except decode.NotIndices as error:
    raise UserError(f'{path} is {error}; {_REMEDY}') from error


def pixels(record, classes: int) -> np.ndarray:
  """The mask of a record, uint8 [height, width], 255 for what is no class.

  Args:
    record: with a path or a function.
    classes: how many there are.

  Raises:
    UserError, OSError, decode.Undecodable: it cannot be read.

  >>> path, row = pathlib.Path('a.jpg'), np.array([[0, 2, 9, -1]])
  >>> pixels(Record(path, lambda: row, (4, 1)), 3).tolist()
  [[0, 2, 255, 255]]
  """
  found = record.mask() if callable(record.mask) else _indices(record.mask)
  known = (found >= 0) & (found < classes)
  return np.where(known, found, IGNORED).astype(np.uint8)


def arrays(
  records,
  size: int,
  fill,
  *,
  classes: int,
  repairs,
  threads: int | None = None,
) -> dict[str, np.ndarray]:
  """Records as arrays: pictures and masks at the top left of squares.

  Args:
    records: of a split.
    size: side of the squares, S; see `padding.side_for`.
    fill: 3 numbers in 0..255 to pad pictures with; masks are padded with 255.
    classes: how many there are.
    repairs: pictures that turn out to be damaged are left out and added to it.
    threads: that decode; None for one a core.

  Returns:
    {'image': uint8 [N, S, S, 3], 'label': uint8 [N, S, S], 'size': int32 [N,
    2], (width, height) of the picture}.

  Raises:
    UserError: a picture larger than S; none that can be read.
  """
  padding.check_size(records, size)
  count = len(records)
  result = {
    'image': np.empty((count, size, size, 3), np.uint8),
    'label': np.empty((count, size, size), np.uint8),
    'size': np.array([item.size for item in records], np.int32).reshape(-1, 2),
  }

  def put(i):
    try:
      image = decode.whole(records[i].picture.read_bytes(), 3)
      label = pixels(records[i], classes)
    except (OSError, decode.Undecodable):
      return False
    if not image.shape[1::-1] == label.shape[::-1] == records[i].size:
      return False  # another file than when it was looked at
    result['image'][i] = padding.padded(image, size, fill)
    result['label'][i] = padding.padded(label, size, IGNORED)
    return True

  # Pillow lets go of the interpreter's lock while it decodes.
  with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
    there = np.fromiter(pool.map(put, range(count)), bool, count)
  if there.all():
    return result
  repairs['unreadable'] += [
    str(records[i].picture) for i in np.flatnonzero(~there)
  ]
  if not there.any():
    raise UserError(
      f'none of {count} pictures can be decoded with its mask (first: '
      f'{records[0].picture}); look at the files, or write them anew'
    )
  return {key: value[there] for key, value in result.items()}
