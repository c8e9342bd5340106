"""Pictures with boxes: what the readers of every layout have in common.

A reader parses annotations into objects; here they become records, and records
arrays. Real annotations are not clean: what can be mended is, what cannot is
left out, and both are counted.
"""

import collections
import concurrent.futures
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data.workers import cores
from fastsnn_jax.errors import UserError

# What was found wrong -> what was done about it.
REPAIRS = {
  'unreadable': 'images left out: no picture, or no annotation to read',
  'bare': 'images without objects, kept as such',
  'resized': 'images of another size than their annotation says; it is ignored',
  'stray': 'objects of no image that is listed left out',
  'unknown': 'objects of an unknown class left out',
  'no_box': 'objects without four coordinates left out',
  'fractional': 'boxes with fractions of pixels, kept as they are',
  'swapped': 'boxes with their corners swapped, put right',
  'outside': 'boxes that reach beyond the image, cut off',
  'empty': 'boxes of no size left out',
}
_NOISE = 1e-6  # a share of the picture: what rounding adds to a border


class Found(NamedTuple):
  """An object as an annotation has it.

  Attributes:
    name: of its class; neither case nor spaces around it matter.
    corners: (x1, y1, x2, y2) in pixels from the picture's corner; NaN where
      there is no number.
    difficult, crowd: what it is marked as.
    area: in pixels, of the object and not of its box; None if not given.
  """

  name: str
  corners: tuple[float, float, float, float]
  difficult: bool = False
  crowd: bool = False
  area: float | None = None


class Record(NamedTuple):
  """One picture and its objects.

  Attributes:
    picture: its path, the encoded file as bytes, or a function that gives them.
    size: (width, height) in pixels.
    boxes: float32 [n, 4], (x1, y1, x2, y2) in shares of the picture.
    label: int32 [n], indices of classes.
    difficult: bool [n].
    crowd: bool [n]; a crowd is one box around many objects.
    area: float32 [n], pixels of the object, which may fill only a part of its
      box; that of the box where it is not known.
  """

  picture: pathlib.Path | bytes | Callable[[], bytes]
  size: tuple[int, int]
  boxes: np.ndarray
  label: np.ndarray
  difficult: np.ndarray
  crowd: np.ndarray
  area: np.ndarray


class Boxed(NamedTuple):
  """Both splits, the names of the classes, and {repair: how often}."""

  train: list[Record]
  test: list[Record]
  classes: tuple[str, ...]
  repairs: collections.Counter


def warnings(repairs) -> list[str]:
  """A line for each kind of repair.

  >>> warnings({'empty': 2})
  ['2 boxes of no size left out']
  """
  return [
    f'{repairs[key]} {REPAIRS[key]}' for key in REPAIRS if repairs.get(key)
  ]


def index(classes) -> dict[str, int]:
  """{name: number}, as `record` looks names up.

  >>> index(['Cat', ' dog'])
  {'cat': 0, 'dog': 1}
  """
  return {name.strip().lower(): i for i, name in enumerate(classes)}


def record(
  picture, size, objects, numbers, repairs, *, whole=False, short=False
) -> Record:
  """Mends the objects of a picture and counts what was done.

  Corners that are swapped are put right, then divided by the picture's width
  and height and cut off at 0 and 1. What has no size after that is left out.

  Args:
    picture, size: as in `Record`.
    objects: `Found`s.
    numbers: `index` of the classes; other objects are left out.
    repairs: a counter, added to.
    whole: fractions of pixels are a flaw in this layout, and counted.
    short: boxes end a pixel earlier, as the reference trains on COCO (spec §6):
      x2 = min(W - 1, max(0, x1) + max(0, w - 1)), and alike in y.

  >>> repairs = collections.Counter()
  >>> found = [Found('Cat', (5, 0, 30, 5)), Found('dog', (0, 0, 1, 1))]
  >>> record(b'', (20, 10), found, {'cat': 0}, repairs).boxes.tolist()
  [[0.25, 0.0, 1.0, 0.5]]
  >>> +repairs
  Counter({'unknown': 1, 'outside': 1})
  """

  def count(repair, which):
    repairs[repair] += int(np.sum(which))

  table = [
    (
      numbers.get(item.name.strip().lower(), -1),
      *(item.difficult, item.crowd),
      math.nan if item.area is None else item.area,
      *item.corners,
    )
    for item in objects
  ]
  table = np.array(table, np.float64).reshape(-1, 8)
  known = table[:, 0] >= 0
  there = known & np.isfinite(table[:, 4:]).all(1)
  count('bare', not objects)
  count('unknown', ~known)
  count('no_box', known & ~there)
  table = table[there]
  corners = table[:, 4:].reshape(-1, 2, 2)
  if whole:
    count('fractional', np.any(corners % 1, (1, 2)))
  ordered = np.sort(corners, 1)
  count('swapped', np.any(ordered != corners, (1, 2)))
  box = ordered / size
  inside = np.clip(box, 0, 1)
  count('outside', np.any(np.abs(inside - box) > _NOISE, (1, 2)))
  if short:
    sides = np.maximum(ordered[:, 1] - ordered[:, 0] - 1, 0) / size
    inside[:, 1] = np.minimum(inside[:, 0] + sides, 1 - 1 / np.array(size))
  inside = inside.astype(np.float32)
  sides = (inside[:, 1] - inside[:, 0]) * size
  area = np.where(np.isfinite(table[:, 3]), table[:, 3], sides.prod(1))
  solid = np.all(sides > 0, 1) & (area > 0)
  count('empty', ~solid)
  return Record(
    picture,
    size,
    boxes=inside[solid].reshape(-1, 4),
    label=table[solid, 0].astype(np.int32),
    difficult=table[solid, 1].astype(bool),
    crowd=table[solid, 2].astype(bool),
    area=area[solid].astype(np.float32),
  )


def check(records, classes, where, layout) -> None:
  """Raises UserError if a split has no objects of these classes."""
  if not any(len(item.label) for item in records):
    raise UserError(
      f'{where} has no object of the classes {list(classes)[:5]} whose picture '
      f'can be read; a split needs pictures with annotations ({layout})'
    )


def labels(
  records, *, difficult=True, crowd=True, places=None
) -> dict[str, np.ndarray]:
  """Records as arrays, all but the pictures.

  Args:
    records: of a split.
    difficult: keep difficult objects; training leaves them out.
    crowd: keep crowds, as the reference does also in training.
    places: objects there is room for, G; None for the most that a picture has.

  Returns:
    {'boxes': float32 [N, G, 4], 'label': int32 [N, G], -1 where there is no
    object, 'difficult': bool [N, G], 'crowd': bool [N, G], 'area': float32 [N,
    G], pixels of the picture as it was, 'size': int32 [N, 2], its (width,
    height)}.

  Raises:
    UserError: a picture with more than G objects.
  """
  keep = [
    (difficult | ~item.difficult) & (crowd | ~item.crowd) for item in records
  ]
  most = max((int(kept.sum()) for kept in keep), default=0)
  if places is None:
    places = max(most, 1)
  if most > places:
    raise UserError(
      f'places={places}: a picture has {most} objects; make room for as many'
    )
  count = len(records)
  result = {
    'boxes': np.zeros((count, places, 4), np.float32),
    'label': np.full((count, places), -1, np.int32),
    'difficult': np.zeros((count, places), bool),
    'crowd': np.zeros((count, places), bool),
    'area': np.zeros((count, places), np.float32),
    'size': np.array([item.size for item in records], np.int32).reshape(-1, 2),
  }
  for i, (item, kept) in enumerate(zip(records, keep, strict=True)):
    for key in ('boxes', 'label', 'difficult', 'crowd', 'area'):
      values = getattr(item, key)[kept]
      result[key][i, : len(values)] = values
  return result


def arrays(
  records, size: int, *, threads=None, **settings
) -> dict[str, np.ndarray]:
  """Records as arrays, the pictures squashed to a square.

  Args:
    records: of a split.
    size: side in pixels.
    threads: that decode; None for one a core.
    **settings: of `labels`.

  Returns:
    {'image': uint8 [N, size, size, 3]} and what `labels` gives.

  Raises:
    UserError: a picture that cannot be decoded, or with more than G objects.
  """
  count = len(records)
  result = {
    'image': np.zeros((count, size, size, 3), np.uint8),
    **labels(records, **settings),
  }

  def fill(i):
    result['image'][i] = _squashed(records[i].picture, size, i)

  # Pillow lets go of the interpreter's lock while it decodes and resizes.
  with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
    collections.deque(pool.map(fill, range(count)), maxlen=0)
  return result


def encoded(picture) -> bytes:
  """The file of a `Record.picture`."""
  if isinstance(picture, bytes):
    return picture
  try:
    return picture() if callable(picture) else picture.read_bytes()
  except OSError as error:
    raise UserError(
      f'{picture} cannot be read ({error.strerror or error}); it was there '
      'when the run began, so bring it back or check its permissions'
    ) from error


def _squashed(picture, size, number):
  try:
    return decode.resized(
      encoded(picture), size, lambda width, height: (0, 0, width, height)
    )
  except (OSError, decode.Undecodable) as error:
    name = f'picture {number}' if isinstance(picture, bytes) else str(picture)
    raise UserError(
      f'{name} cannot be decoded ({error}); replace it, or take it out of the '
      'list of its split'
    ) from error
