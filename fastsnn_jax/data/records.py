"""Pictures with boxes or masks, and what was mended in their annotations.

Readers parse the files of their layout; here annotations become records. What
can be mended is, what cannot is left out, and both are counted.
"""

import collections
import concurrent.futures
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data.decode import cores
from fastsnn_jax.errors import UserError, repeated

IGNORED = 255  # the label of pixels that are neither learnt nor judged
# What was wrong -> what was done about it.
REPAIRS = {
  'no_id': 'pictures left out that have no id, a number or a text',
  'gone': 'pictures that are listed, but not there, left out',
  'astray': 'pictures left out whose names lead out of their folder',
  'no_file': 'pictures left out that are devices, pipes or broken links',
  'loop': 'links to folders that are read already left out',
  'ending': 'files left out that do not end like a picture',
  'twice': 'names that are listed twice, kept',
  'no_mask': 'pictures without a mask left out',
  'unreadable': 'pictures left out that, or whose annotations, cannot be read',
  'bare': 'pictures without objects, kept as such',
  'said_size': 'pictures of another size than annotated, boxes fitted to them',
  'said_aspect': 'pictures left out whose annotated size has another aspect',
  'mask_size': 'pictures left out whose masks have another size',
  'no_class': 'masks with labels of no class; these pixels are ignored',
  'stray': 'objects of no picture that is listed left out',
  'same_id': 'objects whose id an earlier one has, kept',
  'unknown': 'objects of an unknown class left out',
  'no_box': 'objects without four coordinates left out',
  'fractional': 'boxes with fractions of pixels, kept as they are',
  'swapped': 'boxes with their corners swapped, put right',
  'outside': 'boxes that reach beyond the picture, cut off',
  'empty': 'boxes of no size left out',
  'skipped': 'objects of no size, beside the picture or to be ignored left out',
  'no_outline': 'objects without an outline that can be read left out',
  'crowd': 'crowds taken for background',
  'crowd_ignored': 'crowds whose pixels are ignored',
}
_NOISE = 1e-6  # a share of the picture: what rounding adds to a border
_NAMED = 5  # classes in a message
_LONGEST = 500  # characters of a name in a message


class Object(NamedTuple):
  """An object as it is annotated; neither case nor spaces of a name matter.

  `corners` are (x1, y1, x2, y2) in pixels from the picture's corner, NaN where
  there is no number; `area` is in pixels, of the object and not of its box.
  """

  name: str
  corners: tuple[float, float, float, float]
  difficult: bool = False
  crowd: bool = False
  area: float | None = None


class Record(NamedTuple):
  """One picture with the boxes of its n objects, or with a mask.

  Pictures are paths of encoded files, or functions that give their bytes; masks
  are paths of PNGs of indices, or functions that give arrays [height, width].
  """

  picture: pathlib.Path | Callable[[], bytes]
  size: tuple[int, int]  # (width, height) in pixels
  label: np.ndarray | bytes = b''  # int32 [n], classes; bytes, those of a mask
  boxes: np.ndarray | None = None  # float32 [n, 4], (x1, y1, x2, y2) in shares
  difficult: np.ndarray | None = None  # bool [n]
  crowd: np.ndarray | None = None  # bool [n]; one box around many objects
  area: np.ndarray | None = None  # float32 [n], pixels of the object or its box
  mask: pathlib.Path | Callable[[], np.ndarray] | None = None


class Records(NamedTuple):
  """The splits, the names of the classes, and {repair: [where, …]}."""

  train: list[Record]
  test: list[Record]
  classes: tuple[str, ...]
  repairs: dict[str, list[str]]
  validation: list[Record] | None = None

  def parts(self) -> dict[str, list[Record]]:
    """{name of a split: its records}."""
    parts = {'train': self.train, 'test': self.test}
    return parts | ({'validation': self.validation} if self.validation else {})


def new_repairs() -> dict[str, list[str]]:
  return collections.defaultdict(list)


def lines(repairs) -> list[str]:
  """A line for each kind of repair, with the first place where it was made."""
  made = [(text, repairs.get(kind)) for kind, text in REPAIRS.items()]
  return [f'{len(x)} {text} (first: {shown(x[0])})' for text, x in made if x]


def shown(name: str) -> str:
  """A name as a message can show it: on one line, and not without end."""
  name = name if name.isprintable() else ascii(name)
  return name if len(name) <= _LONGEST else f'{name[:_LONGEST]}…'


def notes(records: Records) -> tuple[str, ...]:
  """What the user should know: the repairs, and classes that no mask has."""
  result = lines(records.repairs)
  if any(record.mask for record in records.train):
    shown = set().union(*(record.label for record in records.train))
    absent = [repr(x) for i, x in enumerate(records.classes) if i not in shown]
    names, more = ', '.join(absent[:_NAMED]), len(absent) - _NAMED
    names += f' and {more} more classes' if more > 0 else ''
    if absent:
      result.append(
        f'no training mask has the index of {names}; {IGNORED} means ignored'
      )
  return tuple(result)


def check(part, classes, where, layout, repairs) -> None:
  """Raises UserError if no picture of a split shows a class."""
  if not any(len(record.label) for record in part):
    done = '; '.join(lines(repairs)) or f'{len(part)} pictures'
    raise UserError(
      f'{where} has no picture that can be read and shows one of the classes '
      f'{list(classes)[:_NAMED]} ({done}); a split needs one ({layout})'
    )


def encoded(picture) -> bytes:
  """The bytes of a `Record.picture`; UserError if it cannot be read."""
  try:
    return _read(picture)
  except OSError as error:
    raise UserError(
      f'{picture} cannot be read ({error.strerror or error}); bring it back'
    ) from error


def _read(picture):
  return picture() if callable(picture) else picture.read_bytes()


def in_threads(function, items) -> list:
  """The results in order; Pillow's threads decode side by side."""
  with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
    return list(pool.map(function, items))


def spelt(name: str) -> str:
  """What two spellings of one class have in common."""
  return name.strip().lower()


def class_numbers(classes) -> dict[str, int]:
  """{name: number}, as `with_boxes` looks names up."""
  return {spelt(name): i for i, name in enumerate(classes)}


def check_names(path, classes, same=spelt) -> None:
  """Raises a UserError for names that `same` cannot tell apart."""
  if twice := repeated(classes, same):
    one, other = [x for x in twice if same(x) == same(twice[0])][:2]
    raise UserError(
      f'{path}: the names of two classes are {one!r} and {other!r}; give each '
      'one of its own, not one that differs in the case of its letters only'
    )


def with_boxes(
  picture,
  own,
  objects,
  numbers,
  repairs,
  *,
  said=None,
  whole=False,
  short=False,
) -> Record:
  """Mends the objects of a picture and counts in `repairs` what was done.

  Swapped corners are put right, then divided by the picture's sides and cut off
  at 0 and 1. What has no size after that is left out, as is what has no number
  in `numbers`. `own` is the picture's (width, height), `said` that to which the
  corners belong, if it is another. With `whole`, fractions of pixels are
  counted too. With `short`, boxes end a pixel earlier, as the official code
  trains on COCO (reference behaviour D6): x2 = min(W - 1, max(0, x1) + max(0, w
  - 1)), and alike in y.

  >>> repairs = new_repairs()
  >>> objects = [Object('Cat', (5, 0, 30, 5)), Object('dog', (0, 0, 1, 1))]
  >>> with_boxes('a.jpg', (20, 10), objects, {'cat': 0}, repairs).boxes.tolist()
  [[0.25, 0.0, 1.0, 0.5]]
  """

  def count(repair, which):
    for i in np.flatnonzero(which):
      repairs[repair].append(f'{picture}, object {i + 1}')

  size = said or own
  if not objects:
    repairs['bare'].append(str(picture))
  table = [
    (numbers.get(spelt(name), -1), *marks, *corners)
    for name, corners, *marks in objects
  ]
  table = np.array(table, np.float64).reshape(-1, 8)
  label, difficult, crowd, area, *corners = table.T
  known, corners = label >= 0, np.stack(corners, 1)
  usable = known & np.isfinite(corners).all(1)
  count('unknown', ~known)
  count('no_box', known & ~usable)
  corners = np.where(usable[:, None], corners, 0).reshape(-1, 2, 2)
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
  # Exporters that know no outlines write an area of 0.
  given = (area > 0) & (area < np.finfo(np.float32).max)
  area = np.where(given, area, sides.prod(1)) * (np.prod(own) / np.prod(size))
  solid = np.all(sides > 0, 1)
  count('empty', usable & ~solid)
  columns = (label, np.int32), (inside.reshape(-1, 4), np.float32)
  columns += (difficult, bool), (crowd, bool), (area, np.float32)
  kept = (x[usable & solid].astype(dtype) for x, dtype in columns)
  return Record(picture, own, *kept)


def size_said(picture, own, said, repairs) -> tuple | None:
  """The (width, height) that boxes were drawn on; None to leave them out.

  It is what is `said` if that has the aspect of the picture's `own` but for the
  rounding of a side, and `own` if nothing is said.
  """
  if said == own or not all(0 < x < np.inf for x in said):
    return own
  where = f'{picture}, {sizes(said, own)}'
  fits = abs(said[0] * own[1] - said[1] * own[0]) <= sum(said)
  repairs['said_size' if fits else 'said_aspect'].append(where)
  return said if fits else None


def sizes(found, wanted) -> str:
  return '{:g} x {:g} and not {:g} x {:g}'.format(*found, *wanted)


def checked(parts, classes, repairs) -> Records:
  """The records; UserError if most of the pictures have another size."""
  kept = sum(map(len, parts))
  for kind in ('said_aspect', 'mask_size'):
    if len(found := repairs.get(kind, ())) > kept:
      raise UserError(
        f'{len(found)} {REPAIRS[kind]}, {kept} kept (first: '
        f'{shown(found[0])}); most must agree, so label the pictures as they '
        'are stored now'
      )
  train, test, *validation = parts
  return Records(train, test, classes, repairs, *validation)


def with_masks(paths, classes, repairs) -> list[Record]:
  """Looks at pictures (their headers) and masks (whole), and keeps good ones.

  `paths` are (name, picture or None, mask or None).
  """
  count = len(classes)

  def look(row):
    """(record or None, repair or None, where)."""
    name, picture, mask = row
    if picture is None:
      return None, 'gone', name
    if mask is None:
      return None, 'no_mask', str(picture)
    file = picture
    try:
      size = decode.size_of(file)
      file = mask
      pixels = _indices(file)
    except (OSError, decode.Undecodable):
      return None, 'unreadable', str(file)
    if (shape := pixels.shape[::-1]) != size:
      return None, 'mask_size', f'{mask}, {sizes(shape, size)}'
    record = Record(picture, size, labels_in(pixels, count), mask=mask)
    beyond = pixels[(pixels >= count) & (pixels != IGNORED)]
    if beyond.size:
      return record, 'no_class', f'{mask}, {beyond[0]} with {count} classes'
    return record, None, None

  looked_at = in_threads(look, paths)
  for _, repair, where in looked_at:
    if repair:
      repairs[repair].append(where)
  return [record for record, *_ in looked_at if record]


def _indices(path):
  try:
    return decode.indices(path.read_bytes())
  except decode.NotIndices as error:
    raise UserError(
      f'{path} is {error}; a mask has one index of a class per pixel: save it '
      'as PNG with a palette or of 8-bit grey'
    ) from error


def labels_in(mask, classes: int) -> bytes:
  """The classes of a mask's pixels, for `Record.label`."""
  found = np.zeros(IGNORED + 1, bool)
  for row in mask:  # one at a time: as indices, pixels take eight bytes
    found[row] = True
  return bytes(np.flatnonzero(found[:classes]).tolist())


def mask_classes(classes) -> tuple[str, ...]:
  """The names as a tuple; UserError if there are none or too many."""
  if not 1 <= len(classes) <= IGNORED:
    raise UserError(
      f'{len(classes)} classes; masks can have 1 to {IGNORED} of them'
    )
  return tuple(classes)


def picture_and_mask(record, classes: int) -> tuple[bytes, np.ndarray] | None:
  """(encoded picture, uint8 [h, w], 255 for no class); None if unreadable."""
  try:
    picture, mask = _read(record.picture), record.mask
    labels = mask() if callable(mask) else _indices(mask)
  except (OSError, decode.Undecodable):
    return None
  known = (labels >= 0) & (labels < classes)
  return picture, np.where(known, labels, IGNORED).astype(np.uint8)
