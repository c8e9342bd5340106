"""What is done to images with boxes on the device: colours, crop, mirror."""

import jax
import jax.numpy as jnp

from fastsnn_jax.data.image_ops import bilinear, resample, row_keys
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.distort import distort_colors

# Least overlaps of the six modes; 0 is a free crop, None the whole picture.
_MODES = (0.1, 0.3, 0.7, 0.9, 0.0, None)
_ROUNDS, _TRIES = 8, 50
_CROP = _ROUNDS * (1 + 4 * _TRIES)  # numbers drawn for one


def augment_boxes(
  key, batch, *, crop=True, flip=True, distort=1.0, true_overlap=False
):
  """The reference's augmentation of images with boxes, one key an image.

  In this order: `distort_colors`; a random crop; a mirror image with
  probability 1/2; the crop resized to the image's side, bilinear, half-pixel,
  no antialias. (Spec detection §4, steps 3 to 7; normalise afterwards.)

  A crop is drawn in pixels of the picture as it was before it was squashed, W
  times H: w and h uniform in 0.3 to 1 times W and H, its place uniform, corners
  cut to integers. It is valid if 1/2 <= h / w <= 2 and the centre of an object
  lies strictly inside; objects with their centres elsewhere go, the others are
  clipped. The reference draws one of six modes, in one of which the picture
  stays whole; in the others it tries 50 crops, and after these draws a mode
  anew. Its five minimal overlaps reject nothing (Q6). So with p the share of
  valid crops and q = (1 - p)^50 a picture stays whole with probability

    1/6 Σ_k (5q/6)^k = 1 / (6 - 5 q),

  1/6 for most and 1 without objects, and else its crop is a draw from the valid
  ones. Here the eighth mode is the last, after which it stays whole: that adds
  (5q/6)^8 (5 - 5q) / (6 - 5q), less than 0.035 for every q and nothing to speak
  of below q = 1/2. With `true_overlap` each mode has a q of its own, and Σ q
  stands for 5 q.

  Args:
    key: one, into which the rows' numbers are folded, or [B], one a row.
    batch: dict with 'image' [B, S, S, 3], RGB in 0..255, squashed to a square;
      'boxes' [B, G, 4], (x1, y1, x2, y2) in shares of it; 'label' [B, G], -1
      where there is no object; and if known 'size' [B, 2], (W, H), without
      which the square counts as the picture. Other entries pass through.
    crop, flip: whether to. Static under `jit`, as all that follow.
    distort: strength of the changes of colour; 0 for none.
    true_overlap: whether a crop is valid only if its IoU with one of its
      objects is at least that of the mode: 0.1, 0.3, 0.7, 0.9, 0.

  Returns:
    The dict with a new 'image', float32 and not clipped to 0..255, 'boxes' and
    'label'; objects that went have label -1 and box 0. 'size' stays.

  Raises:
    UserError: another shape, another number of keys, distort outside 0..2.

  >>> batch = {
  ...   'image': jnp.zeros((2, 8, 8, 3), jnp.uint8),
  ...   'boxes': jnp.array([[[0.2, 0.2, 0.6, 0.8]], [[0.0, 0.0, 0.0, 0.0]]]),
  ...   'label': jnp.array([[3], [-1]]),
  ... }
  >>> new = jax.jit(augment_boxes)(jax.random.key(0), batch)
  >>> new['image'].shape, new['label'].tolist()
  ((2, 8, 8, 3), [[3], [-1]])
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
  draws = jax.vmap(lambda k: jax.random.uniform(k, (9 + _CROP,)))(
    row_keys(key, rows)
  )
  images = distort_colors(draws[:, :8].reshape(rows, 2, 4), images, distort)
  mirrored = draws[:, 8] < (0.5 if flip else 0)
  there = label >= 0
  if crop:
    size = batch.get('size')
    if size is None:
      size = jnp.full((rows, 2), side)
    # Rows that fill up a batch may have size 0.
    size = jnp.maximum(jnp.asarray(size, jnp.int32), 1)
    window, boxes, there = jax.vmap(
      lambda *row: _crop(*row, true_overlap=true_overlap)
    )(draws[:, 9:], boxes, there, size)
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
    'boxes': jnp.where(there[..., None], boxes, 0),
    'label': jnp.where(there, label, -1),
  }


def _crop(draws, boxes, there, size, *, true_overlap):
  """(window in pixels [4], boxes in shares of it, which are there) of a row."""
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
  held = _holds(windows[..., None], objects) & there
  if true_overlap:
    least = jnp.array([0.0 if low is None else low for low in _MODES])[mode]
    valid &= jnp.any(held & (_iou(windows, objects) >= least[..., None]), -1)
  else:
    valid &= jnp.any(held, -1)
  # The first that is valid, or the whole picture if its mode comes before.
  uncut = mode == _MODES.index(None)
  windows = jnp.where(uncut, whole[:, None, None], windows).reshape(4, -1)
  valid = (valid | uncut).reshape(-1)
  window = jnp.where(jnp.any(valid), windows[:, jnp.argmax(valid)], whole)

  uncut = jnp.all(window == whole)
  kept = there & (uncut | _holds(window[:, None], objects))
  low, high = jnp.tile(window[:2], 2), jnp.tile(window[2:], 2)
  inside = (jnp.clip(objects, low, high) - low) / (high - low)
  return window.astype(jnp.int32), jnp.where(uncut, boxes, inside), kept


def _holds(windows, objects):
  """Whether centres lie inside; [4, ..., 1] and [G, 4] -> [..., G]."""
  x1, y1, x2, y2 = windows
  x, y = ((objects[:, :2] + objects[:, 2:]) / 2).T
  return (x1 < x) & (x < x2) & (y1 < y) & (y < y2)


def _iou(windows, objects):
  """[4, ...] and [G, 4] -> [..., G]."""
  windows, objects = windows[..., None], objects.T
  low = jnp.maximum(windows[:2], objects[:2, None, None])
  high = jnp.minimum(windows[2:], objects[2:, None, None])
  both = jnp.prod(jnp.maximum(high - low, 0), 0)
  areas = jnp.prod(windows[2:] - windows[:2], 0)
  areas = areas + jnp.prod(objects[2:] - objects[:2], 0)
  return both / jnp.maximum(areas - both, 1e-9)


def _lines(ends, length, side, mirrored):
  """Weights of the squashed image's pixels along one axis, [B, S, S].

  Args:
    ends: [B, 2], of the window, in pixels of a picture of `length` [B].
    side: S.
    mirrored: [B].
  """
  start, stop, length = ends[:, :1], ends[:, 1:], length[:, None]
  at = jnp.arange(side)
  at = jnp.where(mirrored[:, None], at[::-1], at)
  # Twice the place in the picture, times S; none beyond the outer pixels'
  # centres, so that nothing is seen of what lies outside the window.
  place = 2 * side * start + (2 * at + 1) * (stop - start)
  place = jnp.clip(place, (2 * start + 1) * side, (2 * stop - 1) * side)
  return bilinear(place - length, 2 * length, side)
