"""Masks from the outlines of COCO's annotations, painted when they are read.

Files as in `coco`. pycocotools paints polygons in place of the reference's
OpenCV, which cuts coordinates to integers and fills the border too: masks
differ by pixels at the borders of objects.
"""

import math
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data import boxed, masked
from fastsnn_jax.data.readers import coco
from fastsnn_jax.errors import UserError

CROWDS = ('background', 'ignored')
_FAR = 1e5  # pixels; pycocotools walks along each edge


class Outlines(NamedTuple):
  """The mask of a picture, painted at each call: int [height, width].

  Attributes:
    size: (width, height).
    shapes: (label, outline) each, the later ones over the earlier; an outline
      is a list of polygons (x, y, x, y, …), or a run-length code.
  """

  size: tuple[int, int]
  shapes: tuple[tuple[int, list[np.ndarray] | dict], ...]

  def __call__(self) -> np.ndarray:
    width, height = self.size
    result = np.zeros((height, width), np.uint8)
    for label, outline in self.shapes:
      result[_inside(outline, width, height)] = label
    return result


def read(directory, classes=None, *, crowd='background') -> masked.Masked:
  """Reads the annotations of both splits; the pictures stay where they are.

  Labels are 0 for the background and 1 more than the place in the list of
  categories for what is on it. Of objects that overlap, the later one in the
  file is on top. Left out are, as in the reference (spec segmentation §5.2),
  objects marked `ignore`, with a box beside the picture or a side below 1, and
  with no area. Images without objects are kept.

  Args:
    directory: as for `coco.read`.
    classes: names, without the background; if not given, those of the training
      split's categories, in the order of its list. Case does not matter.
    crowd: what crowds are: 'background', as in the reference; or 'ignored',
      where no other object is.

  Raises:
    UserError: another layout, annotations that are not COCO's, a split of which
      nothing can be read, no pycocotools, another `crowd`.
  """
  if crowd not in CROWDS:
    raise UserError(f'crowd is {crowd!r}; choose one of {", ".join(CROWDS)}')
  _coder()
  base, splits = coco.locate(directory)
  repairs = masked.new_repairs()
  parts = []
  for split, path in splits:
    data = coco.load(path, _compact)
    if classes is None:
      classes = coco.categories(data).values()
    classes = tuple(classes)
    masked.check_classes(('background', *classes))
    shapes = _shapes(data, path, boxed.index(classes), crowd, repairs)
    records = _records(base, split, data, shapes, repairs)
    masked.check(records, path, coco.LAYOUT, repairs)
    parts.append(records)
  return masked.Masked(*parts, ('background', *classes), repairs)


def _coder():
  try:
    from pycocotools import mask
  except ImportError as error:
    raise UserError(
      f"masks from COCO's outlines need pycocotools ({error}); install it "
      "with: pip install 'fastsnn_jax[detection]'"
    ) from error
  return mask


def _inside(outline, width, height):
  """bool [height, width], as pycocotools' `annToMask`."""
  if isinstance(outline, dict):
    counts = outline['counts']
  else:
    coder = _coder()
    code = coder.merge(coder.frPyObjects(outline, height, width))
    # Its own decoder makes NumPy 2 warn, which threads cannot silence.
    counts = _decoded(code['counts'].decode())
  runs = np.arange(len(counts)) % 2 == 1
  return np.repeat(runs, counts).reshape(width, height).T


def _shapes(data, path, numbers, crowd, repairs):
  """{image id: [(is a crowd, label, outline, where)]}."""
  names = coco.categories(data)
  sizes = {item.get('id'): item for item in data['images']}
  shapes = {key: [] for key in sizes}
  for item in data['annotations']:
    where = f'{path}, annotation {item.get("id")}'
    image = sizes.get(item.get('image_id'))
    name = names.get(item.get('category_id'), '').lower()
    crowded = bool(item.get('iscrowd'))
    if image is None:
      repairs['stray'].append(where)
    elif name not in numbers:
      repairs['unknown'].append(where)
    elif crowded and crowd == 'background':
      repairs['crowd'].append(where)
    else:
      if crowded:
        repairs['crowd_ignored'].append(where)
      label = masked.IGNORED if crowded else numbers[name] + 1
      shapes[image.get('id')].append((crowded, label, item, where))
  return shapes


def _records(base, split, data, shapes, repairs):
  result = []
  for entry, path, size in coco.pictures(base, split, data):
    if path is None:
      repairs['unreadable'].append(str(entry.get('file_name')))
      continue
    said = coco.said_size(entry, size)
    if said != size:
      where = f'{path}, {said[0]} x {said[1]} and not {size[0]} x {size[1]}'
      repairs['resized'].append(where)
      continue
    kept = []
    for crowded, label, item, where in shapes[entry.get('id')]:
      outline = item.get('segmentation')
      if _skipped(item, size):
        repairs['skipped'].append(where)
      elif outline is None or _misfit(outline, size):
        repairs['no_outline'].append(where)
      else:
        kept.append((crowded, label, outline))
    kept.sort(key=lambda shape: not shape[0])  # crowds lie below the others
    outlines = Outlines(size, tuple(shape[1:] for shape in kept))
    result.append(masked.Record(path, outlines, size, _labels(outlines)))
  return result


def _labels(outlines):
  """As `masked.labels_in`, but painted only where all may be ignored."""
  labels = {label for label, _ in outlines.shapes}
  if labels == {masked.IGNORED}:
    return masked.labels_in(outlines(), masked.IGNORED)
  return bytes(sorted({0, *labels} - {masked.IGNORED}))


def _skipped(item, size):
  """Whether the reference leaves an annotation out, but for crowds."""
  area = item.get('area')
  if item.get('ignore') or (isinstance(area, int | float) and area <= 0):
    return True
  try:
    x, y, width, height = map(float, item.get('bbox'))
  except (TypeError, ValueError):
    return False  # the outline says where it is
  beside = (
    min(place + side, length) <= max(place, 0)
    for place, side, length in zip((x, y), (width, height), size, strict=True)
  )
  return min(width, height) < 1 or any(beside)


def _misfit(outline, size):
  return isinstance(outline, dict) and tuple(outline['size']) != size[::-1]


def _compact(entry):
  """Outlines as arrays, which take a quarter of the room of lists."""
  if 'segmentation' in entry:
    try:
      entry['segmentation'] = _outline(entry['segmentation'])
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
      entry['segmentation'] = None
  return entry


def _outline(found):
  """What pycocotools may be given: it trusts lengths and numbers blindly."""
  if isinstance(found, dict):
    counts = found['counts']
    counts = _decoded(counts) if isinstance(counts, str) else counts
    counts = np.array(counts, np.int64)
    size = [int(side) for side in found['size']]
    if (
      counts.ndim != 1 or (counts < 0).any() or counts.sum() != math.prod(size)
    ):
      return None
    return {'size': size, 'counts': counts.astype(np.uint32)}
  polygons = [np.array(polygon, np.float64) for polygon in found]
  good = [
    polygon
    for polygon in polygons
    if polygon.ndim == 1
    and polygon.size >= 6
    and polygon.size % 2 == 0
    and (np.abs(polygon) < _FAR).all()
  ]
  return good or None


def _decoded(text):
  """COCO's run-length code as a list of runs.

  Six bits a character, from '0' on: five of the number, the low ones first, and
  one that says whether it goes on. From the fourth number on it is the
  difference to the last but one.

  >>> _decoded('0h0')
  [0, 24]
  """
  result, value, shift = [], 0, 0
  for character in text:
    bits = ord(character) - 48
    value |= (bits & 31) << shift
    shift += 5
    if bits & 32:
      continue
    if bits & 16:
      value -= 1 << shift
    result.append(value + result[-2] if len(result) > 2 else value)
    value, shift = 0, 0
  return result
