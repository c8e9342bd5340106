"""Anchors for a data set of one's own: the shapes that its boxes have."""

import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.boxes import at_origin, iou_on_host

_ROUNDS = 200


def fit(boxes, label, count, cells) -> tuple[tuple[float, float], ...]:
  """A = `count` shapes (width, height) in cells, by rising area.

  k-means with the distance 1 - IoU of two boxes with one centre, by which
  objects are given to anchors (reference behaviour D3.2). Starts at quantiles
  of the area, so that one data set has one answer.

  Args:
    boxes: [N, G, 4], (x1, y1, x2, y2) in shares of the image.
    label: [N, G], -1 where there is no object.
    count: of anchors.
    cells: along a side of the image.

  Raises:
    UserError: fewer objects than anchors.

  >>> boxes = np.array([[[0, 0, 0.1, 0.2], [0.5, 0.5, 0.9, 0.7]]])
  >>> fit(boxes, np.array([[0, 1]]), 2, 10)
  ((1.0, 2.0), (4.0, 2.0))
  """
  shapes = boxes[label >= 0].astype(np.float64)
  shapes = (shapes[:, 2:] - shapes[:, :2]) * cells
  if not 1 <= count <= len(shapes):
    raise UserError(
      f'anchors={count}, but the training images have {len(shapes)} objects; '
      'at least one anchor and an object for each are needed'
    )
  order = np.argsort(shapes.prod(1), kind='stable')
  starts = ((np.arange(count) + 0.5) / count * len(shapes)).astype(int)
  centres = shapes[order[starts]]
  for _ in range(_ROUNDS):
    like = iou_on_host(at_origin(shapes)[:, None], at_origin(centres))
    nearest, before = np.argmax(like, 1), centres.copy()
    for k in np.unique(nearest):
      centres[k] = shapes[nearest == k].mean(0)
    if np.array_equal(centres, before):
      break
  centres = centres[np.argsort(centres.prod(1), kind='stable')]
  return tuple((round(w, 3), round(h, 3)) for w, h in centres.tolist())
