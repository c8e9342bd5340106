"""Pictures with boxes or masks in COCO's layout: a JSON of annotations a split.

DIR/annotations/instances_SPLIT.json and the pictures in DIR/SPLIT/.
"""

import json
import math
import pathlib

from fastsnn_jax.data import decode, records
from fastsnn_jax.data.readers import coco_outlines, text
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
CROWDS = ('background', 'ignored')
_KEYS = ('images', 'annotations', 'categories')


def has_annotations(directory) -> bool:
  """Whether a directory, or COCO in it, has annotations to train on.

  >>> has_annotations('.')
  False
  """
  directory = pathlib.Path(directory).expanduser()
  return any(_annotations(x, TRAIN) for x in (directory / 'COCO', directory))


def read_boxes(directory, classes=None) -> records.Records:
  """Reads the annotations of both splits; the pictures stay where they are.

  COCO itself: trains on train2017, tests on val2017. Any other directory: the
  first split of `TRAIN` and the first of `TEST` with annotations in one of the
  files `ANNOTATIONS`. A picture is looked for in `PICTURES`.

  Crowds and images without objects are kept. Boxes to train on are a pixel
  shorter than annotated, as the official code has them (reference behaviour
  D6, D-Q21): x2 = min(W - 1, x1 + max(0, w - 1)); those to test on are as
  annotated.

  Args:
    directory: in that layout, or with COCO in it.
    classes: names; if not given, those of the training split's categories in
      the order of their ids. Case does not matter; the test split's categories
      are found by name, for its ids may be others.

  Raises:
    UserError: another layout, annotations that are not COCO's, or a split of
      which nothing can be read.
  """

  def record(picture, size, said, items, numbers, repairs, training):
    if said != size:
      repairs['said_size'].append(str(picture))
    objects = [_object(item) for item in items]
    return records.with_boxes(
      picture, size, objects, numbers, repairs, short=training
    )

  def names_of(categories):
    names = {}
    for _, name in sorted(categories.items()):
      names.setdefault(name.lower(), name)
    return names.values()

  return _read(directory, classes, names_of, _without_outline, record)


def read_masks(
  directory, classes=None, *, crowd: str = 'background'
) -> records.Records:
  """Reads outlines, which are painted to a mask when it is asked for.

  Labels are 0 for the background and 1 more than the place in the list of
  categories for what is on it. Of objects that overlap, the later one in the
  file is on top. Left out are, as in the official code (reference behaviour
  S5.2), objects marked `ignore`, with a box beside the picture or a side below
  1, and with no area. Images without objects are kept.

  Args:
    directory: as for `read_boxes`.
    classes: names, without the background; if not given, those of the training
      split's categories, in the order of its list. Case does not matter.
    crowd: what crowds are: 'background', as in the official code; or 'ignored',
      where no other object is.

  Raises:
    UserError: another layout, annotations that are not COCO's, a split of which
      nothing can be read, no pycocotools, another `crowd`.
  """
  if crowd not in CROWDS:
    raise UserError(f'crowd is {crowd!r}; choose one of {", ".join(CROWDS)}')
  coco_outlines.pycocotools()

  def record(picture, size, said, items, numbers, repairs, _):
    if said != size:
      sizes = f'{said[0]} x {said[1]} and not {size[0]} x {size[1]}'
      repairs['mask_size'].append(f'{picture}, {sizes}')
      return None
    shapes = []
    for item in items:
      number = numbers.get(item['name'].lower())
      repair = _flaw(item, number, size, crowd)
      if repair:
        repairs[repair].append(_where(item))
      if repair in (None, 'crowd_ignored'):
        label = number + 1 if repair is None else records.IGNORED
        shapes.append((label, item['segmentation']))
    # Crowds lie below the others.
    shapes.sort(key=lambda shape: shape[0] != records.IGNORED)
    mask = coco_outlines.Outlines(size, tuple(shapes))
    return records.Record(picture, size, _labels(mask), mask=mask)

  background = ('background',)
  return _read(
    directory, classes, dict.values, _with_outline, record, background
  )


def _read(directory, classes, names_of, hook, record, background=()):
  """Both splits; `record` makes one of a picture and its annotations."""
  base, splits = _locate(directory)
  repairs, parts = records.new_repairs(), []
  for split, path in splits:
    data = _load(path, hook)
    categories = {
      _id(item, 'id'): str(item.get('name', item['id'])).strip()
      for item in data['categories']
      if 'id' in item
    }
    classes = tuple(names_of(categories) if classes is None else classes)
    shown = (*background, *classes)
    if background:
      records.mask_classes(shown)
    numbers = records.class_numbers(classes)
    part = [
      record(*picture, numbers, repairs, not parts)
      for picture in _pictures(base, split, path, data, categories, repairs)
    ]
    parts.append([item for item in part if item])
    records.check(parts[-1], shown, path, LAYOUT, repairs)
  return records.Records(*parts, shown, repairs)


def _annotations(base, splits):
  """The first (split, path of its annotations), or None."""
  for split in splits:
    for form in ANNOTATIONS:
      path = base / form.format(split)
      if path.is_file():
        return split, path
  return None


def _locate(directory):
  """Where the set is, [(split, annotations) of train, the same of test]."""
  directory = pathlib.Path(directory).expanduser()
  base = directory / 'COCO'
  if not _annotations(base, TRAIN):
    base = directory
  splits = []
  for purpose, names in (('train', TRAIN), ('test', TEST)):
    splits.append(_annotations(base, names))
    if not splits[-1]:
      forms = ' or '.join(form.format('SPLIT') for form in ANNOTATIONS)
      raise UserError(
        f'{base} has no annotations to {purpose} on, {forms} with SPLIT one of '
        f'{", ".join(names)}; arrange it as {LAYOUT}'
      )
  return base, splits


def _load(path, hook):
  """The annotations of a split; `hook` changes each object of the JSON."""
  content = text.read(path)
  try:
    data = json.loads(content, object_hook=hook)
  except (ValueError, RecursionError) as error:
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


def _without_outline(entry):
  """Outlines are most of the file; they need not pile up."""
  entry.pop('segmentation', None)
  return entry


def _with_outline(entry):
  if 'segmentation' in entry:
    entry['segmentation'] = coco_outlines.parse(entry['segmentation'])
  return entry


def _pictures(base, split, path, data, categories, repairs):
  """Yields (path, size, size as annotated, annotations) of what can be read."""
  annotations = {_id(entry, 'id'): [] for entry in data['images']}
  for item in data['annotations']:
    item['path'] = path
    item['name'] = categories.get(_id(item, 'category_id'), '')
    image = _id(item, 'image_id')
    if image in annotations:
      annotations[image].append(item)
    else:
      repairs['stray'].append(_where(item))
  folders = [base / form.format(split) for form in PICTURES]
  for entry in data['images']:
    name = str(entry.get('file_name', ''))
    paths = (folder / name for folder in folders)
    picture = next((x for x in paths if x.is_file()), None)
    if picture is None:
      repairs['gone'].append(name or f'{path}, image {_id(entry, "id")}')
      continue
    try:
      width, height = size = decode.size_of(picture)
    except decode.Undecodable:
      repairs['unreadable'].append(str(picture))
      continue
    said = entry.get('width') or width, entry.get('height') or height
    yield picture, size, said, annotations[_id(entry, 'id')]


def _id(entry, key):
  return entry.get(key)


def _where(item):
  return f'{item["path"]}, annotation {_id(item, "id")}'


def _object(item):
  area = item.get('area')
  x, y, width, height = _box(item) or (math.nan,) * 4
  return records.Object(
    item['name'],
    (x, y, x + width, y + height),
    crowd=bool(item.get('iscrowd')),
    area=area if isinstance(area, int | float) else None,
  )


def _box(item):
  """(x, y, width, height), or None where there are no four numbers."""
  try:
    x, y, width, height = map(float, item.get('bbox'))
  except (TypeError, ValueError):
    return None
  return x, y, width, height


def _flaw(item, number, size, crowd):
  """Why an annotation is no object in a mask: a repair, or None.

  A crowd to be ignored is painted: `crowd_ignored` is told of it.
  """
  if number is None:
    return 'unknown'
  if item.get('iscrowd') and crowd == 'background':
    return 'crowd'
  if _skipped(item, size):
    return 'skipped'
  outline = item.get('segmentation')
  if outline is None or (
    isinstance(outline, dict) and outline['size'] != size[::-1]
  ):
    return 'no_outline'
  return 'crowd_ignored' if item.get('iscrowd') else None


def _skipped(item, size):
  """Whether the official code leaves an annotation out, but for crowds."""
  area = item.get('area')
  if item.get('ignore') or (isinstance(area, int | float) and area <= 0):
    return True
  box = _box(item)
  if box is None:
    return False  # the outline says where it is
  beside = (
    min(place + side, length) <= max(place, 0)
    for place, side, length in zip(box[:2], box[2:], size, strict=True)
  )
  return min(box[2:]) < 1 or any(beside)


def _labels(mask):
  """As `records.labels_in`, but painted only where all may be ignored."""
  labels = {label for label, _ in mask.shapes}
  if labels == {records.IGNORED}:
    return records.labels_in(mask(), records.IGNORED)
  return bytes(sorted({0, *labels} - {records.IGNORED}))
