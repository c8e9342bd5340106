"""Semantic segmentation: a class for every pixel, the metric is mIoU.

A batch has 'label' [B, H, W], 255 where a pixel does not count, and 'mask';
where images are padded at the bottom and on the right, 'size' [B, 2] is the
(width, height) of what is real. A network's output is a map of logits that
`upsample` enlarges to the image (reference behaviour S1.4).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import color_jitter, squares
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.segmentation import data
from fastsnn_jax.tasks.segmentation.augment import SCALES, augment_masks
from fastsnn_jax.tasks.segmentation.upsample import upsample
from fastsnn_jax.tasks.task import Task, check_sides, refuse_anchors

_TINY = float(np.finfo(np.float32).eps)  # in the official code's denominator


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
  """A class for every pixel.

  Attributes:
    stride: pixels from one cell of the output to the next.
    weights: of the classes in the loss, such as `balanced` gives; () for 1.
  """

  stride: int = 1
  weights: tuple[float, ...] = ()

  metric: ClassVar[str] = 'mIoU'
  verb: ClassVar[str] = 'segment'
  labels: ClassVar = {'label': 2}
  _of_network: ClassVar = ('stride',)

  @classmethod
  def open(cls, settings, model):
    refuse_anchors(settings)
    check_sides(settings, model)
    if len(settings.sizes) > 1:
      raise UserError(
        f'data.sizes={settings.sizes}: crops of images with masks have one '
        'side; name one'
      )
    return data.open_data(settings, model)

  @classmethod
  def network_fields(cls, settings, model, dataset):
    fields = super().network_fields(settings, model, dataset)
    return {**fields, 'size': dataset.test.shape[0]}

  def for_training(self, train, *, smoothing=0.0, balance=0.0):
    super().for_training(train, smoothing=smoothing)
    if not balance:
      return self
    masks = train.column('label')
    if masks is None:
      raise UserError(
        f'balance={balance}: it takes the masks of a segmenter, in memory; '
        'leave it out, or data.stream'
      )
    weights = balanced(masks, self.classes, balance)
    return dataclasses.replace(self, weights=weights)

  def labelled(self, split):
    masks = split.column('label')
    if masks is not None:
      return bool(np.any((masks >= 0) & (masks < self.classes)))
    known = split.column('has_class')
    return known is None or bool(np.any(known))

  def augment(self, key, batch, settings, side=None):
    images = batch['image']
    if settings.jitter:
      # Another key: what augment_masks draws hangs on the key alone.
      images = color_jitter(
        jax.random.fold_in(key, 1), images, settings.jitter, batch.get('size')
      )
    batch = augment_masks(  # at the end: what pads an image keeps its colour
      key,
      {**batch, 'image': images},
      side=side or images.shape[1],
      fill=tuple(255 * mean for mean in self.mean),
      scales=SCALES if settings.crop else (1.0,),
      flip=settings.flip,
    )
    return {**batch, 'image': self.present(batch['image'])}

  def loss(self, outputs, batch):
    """Softmax cross entropy l, mean over the pixels that count.

    With weights w it is sum(w_c l) / sum(w_c) over pixels of class c, and
    'loss' and 'count' are these two sums.
    """
    logits = upsample(outputs, self.stride)
    counts = _counting(batch, logits.shape[-1])
    label = jnp.where(counts, batch['label'], 0).astype(jnp.int32)
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, label[..., None], -1)[..., 0]
    weight = counts.astype(picked.dtype)
    right = (jnp.argmax(logits, -1) == label) & counts
    correct = jnp.sum(right, dtype=weight.dtype)
    sums = {'correct': correct, 'pixels': jnp.sum(weight)}
    if self.weights:
      weight *= jnp.array(self.weights, weight.dtype)[label]
    total = -jnp.sum(jnp.where(counts, weight * picked, 0))
    count = jnp.sum(weight)
    # Without a pixel total is 0; with weights, count may well be below 1.
    mean = total / jnp.where(count > 0, count, 1)
    return mean, {**sums, 'loss': total, 'count': count}

  def predict(self, outputs):
    """uint8 [B, H, W], the class of the largest logit."""
    logits = upsample(outputs, self.stride)
    return jnp.argmax(logits, -1).astype(jnp.uint8)

  def measure(self, predictions, batch):
    """{'confusion': int32 [C, C]}: pixels, by class in truth and prediction.

    >>> batch = {'label': jnp.array([[[0, 1, 255]]]), 'mask': jnp.ones(1)}
    >>> task = Segmentation(classes=2)
    >>> task.measure(jnp.array([[[0, 0, 1]]]), batch)['confusion'].tolist()
    [[1, 0], [1, 0]]
    """
    classes = self.classes
    pair = batch['label'].astype(jnp.int32) * classes + predictions
    pair = jnp.where(_counting(batch, classes), pair, classes**2)  # left out
    cells = jnp.zeros(classes**2 + 1, jnp.int32).at[pair.ravel()].add(1)
    return {'confusion': cells[:-1].reshape(classes, classes)}

  def agree(self, predictions, others, batch):
    """(pixels to which both give one class, all pixels of the images)."""
    rows, *shape = predictions.shape
    real = jnp.broadcast_to((batch['mask'] > 0)[:, None, None], (rows, *shape))
    if 'size' in batch:  # without the padding
      width, height = batch['size'].T[..., None, None]
      real &= jnp.arange(shape[0])[:, None] < height
      real &= jnp.arange(shape[1]) < width
    same = real & (predictions == others)
    return jnp.sum(same, dtype=jnp.int32), jnp.sum(real, dtype=jnp.int32)

  def pictures(self, batch):
    size = {'size': batch['size']} if 'size' in batch else {}
    return {'truth': batch['label'], **size}

  def summarize(self, sums, kept=None):
    """{'mIoU': mean over all classes, one that never occurs counts as 0 (as in
    the official code), 'mIoU_present': over those in the truth,
    'pixel_accuracy'}; or of `loss`'s sums the loss and the pixel accuracy."""
    if 'confusion' not in sums:
      return {
        'pixel_accuracy': float(sums['correct'] / sums['pixels']),
        'loss': float(sums['loss'] / sums['count']),
      }
    confusion = np.asarray(sums['confusion'], np.float64)
    iou = intersection_over_union(confusion)
    present = confusion.sum(1) > 0
    return {
      'mIoU': float(iou.mean()),
      'mIoU_present': float(iou[present].mean()) if present.any() else 0.0,
      'pixel_accuracy': float(np.trace(confusion) / max(confusion.sum(), 1)),
    }

  def details(self, sums, kept=None):
    """{'by_class': IoUs, None where neither truth nor prediction has it}."""
    confusion = np.asarray(sums['confusion'], np.float64)
    known = confusion.sum(0) + confusion.sum(1) > 0
    rows = zip(intersection_over_union(confusion).tolist(), known, strict=True)
    return {'by_class': [iou if seen else None for iou, seen in rows]}

  def answers(self, network, variables, images):
    """uint8 [B, H, W], see `inference.segment`."""
    height, width = images.shape[1:3]
    if not self.mean:
      raise UserError('the network has no mean and std; give them to fs.build')
    if images.shape[-1] != len(self.mean):
      raise UserError(
        f'images of shape {images.shape}, but the network takes '
        f'{len(self.mean)} channels; repeat a grey one, leave out transparency'
      )
    sides = (self.size, self.size)
    if max(height, width) > self.size:
      sides = (squares.fitting_size(x, self.stride) for x in (height, width))
    fill = 255 * np.array(self.mean, np.float32)
    padded = np.full((len(images), *sides, images.shape[-1]), fill)
    padded[:, :height, :width] = images
    answers = super().answers(network, variables, padded)
    return answers[:, :height, :width]


def balanced(labels, classes: int, power: float) -> tuple[float, ...]:
  """Weights of the classes, f ** -power, with a mean of 1 over the pixels.

  f is a class's share of the `labels`, integers; those outside 0..classes-1 do
  not count. With a power of 0 weights are equal, with 1 all classes weigh the
  same in all.

  >>> balanced(np.array([0, 0, 0, 1, 255]), 3, 1.0)
  (0.6667, 2.0, 0.0)
  """
  pixels = np.array([np.count_nonzero(labels == c) for c in range(classes)])
  share = pixels / max(pixels.sum(), 1)
  raised = np.where(share > 0, np.maximum(share, _TINY) ** -power, 0)
  mean = np.sum(raised * share) or 1  # 0 where nobody has a class
  return tuple(round(float(w / mean), 4) for w in raised)


def intersection_over_union(confusion):
  """Of each class, M_cc / (row + column - M_cc + eps) (S4).

  >>> np.round(intersection_over_union(np.array([[2, 0], [1, 1]])), 3)
  array([0.667, 0.5  ])
  """
  both = np.diag(confusion)
  either = confusion.sum(0) + confusion.sum(1) - both
  return both / (either + _TINY)


def _counting(batch, classes):
  """[B, H, W]: pixels of real rows with a class."""
  label = batch['label'].astype(jnp.int32)
  return (label >= 0) & (label < classes) & (batch['mask'] > 0)[:, None, None]
