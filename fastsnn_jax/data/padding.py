"""Squares that pictures of any size are padded to, for segmentation.

At the bottom and on the right, as the reference does (spec segmentation §4).
"""

import numpy as np

from fastsnn_jax.errors import UserError


def fitting_size(largest: int, stride: int) -> int:
  """The least side S >= largest with S = 1 modulo the stride.

  A network that halves sides to (S - 1) / stride + 1 and enlarges its answer so
  that corners meet gives S pixels again only then (spec segmentation §1.4).

  >>> fitting_size(500, 16), fitting_size(513, 16), fitting_size(514, 16)
  (513, 513, 529)
  """
  return -(-(largest - 1) // stride) * stride + 1


def fill_of(mean) -> tuple[int, ...]:
  """The colour to pad with, 255 times the mean and rounded, for it is uint8.

  >>> fill_of((0.485, 0.456, 0.406))
  (124, 116, 104)
  """
  return tuple(round(255 * x) for x in mean)


def side_for(records, stride: int, size: int | None = None) -> int:
  """The side of the squares that these pictures are padded to.

  Args:
    records: of all splits.
    stride: of the network.
    size: that is wanted; None for the least one that fits.

  Raises:
    UserError: a size that is not 1 modulo the stride, or less than a picture's.
  """
  if size is None:
    return fitting_size(max(max(x.size) for x in records), stride)
  check_stride(size, stride)
  check_size(records, size, stride)
  return size


def check_stride(size: int, stride: int) -> None:
  """Raises UserError if a side is not 1 modulo the stride."""
  if size < 1 or (size - 1) % stride:
    raise UserError(
      f'size={size} does not fit the stride of the network, {stride}; a side '
      'must be 1 more than a multiple of it, such as '
      f'{fitting_size(max(size, 1), stride)}'
    )


def check_size(records, size: int, stride: int = 1) -> None:
  """Raises UserError, with the least size that fits, if a picture is larger."""
  largest = max(records, key=lambda x: max(x.size))
  if max(largest.size) > size:
    width, height = largest.size
    least = fitting_size(max(largest.size), stride)
    raise UserError(
      f'size={size}: {largest.picture} has {width} x {height} pixels, and '
      f'pictures are padded, not resized; the least size that fits is {least}'
    )


def padded(array, size: int, fill) -> np.ndarray:
  """A picture or mask at the top left of a square; the rest is filled.

  Args:
    array: uint8 [h, w, …], h and w at most `size`.
    size: side of the square.
    fill: broadcasts to a pixel.

  Returns:
    uint8 [size, size, …].

  >>> padded(np.array([[1, 2]], np.uint8), 3, 9).tolist()
  [[1, 2, 9], [9, 9, 9], [9, 9, 9]]
  """
  result = np.empty((size, size, *array.shape[2:]), np.uint8)
  result[:] = fill
  result[: array.shape[0], : array.shape[1]] = array
  return result
