"""From a detector's output to the boxes that it stands by."""

import jax
import jax.numpy as jnp

from fastsnn_jax.tasks.detection import boxes as geometry

_FLOOR = 1e-10  # least side of an intersection; the reference's


def candidates(outputs, anchors):
  """Every box with its most likely class.

    score = sigmoid(objectness) max softmax(class logits)

  Args:
    outputs: [B, h, w, A (5 + C)].
    anchors: A times (width, height), in cells.

  Returns:
    {'boxes': [B, N, 4], within the image, 'scores': [B, N], 'classes': [B, N]}.
  """
  objectness, logits, offsets = geometry.split(outputs, len(anchors))
  boxes = geometry.decode(offsets, outputs.shape[1:3], anchors)
  return {
    'boxes': jnp.clip(boxes, 0, 1),
    'scores': jax.nn.sigmoid(objectness) * jnp.max(jax.nn.softmax(logits), -1),
    'classes': jnp.argmax(logits, -1),
  }


def suppress(found, *, threshold, overlap, limit=None):
  """The best box, then the best that overlaps it too little, and so on.

  Greedy and class by class: a box goes if one of its class with a higher score
  stays and their IoU is over `overlap`. Of equal scores the first in `found` is
  the better one. It takes `limit` steps, each over all boxes at once, and has
  no communication if the batch is sharded.

  Args:
    found: as from `candidates`; [N, ...] without a batch axis.
    threshold: boxes of a lower score are out from the start.
    overlap: IoU above which the weaker of two boxes goes.
    limit: boxes kept at most, the best ones; None for all.

  Returns:
    As `found`, with `limit` places, by falling score; where nothing is left the
    score is 0, the class -1 and the box empty. 'index' says which they were.

  >>> found = {
  ...   'boxes': jnp.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1]]),
  ...   'scores': jnp.array([0.7, 0.8, 0.6]),
  ...   'classes': jnp.array([3, 3, 3]),
  ... }
  >>> suppress(found, threshold=0.1, overlap=0.5)['index'].tolist()
  [1, 2, -1]
  """
  boxes, scores, classes = (found[k] for k in ('boxes', 'scores', 'classes'))
  areas = geometry.area(boxes)
  alive = jnp.where(scores >= threshold, scores, -1)

  def step(alive, _):
    best = jnp.argmax(alive)
    some = alive[best] >= 0
    both = geometry.intersection(boxes[best], boxes, _FLOOR)
    shared = both / (areas[best] + areas - both)
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
