"""Pictures with boxes in VOC's layout: VOCdevkit, or any directory like it.

DIR/Annotations/NAME.xml, DIR/JPEGImages/NAME.jpg, DIR/ImageSets/Main/SPLIT.txt.
Real annotations are not clean: what can be mended is, what cannot is left out,
and both are counted.
"""

import collections
import math
import pathlib
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.errors import UserError

CLASSES = (
  *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat'),
  *('chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person'),
  *('pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
SUFFIXES = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')
LAYOUT = 'Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/*.txt'
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')

# What was found wrong -> what was done about it.
REPAIRS = {
  'unreadable': 'images left out: no picture, or no annotation to read',
  'bare': 'images without objects, kept as such',
  'resized': 'images of another size than their annotation says; it is ignored',
  'unknown': 'objects of an unknown class left out',
  'no_box': 'objects without four coordinates left out',
  'fractional': 'boxes with fractions of pixels, kept as they are',
  'swapped': 'boxes with their corners swapped, put right',
  'outside': 'boxes that reach beyond the image, cut off',
  'empty': 'boxes of no size left out',
}


class Record(NamedTuple):
  """One picture and its objects.

  Attributes:
    path: of the picture.
    size: (width, height) in pixels.
    boxes: float32 [n, 4], (x1, y1, x2, y2) in shares of the picture.
    label: int32 [n], indices of classes.
    difficult: bool [n].
  """

  path: pathlib.Path
  size: tuple[int, int]
  boxes: np.ndarray
  label: np.ndarray
  difficult: np.ndarray


class Voc(NamedTuple):
  """Both splits, the names of the classes, and {repair: how often}."""

  train: list[Record]
  test: list[Record]
  classes: tuple[str, ...]
  repairs: collections.Counter


def read(directory, classes=None) -> Voc:
  """Reads the annotations of both splits; the pictures stay where they are.

  VOCdevkit: trains on trainval of 2007 and of 2012, tests on test of 2007. Any
  other directory: trainval and test, or without a test.txt train and val.
  Corners are pixels counted from 1, so that a share is (x - 1) / width.

  Args:
    directory: in that layout, or with VOC2007 (and VOC2012) or VOCdevkit in it.
    classes: names; if not given, a line each of DIR/classes.txt, or VOC's own
      for VOCdevkit, or else all names of the training split, sorted. Case does
      not matter.

  Raises:
    UserError: another layout, or a split of which nothing can be read.
  """
  splits, known = _splits(pathlib.Path(directory).expanduser())
  repairs = collections.Counter()
  found = [
    [item for root, name in parts for item in _annotations(root, name, repairs)]
    for parts in splits
  ]
  if classes is None:
    names = (name for _, _, objects in found[0] for name, _, _ in objects)
    spelt = {name.lower(): name for name in names if name}
    classes = known or sorted(spelt.values())
  index = {name.strip().lower(): i for i, name in enumerate(classes)}
  train, test = (
    [_record(*item, index, repairs) for item in items] for items in found
  )
  for records, parts in ((train, splits[0]), (test, splits[1])):
    if not any(len(record.label) for record in records):
      raise UserError(
        f'{parts[0][0]}: no object of the classes {list(classes)[:5]} in '
        f'{parts[0][1]}.txt; a split needs pictures with annotations ({LAYOUT})'
      )
  return Voc(train, test, tuple(classes), repairs)


def warnings(repairs) -> list[str]:
  """A line for each kind of repair.

  >>> warnings({'empty': 2})
  ['2 boxes of no size left out']
  """
  return [
    f'{repairs[key]} {REPAIRS[key]}' for key in REPAIRS if repairs.get(key)
  ]


def arrays(records, size: int, *, difficult: bool = True, places=None):
  """Records as arrays, the pictures squashed to a square.

  Args:
    records: of a split.
    size: side in pixels.
    difficult: keep difficult objects; training leaves them out.
    places: objects there is room for, G; None for the most that a picture has.

  Returns:
    {'image': uint8 [N, size, size, 3], 'boxes': float32 [N, G, 4], 'label':
    int32 [N, G], -1 where there is no object, 'difficult': bool [N, G],
    'size': int32 [N, 2], (width, height)}.

  Raises:
    UserError: a picture that cannot be decoded, or with more than G objects.
  """
  keep = [
    np.full(len(r.label), True) if difficult else ~r.difficult for r in records
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
    'image': np.zeros((count, size, size, 3), np.uint8),
    'boxes': np.zeros((count, places, 4), np.float32),
    'label': np.full((count, places), -1, np.int32),
    'difficult': np.zeros((count, places), bool),
    'size': np.array([r.size for r in records], np.int32).reshape(-1, 2),
  }
  for i, (record, kept) in enumerate(zip(records, keep, strict=True)):
    result['image'][i] = _picture(record.path, size)
    for key in ('boxes', 'label', 'difficult'):
      values = getattr(record, key)[kept]
      result[key][i, : len(values)] = values
  return result


def _picture(path, size):
  try:
    return decode.resized(
      path.read_bytes(), size, lambda width, height: (0, 0, width, height)
    )
  except (OSError, decode.Undecodable) as error:
    raise UserError(
      f'{path} cannot be decoded ({error}); replace it, or take its name out '
      'of ImageSets/Main'
    ) from error


def _splits(directory):
  """(((root, split), …) of train and of test), classes that are known."""
  for base in (directory / 'VOCdevkit', directory):
    years = [base / f'VOC{year}' for year in (2007, 2012)]
    if years[0].is_dir():
      train = [(year, 'trainval') for year in years if year.is_dir()]
      return (train, [(years[0], 'test')]), CLASSES
  names = directory / 'classes.txt'
  known = names.read_text().split('\n') if names.is_file() else []
  known = tuple(name.strip() for name in known if name.strip())
  lists = directory / 'ImageSets' / 'Main'
  for train, test in (
    ('trainval', 'test'),
    ('train', 'test'),
    ('train', 'val'),
  ):
    if all((lists / f'{name}.txt').is_file() for name in (train, test)):
      return ([(directory, train)], [(directory, test)]), known
  raise UserError(
    f'{directory} has neither VOC2007 nor ImageSets/Main with trainval.txt and '
    f'test.txt (or train.txt and val.txt); arrange it as {LAYOUT}'
  )


def _annotations(root, split, repairs):
  """Yields (path, size, [(class, corners, difficult)]) of what can be read."""
  listed = root / 'ImageSets' / 'Main' / f'{split}.txt'
  if not listed.is_file():
    raise UserError(f'{listed}: no such file; arrange {root} as {LAYOUT}')
  for line in listed.read_text().splitlines():
    if not line.strip():
      continue
    name = line.split()[0]
    try:
      path = next(
        path
        for suffix in SUFFIXES
        if (path := root / 'JPEGImages' / (name + suffix)).is_file()
      )
      size = decode.size_of(path)
      tree = ElementTree.parse(root / 'Annotations' / f'{name}.xml')
    except (StopIteration, decode.Undecodable, OSError, ElementTree.ParseError):
      repairs['unreadable'] += 1
      continue
    said = [_number(tree, f'size/{side}') for side in ('width', 'height')]
    repairs['resized'] += any(
      value not in (0, real) and not math.isnan(value)
      for value, real in zip(said, size, strict=True)
    )
    objects = [
      (
        (node.findtext('name') or '').strip(),
        [_number(node, f'bndbox/{corner}') for corner in _CORNERS],
        _number(node, 'difficult') == 1,
      )
      for node in tree.iter('object')
    ]
    repairs['bare'] += not objects
    yield path, size, objects


def _number(node, path):
  """The number that stands there, or NaN."""
  try:
    return float(node.findtext(path, 'nan'))
  except ValueError:
    return math.nan


def _record(path, size, objects, index, repairs):
  boxes, label, difficult = [], [], []
  scale = np.array([*size, *size], np.float64)
  for name, corners, hard in objects:
    if name.lower() not in index:
      repairs['unknown'] += 1
      continue
    corners = np.array(corners)
    if not np.isfinite(corners).all():
      repairs['no_box'] += 1
      continue
    repairs['fractional'] += bool(np.any(corners % 1))
    low, high = (
      np.minimum(*corners.reshape(2, 2)),
      np.maximum(*corners.reshape(2, 2)),
    )
    ordered = np.concatenate([low, high])
    repairs['swapped'] += bool(np.any(ordered != corners))
    box = (ordered - 1) / scale
    inside = np.clip(box, 0, 1)
    repairs['outside'] += bool(np.any(inside != box))
    if np.any(inside[2:] <= inside[:2]):
      repairs['empty'] += 1
      continue
    boxes.append(inside)
    label.append(index[name.lower()])
    difficult.append(hard)
  return Record(
    path,
    size,
    np.array(boxes, np.float32).reshape(-1, 4),
    np.array(label, np.int32),
    np.array(difficult, bool),
  )
