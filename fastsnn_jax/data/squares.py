"""Records as arrays: pictures brought to squares of one size.

Those with boxes are squashed, those with masks padded at the bottom and on the
right, as in the official code (reference behaviour S4).
"""

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data import records as rec
from fastsnn_jax.data.dataset import check_room
from fastsnn_jax.errors import UserError


def box_labels(records, *, difficult: bool = True) -> dict[str, np.ndarray]:
  """The labels of N records; training leaves difficult objects out.

  [N, G, 4] 'boxes', [N, G] 'label' (-1 where there is no object), 'difficult',
  'crowd' and 'area' in pixels, [N, 2] 'size' (width, height); G is the most
  objects of a picture.
  """
  rows = [record.difficult <= difficult for record in records]
  shape = len(records), max([1, *(int(row.sum()) for row in rows)])
  result = {
    'boxes': np.zeros((*shape, 4), np.float32),
    'label': np.full(shape, -1, np.int32),
    'difficult': np.zeros(shape, bool),
    'crowd': np.zeros(shape, bool),
    'area': np.zeros(shape, np.float32),
  }
  for key, values in result.items():
    for i, row in enumerate(rows):
      values[i, : row.sum()] = getattr(records[i], key)[row]
  return result | {'size': _sizes(records)}


def _sizes(records):
  return np.array([x.size for x in records], np.int32).reshape(-1, 2)


def box_arrays(
  records, size: int, *, difficult: bool = True, repairs=None
) -> dict[str, np.ndarray]:
  """`box_labels`, and 'image' uint8 [N, S, S, 3], squashed to S = `size`.

  Pictures that turn out to be damaged are left out and counted in `repairs`.
  """
  _check_room(records, (size, size, 3))
  images = np.zeros((len(records), size, size, 3), np.uint8)

  def put(i):
    images[i] = decode.resized(rec.encoded(records[i].picture), size)

  labels = box_labels(records, difficult=difficult)
  return _good(put, records, {'image': images, **labels}, repairs)


def mask_arrays(
  records, size: int, fill, *, classes: int, repairs
) -> dict[str, np.ndarray]:
  """Pictures and masks of N records at the top left of squares of S = `size`.

  Those that turn out to be damaged are left out and counted in `repairs`. The
  result is {'image': uint8 [N, S, S, 3], the rest `fill`; 'label': uint8 [N, S,
  S], the rest 255; 'size': int32 [N, 2], (width, height)}.
  """
  _check_room(records, (size, size, 4))
  images = np.empty((len(records), size, size, 3), np.uint8)
  labels = np.empty((len(records), size, size), np.uint8)

  def put(i):
    """Raises if one is not as it was before."""
    picture, label = rec.picture_and_mask(records[i], classes) or (b'', None)
    image = decode.whole(picture, 3)
    if not image.shape[1::-1] == label.shape[::-1] == records[i].size:
      raise decode.Undecodable('another size')
    images[i] = padded(image, size, fill)
    labels[i] = padded(label, size, rec.IGNORED)

  arrays = {'image': images, 'label': labels, 'size': _sizes(records)}
  return _good(put, records, arrays, repairs)


def _check_room(records, shape):
  remedy = 'add --data.stream, or choose a smaller size'
  check_room(len(records), shape, f'{len(records)} pictures', remedy)


def _good(put, records, arrays, repairs):
  """The rows of `arrays` whose `put` finds no damage; the rest is counted."""

  def works(i):
    try:
      put(i)
    except decode.Undecodable:
      return False
    return True

  good = np.array(rec.in_threads(works, range(len(records))), bool)
  if good.all():
    return arrays
  damaged = [str(records[i].picture) for i in np.flatnonzero(~good)]
  if repairs is None:
    raise UserError(
      f'{rec.shown(damaged[0])} cannot be decoded; replace it or leave it out'
    )
  if not good.any():
    raise UserError(
      f'none of {len(records)} pictures can be decoded (first: '
      f'{rec.shown(damaged[0])}); look at the files, or write them anew'
    )
  repairs['unreadable'] += damaged
  return {key: value[good] for key, value in arrays.items()}


def fitting_size(largest: int, stride: int) -> int:
  """The least side S >= largest with S = 1 modulo the stride.

  A network that halves sides to (S - 1) / stride + 1 and enlarges its answer so
  that corners meet gives S pixels again only then (reference behaviour S1.4).

  >>> fitting_size(500, 16), fitting_size(513, 16), fitting_size(514, 16)
  (513, 513, 529)
  """
  return -(-(largest - 1) // stride) * stride + 1


def fill_of(mean) -> tuple[int, ...]:
  """The colour to pad with, 255 times the mean, rounded to uint8."""
  return tuple(round(255 * x) for x in mean)


def side_for(records, stride: int, size: int | None = None) -> int:
  """The side to pad to: `size`, if it fits, or None for the least that fits."""
  largest = max(records, key=lambda x: max(x.size))
  (width, height), least = largest.size, fitting_size(max(largest.size), stride)
  if size is None:
    return least
  check_stride(size, stride)
  if size < least:
    raise UserError(
      f'size={size}: {largest.picture} has {width} x {height} pixels, and '
      f'pictures are padded, not resized; the least size that fits is {least}'
    )
  return size


def check_stride(size: int, stride: int) -> None:
  """Raises UserError if a side is not 1 modulo the stride."""
  if size < 1 or (size - 1) % stride:
    raise UserError(
      f'size={size} does not fit the stride of the network, {stride}; give 1 '
      f'more than a multiple, such as {fitting_size(max(size, 1), stride)}'
    )


def padded(array, size: int, fill) -> np.ndarray:
  """A picture or mask at the top left of a square; the rest is filled."""
  result = np.full((size, size, *array.shape[2:]), fill, np.uint8)
  result[: array.shape[0], : array.shape[1]] = array
  return result
