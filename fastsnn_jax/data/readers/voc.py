"""Pictures with boxes in VOC's layout: VOCdevkit, or any directory like it.

DIR/Annotations/NAME.xml, DIR/JPEGImages/NAME.jpg, DIR/ImageSets/Main/SPLIT.txt.
"""

import collections
import math
import pathlib
from xml.etree import ElementTree

from fastsnn_jax.data import boxed, decode
from fastsnn_jax.errors import UserError

CLASSES = (
  *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat'),
  *('chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person'),
  *('pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
SUFFIXES = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')
LAYOUT = 'Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/*.txt'
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read(directory, classes=None) -> boxed.Boxed:
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
    names = (item.name for *_, objects in found[0] for item in objects)
    spelt = {name.lower(): name for name in names if name}
    classes = known or sorted(spelt.values())
  numbers = boxed.index(classes)
  train, test = (
    [boxed.record(*item, numbers, repairs, whole=True) for item in items]
    for items in found
  )
  for records, ((root, name), *_) in ((train, splits[0]), (test, splits[1])):
    where = root / 'ImageSets' / 'Main' / f'{name}.txt'
    boxed.check(records, classes, where, LAYOUT)
  return boxed.Boxed(train, test, tuple(classes), repairs)


def _splits(directory):
  """(((root, split), …) of train and of test), classes that are known."""
  for base in (directory / 'VOCdevkit', directory):
    years = [base / f'VOC{year}' for year in (2007, 2012)]
    if years[0].is_dir():
      train = [(year, 'trainval') for year in years if year.is_dir()]
      return (train, [(years[0], 'test')]), CLASSES
  names = directory / 'classes.txt'
  known = distinct(lines(names), names) if names.is_file() else ()
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
  """Yields (path, size, [`boxed.Found`]) of what can be read."""
  listed = root / 'ImageSets' / 'Main' / f'{split}.txt'
  if not listed.is_file():
    raise UserError(f'{listed}: no such file; arrange {root} as {LAYOUT}')
  for line in lines(listed):
    # VOC's own lists of a class have a mark behind the name.
    names = (line, line.split()[0])
    try:
      name, path = next(
        (name, path)
        for name in names
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
      boxed.Found(
        (node.findtext('name') or '').strip(),
        [_number(node, f'bndbox/{corner}') - 1 for corner in _CORNERS],
        difficult=_number(node, 'difficult') == 1,
      )
      for node in tree.iter('object')
    ]
    yield path, size, objects


def lines(path) -> list[str]:
  """The lines of a text file with something in them, without spaces around.

  Raises:
    UserError: it is not UTF-8.
  """
  try:
    text = path.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise UserError(
      f'{path} is not UTF-8 (byte {error.start}); write it again as UTF-8'
    ) from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def distinct(names, path) -> tuple[str, ...]:
  """The names of classes, if no two are the same.

  >>> distinct(['cat', 'dog'], 'classes.txt')
  ('cat', 'dog')
  """
  for i, name in enumerate(names):
    if name in names[:i]:
      raise UserError(
        f'{path}: classes {names.index(name)} and {i} are both {name!r}; give '
        'each a name of its own'
      )
  return tuple(names)


def _number(node, path):
  """The number that stands there, or NaN."""
  try:
    return float(node.findtext(path, 'nan'))
  except ValueError:
    return math.nan
