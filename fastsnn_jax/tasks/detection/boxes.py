"""Boxes: how an output names them, how much two overlap, which ones stand.

A box is (x1, y1, x2, y2) in shares of the image's width and height. A map of
[B, h, w, A (5 + C)] outputs, with A anchors, (width, height) each in cells, has
N = h w A of them: row by row, anchors innermost. C is the number of classes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_FLOOR = 1e-10  # least side of an intersection in the official code


def split(outputs, anchors: int):
  """(objectness [B, N], class logits [B, N, C], offsets [B, N, 4]) of a map.

  In at least float32. The channels of `outputs` are A objectness logits, then A
  times C class logits, then A times (tx, ty, tw, th); `anchors` is A.

  >>> [part.shape for part in split(jnp.zeros((2, 3, 4, 5 * 25)), 5)]
  [(2, 60), (2, 60, 20), (2, 60, 4)]
  """
  outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
  parts = jnp.split(outputs, [anchors, outputs.shape[-1] - 4 * anchors], -1)
  objectness, logits, offsets = (
    part.reshape(len(part), -1, part.shape[-1] // anchors) for part in parts
  )
  return objectness[..., 0], logits, offsets


def decode(offsets, grid, anchors):
  """Boxes [B, N, 4] of offsets [B, N, 4]; they may reach beyond the image.

  With w columns, `grid` being (h, w), and likewise in y:

    x = (sigmoid(tx) + column) / w    width = anchor width exp(tw) / w

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


def iou(a, b, epsilon=1e-14, floor=0.0, xp=jnp):
  """Intersection over union + epsilon of boxes [..., 4]; shapes broadcast.

  `floor` is the least length of a side of the intersection.

  >>> a, b = jnp.array([0.0, 0.0, 2.0, 1.0]), jnp.array([1.0, 0.0, 3.0, 1.0])
  >>> round(float(iou(a, b)), 6)
  0.333333
  """
  low = xp.maximum(a[..., :2], b[..., :2])
  high = xp.minimum(a[..., 2:], b[..., 2:])
  sides = xp.maximum(high - low, floor)
  both = sides[..., 0] * sides[..., 1]
  return both / (area(a) + area(b) - both + epsilon)


# In float64; the least epsilon gives 0 where the union is empty, and else none.
iou_on_host = functools.partial(iou, epsilon=np.finfo(float).tiny, xp=np)


def spared(truth):
  """bool [I, G]: objects that need not be found, difficult ones and crowds."""
  marks = [np.asarray(truth.get(x, 0), bool) for x in ('difficult', 'crowd')]
  return marks[0] | marks[1] | np.zeros(np.shape(truth['label']), bool)


def at_origin(sizes):
  """Boxes of sizes (width, height), for the IoU of two with one centre.

  >>> at_origin(np.array([[3, 2]])).tolist()
  [[0, 0, 3, 2]]
  """
  xp = jnp if isinstance(sizes, jax.Array) else np
  return xp.concatenate([xp.zeros_like(sizes), sizes], -1)


def candidates(outputs, anchors):
  """Every box of a map with its most likely class.

    score = sigmoid(objectness) max softmax(class logits)

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

  A box goes if one of its class with a higher score stays and their IoU is over
  `overlap`. Of equal scores the first is the better one. It takes `limit`
  steps, each over all boxes at once; sharded batches need no communication.

  Args:
    boxes: as from `candidates`; [N, ...] without a batch axis.
    threshold: boxes of a lower score are out from the start.
    overlap: IoU above which the weaker of two boxes goes.
    limit: boxes kept at most, the best ones; None for all.

  Returns:
    As `boxes`, with `limit` places, by falling score; where nothing is left the
    score is 0, the class -1 and the box empty. 'index' says which they were.

  >>> boxes = jnp.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1]])
  >>> scores, classes = jnp.array([0.7, 0.8, 0.6]), jnp.array([3, 3, 3])
  >>> found = {'boxes': boxes, 'scores': scores, 'classes': classes}
  >>> suppress(found, threshold=0.1, overlap=0.5)['index'].tolist()
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
