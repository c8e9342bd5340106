"""COCO's layout: DIR/annotations/instances_SPLIT.json, pictures in DIR/SPLIT/.

Outlines are painted by pycocotools. The official code's OpenCV cuts coordinates
to integers and fills the border too: masks differ by pixels at the borders.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data import decode, records
from fastsnn_jax.data.readers import finder, text
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
BACKGROUND = 'background'  # label 0 of masks
CROWDS = ('background', 'ignored')
_KEYS = ('images', 'annotations', 'categories')
# Pixels: the farthest corner and the longest outline, for pycocotools walks
# along each edge.
_FAR, _LONG = 1e5, 1e6


def has_annotations(directory) -> bool:
  """Whether a directory, or COCO in it, has annotations to train on."""
  return bool(_annotations(_base(directory), TRAIN))


def read_boxes(directory) -> records.Records:
  """Reads the annotations of both splits; the pictures stay where they are.

  Crowds and images without objects are kept. Boxes to train on are a pixel
  shorter than annotated, as the official code has them (reference behaviour D6,
  D-Q21). Classes are the training split's categories in the order of their ids;
  those of the test split are found by name, in any case.
  """

  def thing(item):
    x, y, width, height = _box(item)
    corners, crowd = (x, y, x + width, y + height), item['iscrowd']
    area = text.number(item.get('area'))
    return records.Object(item['name'], corners, False, crowd, area)

  def record(picture, size, said, items, numbers, repairs, training):
    if not (said := records.size_said(picture, size, said, repairs)):
      return None
    what = picture, size, list(map(thing, items)), numbers, repairs
    return records.with_boxes(*what, said=said, short=training)

  return _read(directory, record)


def read_masks(directory, *, crowd: str = 'background') -> records.Records:
  """Reads outlines, which are painted to a mask when it is asked for.

  Labels are 0 for the background and 1 more than the place in the training
  split's list of categories; later objects are on top. Left out are, as in the
  official code (reference behaviour S5.2), objects marked `ignore`, with a box
  beside the picture or a side below 1. (It leaves out those with an `area` of 0
  too, which exporters write who know no area.) So are crowds, or with
  `crowd='ignored'` their pixels are ignored where no other object is.
  """
  if crowd not in CROWDS:
    raise UserError(f'crowd is {crowd!r}; choose one of {", ".join(CROWDS)}')
  _pycocotools()

  def record(picture, size, said, items, numbers, repairs, _):
    if said != size:
      repairs['mask_size'].append(f'{picture}, {records.sizes(said, size)}')
      return None
    shapes = []
    for item in items:
      label = numbers.get(records.spelt(item['name']))
      if repair := _flaw(item, label, size, crowd):
        repairs[repair].append(_where(item))
      if repair == 'crowd_ignored':  # crowds lie below the others
        shapes.insert(0, (records.IGNORED, item['segmentation']))
      elif not repair:
        shapes.append((label, item['segmentation']))
    mask = Outlines(size, tuple(shapes))
    labels = {0, *(label for label, _ in shapes)} - {records.IGNORED}
    shown = bytes(sorted(labels))
    if shapes and labels == {0}:  # crowds, which may hide all of the background
      shown = records.labels_in(mask(), records.IGNORED)
    return records.Record(picture, size, shown, mask=mask)

  return _read(directory, record, masks=True)


def _read(directory, record, masks=False):
  """Both splits; `record` makes one of a picture and its annotations."""
  base, repairs, parts = _base(directory), records.new_repairs(), []
  for purpose, splits in (('train', TRAIN), ('test', TEST)):
    split, path = _annotations(base, splits) or (None, None)
    if path is None:
      forms = ' or '.join(form.format('SPLIT') for form in ANNOTATIONS)
      raise UserError(
        f'{base} has no annotations to {purpose} on, {forms} with SPLIT one of '
        f'{", ".join(splits)}; arrange it as {LAYOUT}'
      )
    data = _load(path, masks)
    categories = _categories(path, data)
    if not parts:
      listed = list(categories.items())
      if not masks:
        listed.sort(key=lambda x: (isinstance(x[0], str), x[0]))
      classes = tuple(name for _, name in listed)
      records.check_names(path, classes)
      if masks:
        others = (x for x in classes if records.spelt(x) != BACKGROUND)
        classes = records.mask_classes((BACKGROUND, *others))
    numbers = records.class_numbers(classes)
    pictures = _pictures(base, split, path, data, categories, repairs)
    part = (record(*x, numbers, repairs, purpose == 'train') for x in pictures)
    parts.append([x for x in part if x])
    # A background is all that is left where no object can be used.
    bare = masks and not all(x['iscrowd'] for x in data['annotations'])
    shown = [x for x in parts[-1] if not bare or set(x.label) != {0}]
    records.check(shown, classes, path, LAYOUT, repairs)
  return records.checked(parts, classes, repairs)


def _base(directory):
  """COCO in a directory, or else the directory."""
  directory = pathlib.Path(directory).expanduser()
  inside = directory / 'COCO'
  return inside if _annotations(inside, TRAIN) else directory


def _annotations(base, splits):
  """The first (split, path of its annotations), or None."""
  paths = ((x, base / form.format(x)) for x in splits for form in ANNOTATIONS)
  return next((found for found in paths if found[1].is_file()), None)


def _load(path, masks):
  def hook(entry):
    outline = entry.pop('segmentation', None)  # most of the file
    if masks and outline is not None:
      entry['segmentation'] = parse(outline)
    return entry

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


def _categories(path, data):
  """{id: name}; UserError if an id has two names."""
  result = {}
  for entry in data['categories']:
    if (number := text.identity(entry.get('id'))) is None:
      continue
    name = str(entry.get('name') or number).strip()
    if result.setdefault(number, name) != name:
      raise UserError(
        f'{path}: the categories {result[number]!r} and {name!r} have one id, '
        f'{number!r}; give each an id of its own'
      )
  return result


def _pictures(base, split, path, data, categories, repairs):
  """Yields (path, size, size as annotated, annotations) of what can be read."""
  entries, annotations = {}, {}
  for entry in data['images']:
    name = str(entry.get('file_name') or '')
    number = text.identity(entry.get('id'))
    if number is None:
      repairs['no_id'].append(name or f'{path}, image {entry.get("id")}')
    elif number in entries:
      raise UserError(
        f'{path}: the images {entries[number][0]!r} and {name!r} have one id, '
        f'{number!r}; give each an id of its own, as its annotations need it'
      )
    else:
      entries[number], annotations[number] = (name, entry), []
  seen = set()
  for item in data['annotations']:
    item['path'], item['iscrowd'] = path, text.flag(item.get('iscrowd'))
    item['name'] = categories.get(text.identity(item.get('category_id')), '')
    number = text.identity(item.get('id'))
    if number in seen:
      repairs['same_id'].append(_where(item))
    seen |= {number} - {None}
    mine = annotations.get(text.identity(item.get('image_id')))
    if mine is None:
      repairs['stray'].append(_where(item))
    else:
      mine.append(item)
  folders = [base / form.format(split) for form in PICTURES]
  find = finder.Finder()
  for number, (name, entry) in entries.items():
    found = (find(folder, name) for folder in folders)
    if not (picture := next(filter(None, found), None)):
      kind = 'gone' if not name or finder.inside(name) else 'astray'
      repairs[kind].append(name or f'{path}, image {number}')
      continue
    try:
      size = decode.size_of(picture)
    except decode.Undecodable:
      repairs['unreadable'].append(str(picture))
      continue
    said = tuple(text.number(entry.get(side)) for side in ('width', 'height'))
    if not all(0 < x < math.inf for x in said):
      said = size
    yield picture, size, said, annotations[number]


def _where(item):
  return f'{item["path"]}, annotation {item.get("id")}'


def _box(item):
  """(x, y, width, height), NaN where there are no four numbers."""
  box = item.get('bbox')
  if not isinstance(box, list) or len(box) != 4:
    return (math.nan,) * 4
  return tuple(map(text.number, box))


def _flaw(item, number, size, crowd):
  """The repair of what is no object in a mask, or ignored; else None."""
  if number is None:
    return 'unknown'
  if item['iscrowd'] and crowd == 'background':
    return 'crowd'
  x, y, width, height = _box(item)  # where it is NaN, the outline decides
  if (
    text.flag(item.get('ignore'))
    or min(x + width, size[0]) <= max(x, 0)
    or min(y + height, size[1]) <= max(y, 0)
    or min(width, height) < 1
  ):
    return 'skipped'
  outline = item.get('segmentation')
  coded = outline['size'] if isinstance(outline, dict) else size[::-1]
  if outline is None or coded != size[::-1]:
    return 'no_outline'
  return 'crowd_ignored' if item['iscrowd'] else None


class Outlines(NamedTuple):
  """The mask of a picture, painted at each call: uint8 [height, width].

  `shapes` are (label, what `parse` gives) each, the later over the earlier.
  """

  size: tuple[int, int]
  shapes: tuple[tuple[int, list[np.ndarray] | dict], ...]

  def __call__(self) -> np.ndarray:
    width, height = self.size
    result = np.zeros((height, width), np.uint8)
    for label, outline in self.shapes:
      if isinstance(outline, dict):
        counts = outline['counts']
      else:
        coder = _pycocotools()
        code = coder.merge(coder.frPyObjects(outline, height, width))
        counts = decode_runs(code['counts'].decode())
      inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
      result[inside.reshape(width, height).T] = label
    return result


def _pycocotools():
  try:
    from pycocotools import mask
  except ImportError as error:
    raise UserError(
      f"masks from COCO's outlines need pycocotools ({error}); install it "
      "with: pip install 'fastsnn_jax[detection]'"
    ) from error
  return mask


def parse(value):
  """An outline as pycocotools may be given it, for it trusts numbers blindly.

  Polygons (x, y, x, y, …) become arrays; {'size': (height, width), 'counts':
  runs, as a list or in COCO's code} gets an array of counts. Others give None.
  """
  try:
    if isinstance(value, dict):
      size, runs = tuple(map(int, value['size'])), value['counts']
      runs = decode_runs(runs) if isinstance(runs, str) else runs
      runs = np.array(runs, np.int64)
      pixels = math.prod(size)
      if runs.ndim != 1 or runs.min() < 0 or runs.max() > pixels:
        return None
      if runs.sum() != pixels:
        return None
      return {'size': size, 'counts': runs.astype(np.uint32)}
    if not any(isinstance(x, list) and len(x) > 2 for x in value):
      value = [value]  # one polygon, of numbers or of points
    lines = [np.array(polygon, np.float64) for polygon in value]
  except (KeyError, TypeError, ValueError, OverflowError):
    return None
  lines = [x.ravel() if x.shape[1:] == (2,) else x for x in lines]
  lines = [x for x in lines if x.ndim == 1 and len(x) >= 6 and not len(x) % 2]
  return [x for x in lines if _can_be_walked(x)] or None


def _can_be_walked(line):
  if not (np.abs(line) < _FAR).all():
    return False
  edges = np.abs(np.diff(line.reshape(-1, 2), axis=0))
  return edges.max(1).sum() < _LONG


def decode_runs(text: str) -> np.ndarray:
  """COCO's run-length code as an array of runs.

  Six bits a character, from '0' on: five of the number, the low ones first, and
  one that says whether it goes on. From the fourth number on it is the
  difference to the last but one. (pycocotools' decoder makes NumPy 2 warn and
  reads beyond runs that are too short.)
  """
  runs, value, place = [], 0, 0
  for byte in text.encode('latin-1'):
    bits = byte - 48
    value, place = value | (bits & 31) << place, place + 5
    if place > 60:
      raise ValueError('a run of more than 60 bits')
    if not bits & 32:
      value -= (bits & 16 > 0) << place
      runs.append(value + (runs[-2] if len(runs) > 2 else 0))
      value, place = 0, 0
  return np.array(runs, np.int64)
