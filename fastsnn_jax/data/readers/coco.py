"""Pictures with boxes in COCO's layout: one JSON of annotations a split.

DIR/annotations/instances_SPLIT.json and the pictures in DIR/SPLIT/.
"""

import collections
import json
import math
import pathlib

from fastsnn_jax.data import boxed, decode
from fastsnn_jax.errors import UserError

# In this order; the first for which there are annotations.
TRAIN = ('train2017', 'train')
TEST = ('val2017', 'test', 'val', 'valid', 'validation')
ANNOTATIONS = (
  'annotations/instances_{}.json',
  'annotations/{}.json',
  '{}/_annotations.coco.json',
)
PICTURES = ('{}', 'images/{}', 'images', '.')
LAYOUT = (
  'annotations/instances_train2017.json and instances_val2017.json (or _train '
  'and _test, _val), their pictures in train2017/ and val2017/'
)
_KEYS = ('images', 'annotations', 'categories')


def read(directory, classes=None, *, exact=False) -> boxed.Boxed:
  """Reads the annotations of both splits; the pictures stay where they are.

  COCO itself: trains on train2017, tests on val2017. Any other directory: the
  first split of `TRAIN` and the first of `TEST` with annotations in one of the
  files `ANNOTATIONS`. A picture is looked for in `PICTURES`.

  Crowds and images without objects are kept. Boxes to train on are a pixel
  shorter than annotated, as the reference has them (spec §6, Q21):
  x2 = min(W - 1, x1 + max(0, w - 1)); those to test on are as annotated.

  Args:
    directory: in that layout, or with COCO in it.
    classes: names; if not given, those of the training split's categories in
      the order of their ids. Case does not matter; the test split's categories
      are found by name, for its ids may be others.
    exact: boxes to train on as annotated, too.

  Raises:
    UserError: another layout, annotations that are not COCO's, or a split of
      which nothing can be read.
  """
  base, splits = locate(directory)
  repairs = collections.Counter()
  train, test = (load(path) for _, path in splits)
  if classes is None:
    names = {}
    for _, name in sorted(categories(train).items()):
      names.setdefault(name.lower(), name)
    classes = names.values()
  classes = tuple(classes)
  numbers = boxed.index(classes)
  records = []
  for data, (split, path), short in (
    (train, splits[0], not exact),
    (test, splits[1], False),
  ):
    part = [
      boxed.record(*item, numbers, repairs, short=short)
      for item in _pictures(base, split, data, repairs)
    ]
    boxed.check(part, classes, path, LAYOUT)
    records.append(part)
  return boxed.Boxed(*records, classes, repairs)


def found(directory) -> bool:
  """Whether a directory, or COCO in it, has annotations to train on.

  >>> found('.')
  False
  """
  directory = pathlib.Path(directory).expanduser()
  return any(_annotations(x, TRAIN) for x in (directory / 'COCO', directory))


def _annotations(base, splits):
  """The first (split, path of its annotations), or None."""
  for split in splits:
    for form in ANNOTATIONS:
      path = base / form.format(split)
      if path.is_file():
        return split, path
  return None


def locate(directory):
  """Where the set is, ((split, annotations) of train, the same of test).

  Raises:
    UserError: there are no annotations of one of the splits.
  """
  directory = pathlib.Path(directory).expanduser()
  base = directory / 'COCO'
  if not _annotations(base, TRAIN):
    base = directory
  splits = [_annotations(base, names) for names in (TRAIN, TEST)]
  for there, purpose, names in zip(
    splits, ('train', 'test'), (TRAIN, TEST), strict=True
  ):
    if not there:
      forms = ' or '.join(form.format('SPLIT') for form in ANNOTATIONS)
      raise UserError(
        f'{base} has no annotations to {purpose} on, {forms} with SPLIT one of '
        f'{", ".join(names)}; arrange it as {LAYOUT}'
      )
  return base, splits


def load(path, hook=None):
  """The annotations of a split.

  Args:
    path: of the JSON.
    hook: what to make of each object in it; None leaves the outlines out.

  Raises:
    UserError: it cannot be read, or is something else.
  """
  try:
    with open(path, encoding='utf-8-sig') as file:
      data = json.load(file, object_hook=hook or _lean)
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f'{path} cannot be read ({" ".join(str(error).split())}); it must be '
      "JSON in COCO's format, so write or download it anew"
    ) from error
  for key in _KEYS:
    part = data.get(key) if isinstance(data, dict) else None
    if not isinstance(part, list) or not all(isinstance(x, dict) for x in part):
      raise UserError(
        f"{path} has no list of objects {key!r}; COCO's format for detection "
        f'has {", ".join(_KEYS)}, so choose its file instances_*.json'
      )
  return data


def _lean(entry):
  """Outlines are most of the file; they need not pile up."""
  entry.pop('segmentation', None)
  return entry


def categories(data) -> dict:
  """{id: name}, in the order in which they are listed."""
  return {
    item['id']: str(item.get('name', item['id'])).strip()
    for item in data['categories']
    if 'id' in item
  }


def _pictures(base, split, data, repairs):
  """Yields (path, size, [`boxed.Found`]) of what can be read."""
  names = categories(data)
  objects = {item.get('id'): [] for item in data['images']}
  for item in data['annotations']:
    if item.get('image_id') not in objects:
      repairs['stray'] += 1
      continue
    area = item.get('area')
    objects[item['image_id']].append(
      boxed.Found(
        names.get(item.get('category_id'), ''),
        _corners(item.get('bbox')),
        crowd=bool(item.get('iscrowd')),
        area=area if isinstance(area, int | float) else None,
      )
    )
  for item, path, size in pictures(base, split, data):
    if path is None:
      repairs['unreadable'] += 1
      continue
    repairs['resized'] += said_size(item, size) != size
    yield path, size, objects[item.get('id')]


def pictures(base, split, data):
  """Yields (entry, path, size) of all images; None for what cannot be read."""
  folders = [base / form.format(split) for form in PICTURES]
  for item in data['images']:
    try:
      name = item['file_name']
      path = next(x for folder in folders if (x := folder / name).is_file())
      size = decode.size_of(path)
    except (KeyError, TypeError, StopIteration, decode.Undecodable):
      path = size = None
    yield item, path, size


def said_size(item, size):
  """(width, height) as an image's entry says, as it is where that is silent."""
  return item.get('width') or size[0], item.get('height') or size[1]


def _corners(box):
  """COCO's (x, y, width, height) -> (x1, y1, x2, y2), NaN for what is none."""
  try:
    x, y, width, height = map(float, box)
  except (TypeError, ValueError):
    return (math.nan,) * 4
  return x, y, x + width, y + height
