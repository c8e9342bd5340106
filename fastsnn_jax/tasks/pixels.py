"""The one check of raw images, wherever they come in."""

import warnings

import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import PixelsWarning, UserError


def as_array(images) -> np.ndarray:
  """[B, H, W, C] or [H, W, C], on the host."""
  try:
    array = np.asarray(images)
  except (TypeError, ValueError) as error:
    raise UserError(f'images make no array ({error})') from error
  if array.ndim not in (3, 4) or 0 in array.shape[-3:]:
    what = f'shape {array.shape}' if array.ndim else type(images).__name__
    raise UserError(
      f'images of {what}, but they must be [B, H, W, C], or one [H, W, C]'
    )
  return array


class Pixels:
  """The one check of raw images: finite numbers of 0 to 255, on the host.

  It is called with a batch after the other of one set of images and gives them
  back. uint8 costs nothing, others a look at the least and the largest value
  (NumPy's, which keeps NaN; XLA's on a CPU may lose it). Floats of which none
  is above 1 are taken for shares of 255, with a warning; the first that are not
  all 0 decide it for the set.

  UserError for other values or another type.
  """

  def __init__(self):
    self._scale = None  # until it is known

  def __call__(self, *batches) -> list[np.ndarray]:
    found = [_range(x) for x in batches if x.size and x.dtype != np.uint8]
    high = max((high for _, high, real in found if real), default=0)
    if self._scale is None and high:
      self._scale = 255 if high <= 1 else 1
      if self._scale > 1:
        warnings.warn(
          f'images: floats of which none is above {high:.4g} are taken for '
          'shares of 255; give uint8, or floats of 0 to 255',
          PixelsWarning,
          stacklevel=3,
        )
    elif high > 1 and self._scale == 255:
      raise UserError(
        f'images: floats up to {high:.4g} behind others of which none is above '
        '1; give all as uint8, or as floats of 0 to 255'
      )
    if self._scale != 255:
      return list(batches)
    return [x * x.dtype.type(255) if _is_real(x) else x for x in batches]


def _range(images):
  """(least, largest value, whether these are floats)."""
  real = _is_real(images)
  if not (real or np.issubdtype(images.dtype, np.integer)):
    raise UserError(
      f'images of dtype {images.dtype}, but they must be uint8 or floats, with '
      'pixels of 0 to 255'
    )
  low, high = images.min(), images.max()
  if not (low >= 0 and high <= 255):  # nor if one is not a number
    raise UserError(
      f'images of shape {images.shape} with values from {low} to {high}; they '
      'must have pixels, of 0 to 255: not normalised, which the network does '
      'itself; divide those of 16 bits by 257'
    )
  return low, float(high), real


def _is_real(images):
  return jnp.issubdtype(images.dtype, jnp.floating)  # bfloat16 too
