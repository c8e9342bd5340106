"""Encoded pictures of any kind -> uint8 arrays of one size, on the host.

Pillow decodes; simplejpeg and OpenCV were at most a seventh faster.
"""

import contextlib
import io
import math
import os

import numpy as np
import PIL.Image

from fastsnn_jax.errors import told

# Of the official ImageNet training (reference behaviour C4.2): share of the
# area, width over height, and draws before the fallback.
AREA, ASPECT, ATTEMPTS = (0.1, 1.0), (0.8, 1.25), 100

# How many times larger than wanted a JPEG that is decoded at 1/2, 1/4 or 1/8
# stays. On 2000 × 1500 pixels that takes 2/3 of the time; the result differs by
# 0.6 of 255 on average.
_SPARE = 2

# What is opened, by content and by name. Pillow knows more, some of which start
# programs (EPS).
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.png', '.webp', '.bmp', '.gif'),
  *('.tif', '.tiff', '.ppm', '.pgm'),
)
PIXELS = 2**30 // 12  # the most of a picture; from here on Pillow warns
_TURNS = {  # EXIF's orientation -> what undoes it
  2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
  3: PIL.Image.Transpose.ROTATE_180,
  4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
  5: PIL.Image.Transpose.TRANSPOSE,
  6: PIL.Image.Transpose.ROTATE_270,
  7: PIL.Image.Transpose.TRANSVERSE,
  8: PIL.Image.Transpose.ROTATE_90,
}

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def cores() -> int:
  """How many this process may use; a container may allow few of many."""
  allowed = getattr(os, 'sched_getaffinity', None)  # on Linux
  return len(allowed(0)) if allowed else os.cpu_count() or 1


class Undecodable(Exception):
  """The bytes are no picture, or a damaged one."""


class NotIndices(Exception):
  """A picture, but not one of indices; its text says of what kind it is."""


def random_box(width: int, height: int, uniform) -> Box:
  """A random part of a picture, for training, in whole pixels.

  Its area is uniform in `AREA`, the logarithm of its aspect in `ASPECT`, its
  place uniform; what does not fit is drawn again by `uniform()`, 4 numbers in
  [0, 1). After `ATTEMPTS` it is the largest centred part of an allowed aspect.
  """
  low, high = map(math.log, ASPECT)
  for _ in range(ATTEMPTS):
    area, aspect, x, y = uniform()
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * width * height
    aspect = math.exp(low + (high - low) * aspect)
    w = max(round(math.sqrt(area * aspect)), 1)
    h = max(round(math.sqrt(area / aspect)), 1)
    if w <= width and h <= height:
      left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
      return left, top, left + w, top + h
  w = max(min(width, round(height * ASPECT[1])), 1)
  h = max(min(height, round(width / ASPECT[0])), 1)
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def centre_box(width: int, height: int, size: int) -> Box:
  """The part that evaluation sees, in fractions of pixels.

  As if the shorter side were resized to `size * 256 / 224`, rounded, and the
  square of `size` pixels in the centre cut out.
  """
  short = round(size * 256 / 224)

  def side(length):
    resized = max(round(length * short / min(width, height)), short)
    first = (resized - size) // 2
    return first * length / resized, (first + size) * length / resized

  (left, right), (top, bottom) = side(width), side(height)
  return left, top, right, bottom


def resized(encoded: bytes, size: int, box_of=lambda w, h: (0, 0, w, h)):
  """A part of a picture as uint8 [size, size, 3], anti-aliased and bilinear.

  All kinds become RGB (transparency is dropped), of animations the first frame
  counts. `box_of` gives the part of (width, height), turned by EXIF as here all
  pictures are.
  """
  with _opened(encoded) as (image, mark):
    full = image.size
    box = box_of(*_turned_size(full, mark))
    shrink, side = 1, min(box[2] - box[0], box[3] - box[1])
    while shrink < 8 and side >= 2 * shrink * _SPARE * size:
      shrink *= 2
    if shrink > 1:
      image.draft(None, (image.width // shrink, image.height // shrink))
    if image.size == full:  # it is no JPEG
      shrink = 1
    box = tuple(x / shrink for x in box)
    # Cropping and resizing without the copy between.
    image = _turned(_rgb(image), mark).resize(
      (size, size), PIL.Image.BILINEAR, box=box
    )
    return np.asarray(image)


def whole(encoded: bytes, channels: int | None = None) -> np.ndarray:
  """A picture as it is, uint8 [height, width, 3 or 1 if it is grey].

  `channels` of 3 makes a grey one RGB; a coloured one always keeps its colours.
  """
  with _opened(encoded) as (image, mark):
    grey = image.mode in ('1', 'L') or image.mode.startswith('I')
    array = np.asarray(_turned(_rgb(image), mark))
  return array[..., :1] if grey and channels != 3 else array


def indices(encoded: bytes) -> np.ndarray:
  """The numbers in a PNG with a palette or of 8-bit grey, uint8 [h, w].

  Grey of fewer bits is refused: readers spread it over 0 to 255, so its writer
  may have meant either number.
  """
  with _opened(encoded) as (image, mark):
    bits = encoded[24] if image.format == 'PNG' else 0  # of its header
    if not bits:
      raise NotIndices(f'a {image.format}')
    if image.mode != 'P' and (image.mode, bits) != ('L', 8):
      kind = 'grey' if image.mode in ('1', 'L', 'I;16', 'I') else image.mode
      raise NotIndices(f'a PNG of {bits}-bit {kind}')
    return np.asarray(_turned(image, mark))


def index_png(array) -> bytes:
  """A PNG of 8-bit grey with the numbers [height, width], 0 to 255."""
  stream = io.BytesIO()
  PIL.Image.fromarray(np.asarray(array).astype(np.uint8)).save(stream, 'PNG')
  return stream.getvalue()


def size_of(picture) -> tuple[int, int]:
  """(width, height) of a picture, a path or bytes, from its header."""
  with _opened(picture) as (image, mark):
    return _turned_size(image.size, mark)


@contextlib.contextmanager
def _opened(picture):
  """Gives a Pillow image, its pixels not yet read, and `_orientation` of it."""
  file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
  try:
    with PIL.Image.open(file, formats=FORMATS) as image:
      if math.prod(image.size) > PIXELS:
        width, height = image.size
        raise ValueError(f'{width} x {height} pixels, more than {PIXELS:,}')
      yield image, _orientation(image)
  except (MemoryError, NotIndices):
    raise
  except Exception as error:
    # Pillow's plugins have no common exception: OSError, SyntaxError,
    # ValueError, struct.error, DecompressionBombError and others.
    reason = told(error)
    raise Undecodable(reason) from error


def _orientation(image):
  """EXIF's mark from 1, upright, to 8."""
  try:
    # A PNG's own `getexif` decodes the pixels, in case there is some behind.
    mark = PIL.Image.Image.getexif(image).get(0x0112)
  except Exception:  # as above; the picture may still be good
    return 1
  if mark not in _TURNS:
    return 1
  if image.format == 'TIFF':  # Pillow turns these itself
    image.load()
    return 1
  return mark


def _turned(image, mark):
  return image.transpose(_TURNS[mark]) if mark > 1 else image


def _turned_size(size, mark):
  return size[::-1] if mark > 4 else size


def _rgb(image):
  if image.mode == 'RGB':
    return image
  if image.mode == 'F':
    raise ValueError('the range of floating-point pixels is not known')
  if image.mode.startswith('I'):  # 16 bits, which `convert` would cut off
    array = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
    image = PIL.Image.fromarray(array.astype(np.uint8))
  elif image.mode == 'P' and 'transparency' in image.info:
    image = image.convert('RGBA')  # straight to RGB, Pillow would warn
  return image.convert('RGB')
