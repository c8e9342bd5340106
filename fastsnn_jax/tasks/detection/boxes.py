"""Boxes: how an output names them, how much two overlap, which ones stand.

A box is (x1, y1, x2, y2) in shares of the image's width and height, so that no
code but the targets' has to know the image's size in pixels. A map of h x w
cells and A anchors has N = h w A of them: row by row, anchors innermost.
"""

import jax
import jax.numpy as jnp
import numpy as np

_FLOOR = 1e-10  # least side of an intersection in the official code


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
  scale = jnp.asarray([[(width, height)]], offsets.dtype)
  centre = (jax.nn.sigmoid(offsets[..., :2]) + cell[None]) / scale
  half = anchors[anchor][None] * jnp.exp(offsets[..., 2:]) / scale / 2
  return jnp.concatenate([centre - half, centre + half], -1)


def area(boxes):
  """[..., 4] -> [...]"""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a, b, epsilon=1e-14, floor=0.0):
  """Intersection over union; shapes broadcast.

  Args:
    a, b: [..., 4].
    epsilon: added to the union.
    floor: least length of a side of the intersection.

  >>> a, b = jnp.array([0.0, 0.0, 2.0, 1.0]), jnp.array([1.0, 0.0, 3.0, 1.0])
  >>> round(float(iou(a, b)), 6)
  0.333333
  """
  low = jnp.maximum(a[..., :2], b[..., :2])
  high = jnp.minimum(a[..., 2:], b[..., 2:])
  sides = jnp.maximum(high - low, floor)
  both = sides[..., 0] * sides[..., 1]
  return both / (area(a) + area(b) - both + epsilon)


def iou_on_host(a, b):
  """The same by NumPy in the arrays' precision; 0 where the union is empty.

  >>> iou_on_host(np.array([0, 0, 2.0, 1]), np.array([0, 0, 4.0, 1])).item()
  0.5
  """
  low = np.maximum(a[..., :2], b[..., :2])
  high = np.minimum(a[..., 2:], b[..., 2:])
  both = np.prod(np.maximum(high - low, 0), -1)
  union = area(a) + area(b) - both
  return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def at_origin(sizes):
  """Boxes of sizes (width, height), for the IoU of two with one centre.

  >>> at_origin(np.array([[3, 2]])).tolist()
  [[0, 0, 3, 2]]
  """
  module = jnp if isinstance(sizes, jax.Array) else np
  return module.concatenate([module.zeros_like(sizes), sizes], -1)


def candidates(outputs, anchors):
  """Every box with its most likely class.

    score = sigmoid(objectness) max softmax(class logits)

  Args:
    outputs: [B, h, w, A (5 + C)].
    anchors: A times (width, height), in cells.

  Returns:
    {'boxes': [B, N, 4], within the image, 'scores': [B, N], 'classes': [B, N]}.
  """
  objectness, logits, offsets = split(outputs, len(anchors))
  boxes = decode(offsets, outputs.shape[1:3], anchors)
  return {
    'boxes': jnp.clip(boxes, 0, 1),
    'scores': jax.nn.sigmoid(objectness) * jnp.max(jax.nn.softmax(logits), -1),
    'classes': jnp.argmax(logits, -1),
  }


def suppress(boxes, *, threshold, overlap, limit=None):
  """The best box, then the best that overlaps it too little, and so on.

  Greedy and class by class: a box goes if one of its class with a higher score
  stays and their IoU is over `overlap`. Of equal scores the first is
  the better one. It takes `limit` steps, each over all boxes at once, and has
  no communication if the batch is sharded.

  Args:
    boxes: as from `candidates`; [N, ...] without a batch axis.
    threshold: boxes of a lower score are out from the start.
    overlap: IoU above which the weaker of two boxes goes.
    limit: boxes kept at most, the best ones; None for all.

  Returns:
    As `boxes`, with `limit` places, by falling score; where nothing is left the
    score is 0, the class -1 and the box empty. 'index' says which they were.

  >>> three = {
  ...   'boxes': jnp.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1]]),
  ...   'scores': jnp.array([0.7, 0.8, 0.6]),
  ...   'classes': jnp.array([3, 3, 3]),
  ... }
  >>> suppress(three, threshold=0.1, overlap=0.5)['index'].tolist()
  [1, 2, -1]
  """
  boxes, scores, classes = (boxes[k] for k in ('boxes', 'scores', 'classes'))
  alive = jnp.where(scores >= threshold, scores, -1)

  def step(alive, _):
    best = jnp.argmax(alive)
    some = alive[best] >= 0
    shared = iou(boxes[best][None], boxes, epsilon=0, floor=_FLOOR)
    gone = (shared > overlap) & (classes == classes[best])
    gone |= jnp.arange(len(alive)) == best
    return jnp.where(gone, -1, alive), jnp.where(some, best, -1)

  count = len(scores) if limit is None else min(limit, len(scores))
  _, index = jax.lax.scan(step, alive, length=count)
  some = index >= 0
  return {
    'boxes': jnp.where(some[:, None], boxes[index], 0),
    'scores': jnp.where(some, scores[index], 0),
    'classes': jnp.where(some, classes[index], -1),
    'index': index,
  }
