"""Boxes: how a detector's output names them, and how much two overlap.

A box is (x1, y1, x2, y2) in shares of the image's width and height, so that no
code but the targets' has to know the image's size in pixels. A map of h x w
cells and A anchors has N = h w A of them: row by row, anchors innermost.
"""

import jax
import jax.numpy as jnp


def split(outputs, anchors: int):
  """The three parts of a read-out.

  Args:
    outputs: [B, h, w, A (5 + C)]: A objectness logits, then A times C class
      logits, then A times (tx, ty, tw, th).
    anchors: A.

  Returns:
    (objectness [B, N], class logits [B, N, C], offsets [B, N, 4]), in at least
    float32.

  >>> [part.shape for part in split(jnp.zeros((2, 3, 4, 5 * 25)), 5)]
  [(2, 60), (2, 60, 20), (2, 60, 4)]
  """
  outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
  batch, channels = outputs.shape[0], outputs.shape[-1]
  end = channels - 4 * anchors
  parts = (
    outputs[..., :anchors],
    outputs[..., anchors:end],
    outputs[..., end:],
  )
  classes = channels // anchors - 5
  objectness, logits, offsets = (
    part.reshape(batch, -1, width)
    for part, width in zip(parts, (1, classes, 4), strict=True)
  )
  return objectness[..., 0], logits, offsets


def decode(offsets, grid, anchors):
  """Boxes of offsets; they may reach beyond the image.

    x = (sigmoid(tx) + column) / w    width = anchor width exp(tw) / w

  Args:
    offsets: [B, N, 4], (tx, ty, tw, th).
    grid: (h, w), cells.
    anchors: A times (width, height), in cells.

  Returns:
    [B, N, 4].

  >>> decode(jnp.zeros((1, 4, 4)), (2, 2), ((1.0, 1.0),))[0, 3].tolist()
  [0.5, 0.5, 1.0, 1.0]
  """
  height, width = grid
  anchors = jnp.asarray(anchors, offsets.dtype)
  shape = (height, width, len(anchors))
  row, column, anchor = (i.reshape(-1) for i in jnp.indices(shape))
  cell = jnp.stack([column, row], -1).astype(offsets.dtype)
  scale = jnp.asarray((width, height), offsets.dtype)
  centre = (jax.nn.sigmoid(offsets[..., :2]) + cell) / scale
  half = anchors[anchor] * jnp.exp(offsets[..., 2:]) / scale / 2
  return jnp.concatenate([centre - half, centre + half], -1)


def area(boxes):
  """[..., 4] -> [...]"""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a, b, floor=0.0):
  """Area that two boxes share; shapes broadcast.

  Args:
    a, b: [..., 4].
    floor: least length of a side.
  """
  low = jnp.maximum(a[..., :2], b[..., :2])
  high = jnp.minimum(a[..., 2:], b[..., 2:])
  sides = jnp.maximum(high - low, floor)
  return sides[..., 0] * sides[..., 1]


def iou(a, b, epsilon=1e-14):
  """Intersection over union; shapes broadcast.

  >>> a, b = jnp.array([0.0, 0.0, 2.0, 1.0]), jnp.array([1.0, 0.0, 3.0, 1.0])
  >>> round(float(iou(a, b)), 6)
  0.333333
  """
  both = intersection(a, b)
  return both / (area(a) + area(b) - both + epsilon)
