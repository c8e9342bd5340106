"""Object detection: objects are padded lists of boxes, the metric is mAP50.

A batch has 'boxes' [B, G, 4], (x1, y1, x2, y2) in shares of the image, 'label'
[B, G] with -1 where there is no object, and 'mask'; where the data has them,
'difficult' [B, G] and 'size' [B, 2], (width, height) in pixels.

Average precision is no sum of per-batch numbers, so detections and objects are
kept until all images have been seen.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import resize
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection import anchors, coco_metrics, data
from fastsnn_jax.tasks.detection.augment import augment_boxes
from fastsnn_jax.tasks.detection.average_precision import voc
from fastsnn_jax.tasks.detection.boxes import candidates, iou, suppress
from fastsnn_jax.tasks.detection.loss import loss
from fastsnn_jax.tasks.task import Task, check_sides

METRIC = 'mAP50'
_SAME = 0.95  # IoU over which two detections are the same
_SHOWN = 0.25  # least score of detections that are compared or answered
_TRUTH = ('boxes', 'label', 'difficult', 'crowd', 'area', 'size')


class Detections(NamedTuple):
  """What is in one image, by falling score.

  Attributes:
    boxes: float32 [n, 4], (x1, y1, x2, y2) in pixels of the image.
    scores: float32 [n], in 0..1.
    classes: int32 [n], indices into `network.classes`.
  """

  boxes: np.ndarray
  scores: np.ndarray
  classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Detection(Task):
  """Boxes around objects.

  Attributes:
    anchors: A times (width, height), in cells.
    stride: side of a cell in pixels.
    overlap: IoU above which the weaker of two boxes of a class goes.
    coco: give COCO's twelve numbers as details, which takes pycocotools.
    limit: boxes of an image that are judged; the official code has no limit.
    conflict: where two objects meet in a cell, see `targets.assign`.
    rounded: judge scores and corners as the official code prints them.
  """

  anchors: tuple[tuple[float, float], ...] = ()
  stride: int = 32
  overlap: float = 0.5
  coco: bool = False
  limit: int = 100
  conflict: str = 'last'
  rounded: bool = False

  metric: ClassVar[str] = METRIC
  verb: ClassVar[str] = 'detect'
  labels: ClassVar = {'boxes': 2, 'label': 1}
  _of_network: ClassVar = ('anchors', 'stride', 'overlap')

  @classmethod
  def open(cls, settings, model):
    check_sides(settings, model)
    return data.open_data(settings, settings.size or model.size)

  @classmethod
  def network_fields(cls, settings, model, dataset):
    side = settings.size or model.size
    fields = {**super().network_fields(settings, model, dataset), 'size': side}
    if settings.anchors:
      columns = [dataset.train.column(name) for name in cls.labels]
      if any(column is None for column in columns):
        raise UserError(
          f'data.anchors={settings.anchors}: they are fitted to boxes in '
          'memory, which these examples have not; leave it out'
        )
      cells = side // model.stride
      fields['anchors'] = anchors.fit(*columns, settings.anchors, cells)
    return fields

  def check(self, dataset):
    if self.coco:
      coco_metrics.tools()
      if dataset.test.column('size') is None:
        raise UserError(
          f'--coco: {dataset.name} has no pictures with a size of their own, '
          "by which COCO's numbers are sorted; leave it out"
        )

  def present(self, images):
    images = super().present(images)
    return resize(images, self.size) if self.size else images

  def augment(self, key, batch, settings, side=None):
    batch = augment_boxes(
      key,
      batch,
      crop=bool(settings.crop),
      flip=settings.flip,
      distort=2 * settings.jitter,
    )
    images = Task.present(self, batch['image'])
    return {**batch, 'image': resize(images, side) if side else images}

  def loss(self, outputs, batch):
    return loss(
      outputs,
      batch,
      anchors=self.anchors,
      stride=self.stride,
      conflict=self.conflict,
    )

  def predict(self, outputs):
    return predict(
      outputs, anchors=self.anchors, overlap=self.overlap, limit=self.limit
    )

  def measure(self, predictions, batch):
    """Images; the rest is no sum."""
    del predictions
    return {'count': jnp.sum(batch['mask'])}

  def agree(self, predictions, others, batch):
    """Images on which two networks detect the same, be it nothing.

    One to one, each pair of one class and with IoU > 0.95, nothing left over.
    Two boxes of a class that both are so near a third are so near each other
    that `predict` keeps only one: to find a partner is to find one's own. Boxes
    of next to no score, there for average precision only, are left out.

    Args:
      predictions, others: as from `predict`.
      batch: has 'mask'.

    Returns:
      (their number among the real rows, that of the real rows).
    """
    shown = [
      (p['scores'] >= _SHOWN) & (p['classes'] >= 0)
      for p in (predictions, others)
    ]
    overlaps = iou(predictions['boxes'][:, :, None], others['boxes'][:, None])
    pair = (overlaps > _SAME) & shown[0][:, :, None] & shown[1][:, None]
    pair &= predictions['classes'][:, :, None] == others['classes'][:, None]
    same = jnp.all(jnp.any(pair, 2) == shown[0], 1)
    same &= jnp.all(jnp.any(pair, 1) == shown[1], 1)
    same &= jnp.sum(shown[0], 1) == jnp.sum(shown[1], 1)
    return jnp.sum(same * batch['mask']), jnp.sum(batch['mask'])

  def rows(self, predictions):
    return predictions

  def truth(self, batch):
    return {key: batch[key] for key in _TRUTH if key in batch}

  def pictures(self, batch):
    return {'truth': {name: batch[name] for name in ('boxes', 'label')}}

  def summarize(self, sums, kept=None):
    """Metrics of all images, on the host.

    Args:
      sums: sum of what `loss` gave, or of `measure`.
      kept: {'found': what `predict` gave, 'truth': what `truth` gave} of all
        images; None while training, when only the loss is reported.

    Returns:
      {'mAP50': mean over classes of the area under precision over recall,
      'mAP50_11point': the official eleven-point mean} and the mean losses.
    """
    result = {}
    if kept is not None:
      judged = voc(*_on_host(kept), self.classes, rounded=self.rounded)
      result[METRIC] = judged['mean_area']
      result[f'{METRIC}_11point'] = judged['mean_11point']
    for name, value in sums.items():
      if name.endswith('loss'):
        result[name] = float(value / sums['count'])
    return result

  def details(self, sums, kept=None):
    """{'by_class': average precision of each, None for one without objects}.

    With `coco` also {'coco': its twelve numbers}, see `coco_metrics`.
    """
    del sums
    areas = voc(*_on_host(kept), self.classes)['area']
    result = {'by_class': [None if np.isnan(x) else x for x in areas]}
    if self.coco:
      result['coco'] = coco_metrics.coco(*_on_host(kept))
    return result

  def answers(
    self, network, variables, images, *, size=None, threshold=_SHOWN, limit=100
  ):
    """`Detections` of each image, see `inference.detect`."""
    height, width = images.shape[1:3]
    side = self.size if size is None else size
    sides = (side, side) if side else _near((height, width), self.stride)
    boxes = jax.device_get(
      _detect(
        variables,
        _resize(images, sides=sides),
        network=network,
        task=self,
        threshold=threshold,
        limit=limit,
      )
    )
    scale = np.array([width, height, width, height], np.float32)
    answers = []
    for corners, scores, classes in zip(
      *(boxes[name] for name in Detections._fields), strict=True
    ):
      real = classes >= 0
      answers.append(
        Detections(
          corners[real].astype(np.float32) * scale,
          scores[real].astype(np.float32),
          classes[real].astype(np.int32),
        )
      )
    return answers


@functools.partial(jax.jit, static_argnames='sides')
def _resize(images, *, sides):
  shape = images.shape[0], *sides, images.shape[-1]
  return jax.image.resize(images.astype(jnp.float32), shape, 'linear')


@functools.partial(jax.jit, static_argnames=('network', 'task', 'limit'))
def _detect(variables, images, *, network, task, threshold, limit):
  output, _ = network.apply(variables, Task.present(task, images))
  return predict(
    output,
    anchors=task.anchors,
    overlap=task.overlap,
    threshold=threshold,
    limit=limit,
  )


def _near(sides, stride):
  return tuple(max(round(side / stride), 1) * stride for side in sides)


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

  >>> boxes = predict(jnp.zeros((1, 2, 2, 2 * 7)), anchors=((1, 1), (2, 2)))
  >>> boxes['boxes'].shape, round(float(boxes['scores'][0, 0]), 2)
  ((1, 8, 4), 0.25)
  """
  keep = functools.partial(
    suppress, threshold=threshold, overlap=overlap, limit=limit
  )
  kept = jax.vmap(keep)(candidates(outputs, anchors))
  return {key: kept[key] for key in ('boxes', 'scores', 'classes')}


def _on_host(kept):
  kept = jax.tree.map(np.asarray, kept)
  return kept['found'], kept['truth']
