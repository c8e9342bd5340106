"""What is done to images with boxes on the device: colours, crop, mirror."""

import functools

import jax
import jax.numpy as jnp

from fastsnn_jax.data.image_ops import bilinear, resample, row_keys
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.boxes import iou

# Least overlaps of the six modes; 0 is a free crop, None the whole picture.
_MODES = (0.1, 0.3, 0.7, 0.9, 0.0, None)
_ROUNDS, _TRIES = 8, 50
_CROP = _ROUNDS * (1 + 4 * _TRIES)  # numbers drawn for one
_BRIGHTNESS = 32.0  # grey levels
_CONTRAST = _SATURATION = 0.5  # factors 0.5 to 1.5
_HUE = 18.0  # degrees
_TINY = float(jnp.finfo(jnp.float32).eps)


def augment_boxes(
  key, batch, *, crop=True, flip=True, distort=1.0, true_overlap=False
):
  """The official augmentation of images with boxes, one key an image.

  In this order: `distort_colors`; a random crop; a mirror image with
  probability 1/2; the crop resized to the image's side, bilinear, half-pixel,
  no antialias. (Reference behaviour D4, steps 3 to 7, which has the law of the
  crops; normalise afterwards.)

  Args:
    key: one, into which the rows' numbers are folded, or [B], one a row.
    batch: dict with 'image' [B, S, S, 3], RGB in 0..255, squashed to a square;
      'boxes' [B, G, 4], (x1, y1, x2, y2) in shares of it; 'label' [B, G], -1
      where there is no object; and if known 'size' [B, 2], (W, H) before it was
      squashed. Other entries pass through.
    crop, flip: whether to. Static under `jit`, as all that follow.
    distort: strength of the changes of colour; 0 for none.
    true_overlap: whether the modes' least overlaps reject crops (D-Q6).

  Returns:
    The dict with a new 'image', float32 and not clipped to 0..255, 'boxes' and
    'label'; objects that went have label -1 and box 0. 'size' stays.

  Raises:
    UserError: another shape, another number of keys, distort outside 0..2.

  >>> boxes, label = jnp.array([[[0.2, 0.2, 0.6, 0.8]]]), jnp.array([[3]])
  >>> images = jnp.zeros((1, 8, 8, 3), jnp.uint8)
  >>> batch = {'image': images, 'boxes': boxes, 'label': label}
  >>> new = jax.jit(augment_boxes)(jax.random.key(0), batch)
  >>> new['image'].shape, new['label'].tolist()
  ((1, 8, 8, 3), [[3]])
  """
  images, boxes, label = (batch[name] for name in ('image', 'boxes', 'label'))
  rows, side = images.shape[:2]
  if images.shape != (rows, side, side, 3):
    raise UserError(
      f'images have shape {images.shape}; augment_boxes takes squares in RGB, '
      '[B, S, S, 3]'
    )
  if boxes.shape != (*label.shape, 4) or len(label) != rows:
    raise UserError(
      f'boxes have shape {boxes.shape} and label {label.shape} for {rows} '
      'images; [B, G, 4] and [B, G] are needed'
    )
  # All of a row at once: what a step draws does not hang on another's being on.
  keys = row_keys(key, rows)
  draws = jax.vmap(lambda k: jax.random.uniform(k, (9 + _CROP,)))(keys)
  images = distort_colors(draws[:, :8].reshape(rows, 2, 4), images, distort)
  mirrored = draws[:, 8] < (0.5 if flip else 0)
  real = label >= 0
  if crop:
    # Rows that fill up a batch may have size 0.
    size = jnp.asarray(batch.get('size', jnp.full((rows, 2), side)), jnp.int32)
    size = jnp.maximum(size, 1)
    cut = jax.vmap(functools.partial(_crop, true_overlap))
    window, boxes, real = cut(draws[:, 9:], boxes, real, size)
    columns = _lines(window[:, 0::2], size[:, 0], side, mirrored)
    lines = _lines(window[:, 1::2], size[:, 1], side, jnp.zeros_like(mirrored))
    images = resample(images, lines, columns)
  elif flip:
    turned = mirrored[:, None, None, None]
    images = jnp.where(turned, images[:, :, ::-1], images)
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  turned = mirrored[:, None]
  x1, x2 = jnp.where(turned, 1 - x2, x1), jnp.where(turned, 1 - x1, x2)
  # A division may end a last bit outside.
  boxes = jnp.clip(jnp.stack([x1, y1, x2, y2], -1), 0, 1)
  return {
    **batch,
    'image': images,
    'boxes': jnp.where(real[..., None], boxes, 0),
    'label': jnp.where(real, label, -1),
  }


def _crop(true_overlap, draws, boxes, real, size):
  """(window in pixels [4], boxes in shares of it, which are real) of a row."""
  size = size.astype(jnp.float32)
  mode = jnp.floor(draws[:_ROUNDS, None] * len(_MODES)).astype(jnp.int32)
  draws = draws[_ROUNDS:].reshape(2, 2, _ROUNDS, _TRIES)
  whole = jnp.concatenate([jnp.zeros(2), size])
  size = size[:, None, None]
  extent = (0.3 + 0.7 * draws[0]) * size
  start = draws[1] * (size - extent)
  valid = (extent[1] >= extent[0] / 2) & (extent[1] <= extent[0] * 2)
  windows = jnp.floor(jnp.concatenate([start, start + extent]))

  objects = boxes * jnp.tile(whole[2:], 2)
  held = _holds(windows[..., None], objects) & real
  if true_overlap:
    least = jnp.array([low or 0.0 for low in _MODES])[mode]
    overlaps = iou(jnp.moveaxis(windows, 0, -1)[..., None, :], objects)
    held &= overlaps >= least[..., None]
  valid &= jnp.any(held, -1)
  # The first that is valid, or the whole picture if its mode comes before.
  uncut = mode == _MODES.index(None)
  windows = jnp.where(uncut, whole[:, None, None], windows).reshape(4, -1)
  valid = (valid | uncut).reshape(-1)
  window = jnp.where(jnp.any(valid), windows[:, jnp.argmax(valid)], whole)

  uncut = jnp.all(window == whole)
  stay = real & (uncut | _holds(window[:, None], objects))
  low, high = jnp.tile(window[:2], 2), jnp.tile(window[2:], 2)
  inside = (jnp.clip(objects, low, high) - low) / (high - low)
  return window.astype(jnp.int32), jnp.where(uncut, boxes, inside), stay


def _holds(windows, objects):
  """Whether centres lie inside; [4, ..., 1] and [G, 4] -> [..., G]."""
  x1, y1, x2, y2 = windows
  x, y = ((objects[:, :2] + objects[:, 2:]) / 2).T
  return (x1 < x) & (x < x2) & (y1 < y) & (y < y2)


def _lines(ends, length, side, mirrored):
  """Weights [B, S, S] of the squashed image's pixels along one axis, where the
  window has its `ends` [B, 2] in pixels of a picture of `length` [B]."""
  start, stop, length = ends[:, :1], ends[:, 1:], length[:, None]
  at = jnp.arange(side)
  at = jnp.where(mirrored[:, None], at[::-1], at)
  # Twice the place in the picture, times S; none beyond the outer pixels'
  # centres, so that nothing is seen of what lies outside the window.
  place = 2 * side * start + (2 * at + 1) * (stop - start)
  place = jnp.clip(place, (2 * start + 1) * side, (2 * stop - 1) * side)
  return bilinear(place - length, 2 * length, side)


def distort_colors(draws, images, strength: float = 1.0):
  """Changes the colours of images, and clips nothing.

  In turn, each with probability 1/2: brightness += U(-32, 32), contrast *=
  U(0.5, 1.5), saturation *= U(0.5, 1.5), hue += U(-18, 18) degrees (reference
  behaviour D4, step 3, and D-Q19).

  Args:
    draws: [B, 2, 4], uniform in 0..1, for these four in turn: whether (below
      1/2), and where in the range.
    images: [B, H, W, 3], RGB in 0..255; uint8 or float. The result is float32.
    strength: scales the ranges; 0 for none, 1 as the official code. Static.

  Raises:
    UserError: a strength outside 0..2, where a contrast would be negative.

  >>> draws = jnp.array([[[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]])
  >>> distort_colors(draws, jnp.full((1, 1, 1, 3), 100, jnp.uint8)).tolist()
  [[[[132.0, 132.0, 132.0]]]]
  """
  if not 0 <= strength <= 2:
    raise UserError(f'distort={strength}: it lies between 0 (none) and 2')
  images = images.astype(jnp.float32)
  if not strength:
    return images
  change = jnp.where(draws[:, 0] < 0.5, 2 * draws[:, 1] - 1, 0) * strength
  bright, contrast, saturation, hue = jnp.expand_dims(change.T, (2, 3))
  planes = (
    (images[..., channel] + bright * _BRIGHTNESS) * (1 + contrast * _CONTRAST)
    for channel in range(3)
  )
  h, s, v = to_hsv(*planes)
  h += hue * _HUE
  h = jnp.where(h < 0, h + 360, jnp.where(h > 360, h - 360, h))
  return jnp.stack(to_rgb(h, s * (1 + saturation * _SATURATION), v), -1)


def to_hsv(red, green, blue):
  """(hue in degrees, saturation, value) of three planes, as OpenCV has them.

  V is the largest, m the smallest; S = (V - m) / |V|, which `to_rgb` does not
  undo for negative V; the hue is 60 times the difference of the other two over
  V - m, plus 0, 120 or 240 where red, green or blue is largest.

  >>> [float(x) for x in to_hsv(*map(jnp.float32, (0, 100, 200)))]
  [210.0, 1.0, 200.0]
  """
  value = jnp.maximum(jnp.maximum(red, green), blue)
  spread = value - jnp.minimum(jnp.minimum(red, green), blue)
  scale = 60 / (spread + _TINY)
  hue = jnp.where(
    value == green, (blue - red) * scale + 120, (red - green) * scale + 240
  )
  hue = jnp.where(value == red, (green - blue) * scale, hue)
  hue = jnp.where(hue < 0, hue + 360, hue)
  return hue, spread / (jnp.abs(value) + _TINY), value


def to_rgb(hue, saturation, value):
  """(red, green, blue): V - V S max(0, min(k, 4 - k, 1)).

  k = (n + hue / 60) mod 6, with n = 5, 3 and 1 for the three.

  >>> planes = to_rgb(*map(jnp.float32, (210.0, 1.0, 200.0)))
  >>> [float(x) for x in planes]
  [0.0, 100.0, 200.0]
  """

  def plane(n):
    k = hue / 60 + n
    k = jnp.where(k >= 6, k - 6, k)
    share = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return value - value * saturation * share

  return plane(5), plane(3), plane(1)
