"""Object detection: objects are padded lists of boxes, the metric is mAP50.

A batch has 'boxes' [B, G, 4], (x1, y1, x2, y2) in shares of the image, 'label'
[B, G] with -1 where there is no object, and 'mask'; where the data has them,
'difficult' [B, G] and 'size' [B, 2], (width, height) in pixels.

Average precision is no sum of per-batch numbers, so detections and objects are
kept until all images have been seen.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.tasks import Task
from fastsnn_jax.tasks.detection import boxes as geometry
from fastsnn_jax.tasks.detection import coco_metrics
from fastsnn_jax.tasks.detection.average_precision import voc
from fastsnn_jax.tasks.detection.loss import loss
from fastsnn_jax.tasks.detection.nms import candidates, suppress

__all__ = ['agree', 'detection', 'loss', 'predict', 'summarize', 'truth']

METRIC = 'mAP50'
_SAME = 0.95  # IoU over which two detections are the same
_TRUTH = ('boxes', 'label', 'difficult', 'crowd', 'area', 'size')


def predict(outputs, *, anchors, overlap=0.5, threshold=0.001, limit=300):
  """The boxes that an output stands by, by falling score.

  Args:
    outputs: [B, h, w, A (5 + C)].
    anchors: A times (width, height), in cells.
    overlap: IoU above which the weaker of two boxes of a class goes.
    threshold: least score.
    limit: boxes per image at most, K; None for as many as there are. A step
      each; the mean average precision needs more than one would look at.

  Returns:
    {'boxes': [B, K, 4], 'scores': [B, K], 'classes': [B, K]}; places that are
    left over have score 0 and class -1.

  >>> found = predict(jnp.zeros((1, 2, 2, 2 * 7)), anchors=((1, 1), (2, 2)))
  >>> found['boxes'].shape, round(float(found['scores'][0, 0]), 2)
  ((1, 8, 4), 0.25)
  """
  keep = functools.partial(
    suppress, threshold=threshold, overlap=overlap, limit=limit
  )
  kept = jax.vmap(keep)(candidates(outputs, anchors))
  return {key: kept[key] for key in ('boxes', 'scores', 'classes')}


def agree(predictions, others, batch, *, shown=0.25):
  """Images on which two networks detect the same, be it nothing.

  One to one, each pair of one class and with IoU > 0.95, nothing left over. Two
  boxes of a class that both are so near a third are so near each other that
  `predict` keeps only one: to find a partner is to find one's own.

  Args:
    predictions, others: as from `predict`.
    batch: has 'mask'.
    shown: least score of what is compared. The many boxes of next to no score
      are kept for the sake of average precision only.

  Returns:
    (their number among the real rows, that of the real rows).
  """
  there = [
    (p['scores'] >= shown) & (p['classes'] >= 0) for p in (predictions, others)
  ]
  iou = geometry.iou(predictions['boxes'][:, :, None], others['boxes'][:, None])
  pair = (iou > _SAME) & there[0][:, :, None] & there[1][:, None]
  pair &= predictions['classes'][:, :, None] == others['classes'][:, None]
  same = jnp.all(jnp.any(pair, 2) == there[0], 1)
  same &= jnp.all(jnp.any(pair, 1) == there[1], 1)
  same &= jnp.sum(there[0], 1) == jnp.sum(there[1], 1)
  return jnp.sum(same * batch['mask']), jnp.sum(batch['mask'])


def measure(predictions, batch):
  """Images; the rest is no sum."""
  del predictions
  return {'count': jnp.sum(batch['mask'])}


def truth(batch):
  """The objects of each image, kept until all have been seen."""
  return {key: batch[key] for key in _TRUTH if key in batch}


def summarize(sums, kept=None, *, classes, rounded=False):
  """Metrics of all images, on the host.

  Args:
    sums: sum of what `loss` gave, or {} if no loss was taken.
    kept: {'found': what `predict` gave, 'truth': what `truth` gave} of all
      images, without the padded ones; None while training, when only the loss
      is reported.
    classes: their number.
    rounded: print and read detections as the reference does; see `voc`.

  Returns:
    {'mAP50': mean over classes of the area under precision over recall,
    'mAP50_11point': the reference's eleven-point mean} and the mean losses.
  """
  result = {}
  if kept is not None:
    found = voc(*_on_host(kept), classes, rounded=rounded)
    result[METRIC] = found['mean_area']
    result[f'{METRIC}_11point'] = found['mean_11point']
  for name, value in sums.items():
    if name.endswith('loss'):
      result[name] = float(value / sums['count'])
  return result


def details(sums, kept, *, classes, coco=False):
  """{'by_class': average precision of each, None for one without objects}.

  With `coco` also {'coco': its twelve numbers}, see `coco_metrics`.
  """
  del sums
  found = voc(*_on_host(kept), classes)
  known = [None if np.isnan(area) else area for area in found['area']]
  result = {'by_class': known}
  if coco:
    result['coco'] = coco_metrics.coco(*_on_host(kept))
  return result


def _on_host(kept):
  kept = jax.tree.map(np.asarray, kept)
  return kept['found'], kept['truth']


@functools.cache  # one object per problem: jitted functions know it again
def detection(
  classes: int,
  anchors: tuple[tuple[float, float], ...],
  stride: int,
  overlap: float = 0.5,
  coco: bool = False,
  limit: int = 100,
  conflict: str = 'last',
  rounded: bool = False,
) -> Task:
  """The task for so many classes and a network's anchors.

  Args:
    classes: their number.
    anchors: A times (width, height), in cells.
    stride: side of a cell in pixels.
    overlap: IoU above which the weaker of two boxes of a class goes.
    coco: give COCO's twelve numbers as details, which takes pycocotools.
    limit: boxes of an image that are judged; the reference has no limit.
    conflict: where two objects meet in a cell, see `targets.assign`.
    rounded: judge scores and corners as the reference prints them.
  """
  return Task(
    outputs=len(anchors) * (5 + classes),
    loss=functools.partial(
      loss, anchors=anchors, stride=stride, conflict=conflict
    ),
    predict=functools.partial(
      predict, anchors=anchors, overlap=overlap, limit=limit
    ),
    measure=measure,
    agree=agree,
    summarize=functools.partial(summarize, classes=classes, rounded=rounded),
    metric=METRIC,
    rows=lambda predictions: predictions,
    truth=truth,
    details=functools.partial(details, classes=classes, coco=coco),
    map=(1, 1),
    labels=(('boxes', (1, 4), 'float32'), ('label', (1,), 'int32')),
  )
