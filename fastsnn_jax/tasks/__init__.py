"""What a problem asks of a network's output.

One trainer, evaluator, converter and fine-tuner serve every task; a task is a
tuple of pure functions. Batches are dicts: 'image', the task's labels, and
'mask', 1.0 where a row is real and 0.0 where it is padding.
"""

from collections.abc import Callable
from typing import NamedTuple

from fastsnn_jax.errors import UserError


class Task(NamedTuple):
  """The functions of one task.

  Attributes:
    outputs: channels of the read-out.
    loss: (outputs, batch) -> (scalar, tree of sums as `measure` gives).
    predict: outputs -> predictions, under jit.
    measure: (predictions, batch) -> tree of sums, padded rows masked out.
    agree: (predictions, others, batch) -> (how much is the same, of how much):
      of images, or of pixels.
    summarize: (sum of measure's trees, kept) -> {name: float}, on the host.
    metric: the name in `summarize` by which networks are compared.
    rows: predictions -> tree with a row per image, and
    truth: batch -> the same of the labels; of all images `summarize` gets them
      as 'found' and 'truth', for metrics that are no sums.
    details: (sum of measure's trees, kept) -> what a report shows besides:
      'by_class', the metric of each class, None where it has none, and more.
    map: smallest (h, w) that `loss` takes, () if outputs have no place.
    labels: (name, shape, dtype) of each label of an image of that size.
  """

  outputs: int
  loss: Callable
  predict: Callable
  measure: Callable
  agree: Callable
  summarize: Callable
  metric: str
  rows: Callable = lambda predictions: {}
  truth: Callable = lambda batch: {}
  details: Callable = lambda sums, rows: {}
  map: tuple[int, ...] = ()
  labels: tuple[tuple, ...] = (('label', (), 'int32'),)


def for_network(network, **settings) -> Task:
  """The task that a network's `task` and `classes` name.

  Args:
    network: has `task` and `classes`.
    **settings: of the task: smoothing, for classification; coco, limit,
      conflict and rounded for detection; weights for segmentation.
  """
  from fastsnn_jax.tasks.classification.task import classification
  from fastsnn_jax.tasks.detection.task import detection
  from fastsnn_jax.tasks.segmentation.task import segmentation

  classes = len(network.classes)
  known = {
    'classification': {'smoothing'},
    'detection': {'coco', 'limit', 'conflict', 'rounded'},
    'segmentation': {'weights'},
  }
  strange = set(settings) - known.get(network.task, set())
  if strange:
    raise UserError(
      f'{", ".join(sorted(strange))}: of no use where the network is for '
      f'{network.task}; leave it out'
    )
  if network.task == 'classification':
    return classification(classes, **settings)
  if network.task == 'segmentation':
    return segmentation(classes, network.stride, **settings)
  return detection(
    classes, network.anchors, network.stride, network.overlap, **settings
  )
