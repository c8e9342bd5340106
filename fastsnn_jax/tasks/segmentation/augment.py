"""What is done to images with masks on the device: scale, pad, crop, mirror."""

import fractions

import jax
import jax.numpy as jnp

from fastsnn_jax.data.image_ops import bilinear, resample, row_keys
from fastsnn_jax.data.records import IGNORED
from fastsnn_jax.errors import UserError

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def augment_masks(key, batch, *, side, fill, scales=SCALES, flip=True):
  """The official augmentation of images and their masks, one key an image.

  With s one of the scales, each as likely as the others, an image of W times H
  becomes one of W' = int(s W) times H' = int(s H), bilinear, half-pixel, no
  antialias; its mask is read at floor(x W / W'), the nearest pixel to OpenCV.
  Both are padded on the right and at the bottom to at least `side`; a square of
  `side` is cut out at int((max(W', side) - side) r), r uniform in 0..1, and for
  rows likewise; half of the squares are mirrored. (Reference behaviour S3.1;
  normalise afterwards.)

  Args:
    key: one, into which the rows' numbers are folded, or [B], one a row.
    batch: dict with 'image' [B, H, W, 3], in 0..255; 'label' [B, H, W], uint8
      or int32; and, where images are smaller than their arrays and lie at the
      top left, 'size' [B, 2], (W, H). Other entries pass through.
    side: of the squares. Static under `jit`, as all that follow.
    fill: 255 times the mean, to pad images with; masks are padded with 255.
    scales: positive numbers.
    flip: whether to mirror.

  Returns:
    The dict with 'image' float32 [B, side, side, 3], 'label' [B, side, side] in
    its dtype and, if it was there, 'size' (side, side).

  Raises:
    UserError: another shape or number of keys, a side or scale that is not > 0.

  >>> images, label = jnp.ones((2, 8, 9, 3)), jnp.ones((2, 8, 9), jnp.uint8)
  >>> batch = {'image': images, 'label': label}
  >>> new = augment_masks(jax.random.key(0), batch, side=16, fill=(0, 0, 0))
  >>> new['image'].shape, new['label'].shape
  ((2, 16, 16, 3), (2, 16, 16))
  """
  images, label = batch['image'], batch['label']
  if images.ndim != 4 or label.shape != images.shape[:3]:
    raise UserError(
      f'images have shape {images.shape} and label {label.shape}; '
      'augment_masks takes [B, H, W, C] and [B, H, W]'
    )
  rows, height, width, channels = images.shape
  fill = jnp.asarray(fill, jnp.float32)
  if fill.shape != (channels,):
    raise UserError(
      f'fill has shape {fill.shape} for images of shape {images.shape}; give '
      'one number for each channel'
    )
  if not scales or min(scales) <= 0 or side < 1:
    raise UserError(
      f'scales={scales}, side={side}: at least one scale, all above 0, and a '
      'side of 1 or more are needed'
    )
  keys = row_keys(key, rows)
  draws = jax.vmap(lambda k: jax.random.uniform(k, (4,)))(keys)
  size = batch.get('size', jnp.tile(jnp.array([width, height]), (rows, 1)))
  choice = jnp.floor(draws[:, 0] * len(scales)).astype(jnp.int32)
  # As fractions, for what is int(s W) must not hang on the rounding of s.
  exact = [fractions.Fraction(s).limit_denominator(1000) for s in scales]
  factor = jnp.array([(s.numerator, s.denominator) for s in exact])[choice].T
  mirrored = draws[:, 3] < (0.5 if flip else 0)
  upright = jnp.zeros_like(mirrored)
  x, columns, across = _axis(
    draws[:, 1], factor, size[:, 0], mirrored, side, width
  )
  y, lines, down = _axis(draws[:, 2], factor, size[:, 1], upright, side, height)
  inside = down[:, :, None] & across[:, None]
  images = resample(images, lines, columns)
  images = jnp.where(inside[..., None], images, fill)
  label = jnp.take_along_axis(label, y[:, :, None], 1)
  label = jnp.take_along_axis(label, x[:, None], 2)
  label = jnp.where(inside, label, jnp.asarray(IGNORED, label.dtype))
  new = {**batch, 'image': images, 'label': label}
  if 'size' in batch:
    new['size'] = jnp.full_like(size, side)
  return new


def _axis(draw, factor, length, mirrored, side, places):
  """(nearest pixels [B, side], weights [B, side, places], whether in the scaled
  image [B, side]) along an axis: images of `length` [B], scaled by factor[0] /
  factor[1], in an array of `places`."""
  length = jnp.maximum(length.astype(jnp.int32), 1)
  new = jnp.maximum(length * factor[0] // factor[1], 1)
  room = jnp.maximum(new - side, 0)
  offset = jnp.floor(room * draw).astype(jnp.int32)
  length, new = length[:, None], new[:, None]
  at = jnp.arange(side)
  at = jnp.where(mirrored[:, None], at[::-1], at) + offset[:, None]
  nearest = jnp.clip(at * length // new, 0, length - 1)
  # Twice the place in the image, times the new length.
  place = jnp.clip((2 * at + 1) * length - new, 0, (length - 1) * 2 * new)
  return nearest, bilinear(place, 2 * new, places), at < new
