"""Image classification: labels are integers, the metric is top-1 accuracy."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import color_jitter, crop_flip
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.classification import data
from fastsnn_jax.tasks.task import Task, refuse_anchors


@dataclasses.dataclass(frozen=True)
class Classification(Task):
  """A class for each image.

  Attributes:
    smoothing: share s of the target that is spread over all classes: 1 - s for
      the label and s / classes for all.
  """

  smoothing: float = 0.0

  metric: ClassVar[str] = 'accuracy'
  verb: ClassVar[str] = 'classify'
  labels: ClassVar = {'label': 0}

  @classmethod
  def open(cls, settings, model):
    refuse_anchors(settings)
    if settings.sizes or (settings.size and not settings.stream):
      raise UserError(
        f'data.size={settings.size}, data.sizes={settings.sizes}: images to '
        'classify have the size that they have, unless they are streamed; '
        'leave both out, or set data.size and stream=True'
      )
    return data.open_data(settings)

  def for_training(self, train, *, smoothing=0.0, balance=0.0):
    super().for_training(train, balance=balance)
    return dataclasses.replace(self, smoothing=smoothing)

  def augment(self, key, batch, settings, side=None):
    images = crop_flip(
      key, batch['image'], padding=self.shift(settings), flip=settings.flip
    )
    if settings.jitter:
      # Another key: what crop_flip draws hangs on the key alone.
      images = color_jitter(jax.random.fold_in(key, 1), images, settings.jitter)
    return {**batch, 'image': self.present(images)}

  def shift(self, settings):
    # Pictures that are brought to a size were cut at random on the host.
    return 0 if settings.size else settings.crop

  def loss(self, outputs, batch):
    """Softmax cross entropy, mean over the real rows."""
    wide = jnp.promote_types(outputs.dtype, jnp.float32)
    log_p = jax.nn.log_softmax(outputs.astype(wide))
    picked = jnp.take_along_axis(log_p, batch['label'][:, None], 1)[:, 0]
    if self.smoothing:
      mean = jnp.mean(log_p, -1)
      picked = (1 - self.smoothing) * picked + self.smoothing * mean
    total = -jnp.sum(picked * batch['mask'])
    sums = self.measure(self.predict(outputs), batch)
    # A device may have no real row in the last batch of an epoch.
    return total / jnp.maximum(sums['count'], 1), {'loss': total, **sums}

  def margin(self, outputs):
    """[B]: by how much the first class is more probable than the second."""
    shares = jax.nn.softmax(outputs.astype(jnp.float32))
    best, second = jnp.moveaxis(jax.lax.top_k(shares, 2)[0], -1, 0)
    return best - second

  def answers(self, network, variables, images, run=None):
    """Classes; `run` takes (network, variables, what is shown, margin) and
    gives outputs in the place of all steps."""
    if run is None:
      return super().answers(network, variables, images)
    shown = self.present(jnp.asarray(images))
    return np.asarray(
      self.predict(run(network, variables, shown, self.margin).output)
    )

  def predict(self, outputs):
    """The class of the largest output."""
    return jnp.argmax(outputs, -1)

  def measure(self, predictions, batch):
    """Correct and counted images."""
    correct = jnp.where(predictions == batch['label'], batch['mask'], 0)
    return {'correct': jnp.sum(correct), 'count': jnp.sum(batch['mask'])}

  def summarize(self, sums, kept=None):
    """{'accuracy': share of correct images}, and the loss if it was summed."""
    return {
      name: float(np.asarray(sums[key]) / sums['count'])
      for name, key in (('accuracy', 'correct'), ('loss', 'loss'))
      if key in sums
    }
