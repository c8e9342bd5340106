"""Object detection: objects are padded lists of boxes, the metric is mAP50.

A batch has 'boxes' [B, G, 4], (x1, y1, x2, y2) in shares of the image, 'label'
[B, G] with -1 where there is no object, and 'mask'; where the data has them,
'difficult' [B, G] and 'size' [B, 2], (width, height) in pixels. Detections and
objects are kept until all images were seen: average precision is no sum.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import resize
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.tasks.detection import anchors, coco_metrics, data
from fastsnn_jax.tasks.detection.augment import augment_boxes
from fastsnn_jax.tasks.detection.average_precision import voc
from fastsnn_jax.tasks.detection.boxes import candidates, iou, suppress
from fastsnn_jax.tasks.detection.loss import loss
from fastsnn_jax.tasks.task import Task, check_sides

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

  metric: ClassVar[str] = 'mAP50'
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
    steps = {'crop': bool(settings.crop), 'flip': settings.flip}
    batch = augment_boxes(key, batch, **steps, distort=2 * settings.jitter)
    images = Task.present(self, batch['image'])
    return {**batch, 'image': resize(images, side) if side else images}

  def loss(self, outputs, batch):
    settings = {'anchors': self.anchors, 'stride': self.stride}
    return loss(outputs, batch, **settings, conflict=self.conflict)

  def predict(self, outputs, **options):
    options = {'overlap': self.overlap, 'limit': self.limit, **options}
    return predict(outputs, anchors=self.anchors, **options)

  def measure(self, predictions, batch):
    """Images; the rest is no sum."""
    return {'count': jnp.sum(batch['mask'])}

  def agree(self, predictions, others, batch):
    """(real rows on which two networks detect the same, be it nothing; real
    rows): one to one, each pair of one class and with IoU > 0.95.

    Two boxes of a class that both are so near a third are so near each other
    that `predict` keeps only one: to find a partner is to find one's own. Boxes
    of next to no score, there for average precision only, are left out.
    """
    a, b = predictions, others
    shown = [(x['scores'] >= _SHOWN) & (x['classes'] >= 0) for x in (a, b)]
    pair = iou(a['boxes'][:, :, None], b['boxes'][:, None]) > _SAME
    pair &= shown[0][:, :, None] & shown[1][:, None]
    pair &= a['classes'][:, :, None] == b['classes'][:, None]
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
    """{'mAP50': mean over classes of the area under precision over recall,
    'mAP50_11point': the official eleven-point mean} and the mean losses; only
    these while training, without `kept`."""
    result = {}
    if kept is not None:
      found, truth = kept['found'], kept['truth']
      judged = voc(found, truth, self.classes, rounded=self.rounded)
      result['mAP50'] = judged['mean_area']
      result['mAP50_11point'] = judged['mean_11point']
    losses = [name for name in sums if name.endswith('loss')]
    return result | {x: float(sums[x] / sums['count']) for x in losses}

  def details(self, sums, kept=None):
    """{'by_class': average precision of each, None for one without objects}.

    With `coco` also {'coco': its twelve numbers}, see `coco_metrics`.
    """
    found, truth = kept['found'], kept['truth']
    areas = voc(found, truth, self.classes)['area']
    result = {'by_class': [None if np.isnan(x) else x for x in areas]}
    if self.coco:
      result['coco'] = coco_metrics.coco(found, truth)
    return result

  def answers(
    self, network, variables, images, *, size=None, threshold=_SHOWN, limit=100
  ):
    """`Detections` of each image, see `inference.detect`."""
    height, width = images.shape[1:3]
    side = self.size if size is None else size
    near = (max(round(x / self.stride), 1) for x in (height, width))
    sides = (side, side) if side else tuple(x * self.stride for x in near)
    images = _resize(images, sides=sides)
    task = dataclasses.replace(self, limit=limit)
    network, variables = ready(network, variables)
    found = _detect(variables, images, threshold, network=network, task=task)
    boxes, scores, classes = (
      np.asarray(found[name], kind)
      for name, kind in zip(Detections._fields, 'ffi', strict=True)
    )
    boxes = boxes * np.array([width, height] * 2, np.float32)
    rows = zip(boxes, scores, classes, classes >= 0, strict=True)
    return [Detections(b[real], s[real], c[real]) for b, s, c, real in rows]


@functools.partial(jax.jit, static_argnames='sides')
def _resize(images, *, sides):
  shape = images.shape[0], *sides, images.shape[-1]
  return jax.image.resize(images.astype(jnp.float32), shape, 'linear')


@functools.partial(jax.jit, static_argnames=('network', 'task'))
def _detect(variables, images, threshold, *, network, task):
  output, _ = network.apply(variables, Task.present(task, images))
  return Detection.predict(task, output, threshold=threshold)


def predict(outputs, *, anchors, overlap=0.5, threshold=0.001, limit=300):
  """The boxes that an output [B, h, w, A (5 + C)] stands by, by falling score.

  Args: see `boxes.suppress`, which takes K = `limit` steps, and `anchors`, A
  times (width, height), in cells.

  Returns:
    {'boxes': [B, K, 4], 'scores': [B, K], 'classes': [B, K]}; places that are
    left over have score 0 and class -1.

  >>> boxes = predict(jnp.zeros((1, 2, 2, 2 * 7)), anchors=((1, 1), (2, 2)))
  >>> boxes['boxes'].shape, round(float(boxes['scores'][0, 0]), 2)
  ((1, 8, 4), 0.25)
  """
  limits = {'threshold': threshold, 'overlap': overlap, 'limit': limit}
  keep = jax.vmap(functools.partial(suppress, **limits))
  kept = keep(candidates(outputs, anchors))
  return {key: kept[key] for key in Detections._fields}
