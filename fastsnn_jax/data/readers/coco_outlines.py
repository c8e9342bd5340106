"""Outlines of COCO's annotations, painted to a mask.

pycocotools paints polygons in place of the official code's OpenCV, which cuts
coordinates to integers and fills the border too: masks differ by pixels at the
borders of objects.
"""

import math
from typing import NamedTuple

import numpy as np

from fastsnn_jax.errors import UserError

_FAR = 1e5  # pixels; pycocotools walks along each edge


class Outlines(NamedTuple):
  """The mask of a picture, painted at each call: uint8 [height, width].

  Attributes:
    size: (width, height).
    shapes: (label, outline) each, the later ones over the earlier; an outline
      is what `parse` gives.
  """

  size: tuple[int, int]
  shapes: tuple[tuple[int, list[np.ndarray] | dict], ...]

  def __call__(self) -> np.ndarray:
    width, height = self.size
    result = np.zeros((height, width), np.uint8)
    for label, outline in self.shapes:
      result[_inside(outline, width, height)] = label
    return result


def pycocotools():
  """Its module for masks; UserError if it is not installed."""
  try:
    from pycocotools import mask
  except ImportError as error:
    raise UserError(
      f"masks from COCO's outlines need pycocotools ({error}); install it "
      "with: pip install 'fastsnn_jax[detection]'"
    ) from error
  return mask


def parse(value):
  """An outline as pycocotools may be given it: it trusts numbers blindly.

  A list of polygons (x, y, x, y, …) gives arrays, which take a quarter of the
  room; {'size': (height, width), 'counts': runs, as a list or in COCO's code}
  gives one with an array of counts. What is neither gives None.
  """
  try:
    if isinstance(value, dict):
      return _parse_runs(**value)
    polygons = [np.array(polygon, np.float64) for polygon in value]
  except (TypeError, ValueError, OverflowError):
    return None
  good = [
    polygon
    for polygon in polygons
    if polygon.ndim == 1
    and polygon.size >= 6
    and polygon.size % 2 == 0
    and (np.abs(polygon) < _FAR).all()
  ]
  return good or None


def _parse_runs(size, counts, **_):
  size = tuple(int(side) for side in size)
  if isinstance(counts, str):
    counts = decode_runs(counts)
  counts = np.array(counts, np.int64)
  if counts.ndim != 1 or (counts < 0).any() or counts.sum() != math.prod(size):
    return None
  return {'size': size, 'counts': counts.astype(np.uint32)}


def decode_runs(text: str) -> np.ndarray:
  """COCO's run-length code as an array of runs.

  Six bits a character, from '0' on: five of the number, the low ones first, and
  one that says whether it goes on. From the fourth number on it is the
  difference to the last but one. (pycocotools' own decoder makes NumPy 2 warn,
  which threads cannot silence.)

  Raises:
    ValueError: other characters, or a number of more than 60 bits.

  >>> decode_runs('0h0').tolist()
  [0, 24]
  """
  bits = np.frombuffer(text.encode('latin-1'), np.uint8).astype(np.int64) - 48
  ends = np.flatnonzero(bits & 32 == 0)
  lengths = np.diff(ends, prepend=-1)
  if lengths.max(initial=0) > 12:
    raise ValueError('a run of more than 60 bits')
  bits = bits[: lengths.sum()]
  place = 5 * (np.arange(len(bits)) - np.repeat(ends - lengths + 1, lengths))
  values = np.zeros(len(ends), np.int64)
  np.add.at(
    values, np.repeat(np.arange(len(ends)), lengths), (bits & 31) << place
  )
  values -= np.where(bits[ends] & 16, 1, 0) << (5 * lengths)
  for first in (1, 2):
    values[first::2] = np.cumsum(values[first::2])
  return values


def _inside(outline, width, height):
  """bool [height, width], as pycocotools' `annToMask`."""
  if isinstance(outline, dict):
    counts = outline['counts']
  else:
    coder = pycocotools()
    code = coder.merge(coder.frPyObjects(outline, height, width))
    counts = decode_runs(code['counts'].decode())
  runs = np.arange(len(counts)) % 2 == 1
  return np.repeat(runs, counts).reshape(width, height).T
