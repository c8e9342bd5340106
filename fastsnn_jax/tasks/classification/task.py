"""Image classification: labels are integers, the metric is top-1 accuracy."""

import functools

import jax
import jax.numpy as jnp

from fastsnn_jax.tasks import Task


def loss(outputs, batch, smoothing=0.0):
  """Softmax cross entropy, mean over the real rows, and the sums to report.

  With smoothing s the target is 1 - s for the label and s / classes for all.
  """
  log_p = jax.nn.log_softmax(outputs.astype(_wide(outputs)))
  picked = jnp.take_along_axis(log_p, batch['label'][:, None], 1)[:, 0]
  if smoothing:
    picked = (1 - smoothing) * picked + smoothing * jnp.mean(log_p, -1)
  total = -jnp.sum(picked * batch['mask'])
  sums = measure(predict(outputs), batch)
  # A device may have no real row in the last batch of an epoch.
  return total / jnp.maximum(sums['count'], 1), {'loss': total, **sums}


def predict(outputs):
  """The class of the largest output."""
  return jnp.argmax(outputs, -1)


def measure(predictions, batch):
  """Correct and counted images."""
  correct = (predictions == batch['label']) * batch['mask']
  return {'correct': jnp.sum(correct), 'count': jnp.sum(batch['mask'])}


def agree(predictions, others, batch):
  """(images on which two predictions are the same class, all images)."""
  mask = batch['mask']
  return jnp.sum((predictions == others) * mask), jnp.sum(mask)


def summarize(sums, kept=None):
  """{'accuracy': share of correct images} and the loss, where it was summed."""
  del kept  # everything is a sum
  result = {'accuracy': float(sums['correct'] / sums['count'])}
  if 'loss' in sums:
    result['loss'] = float(sums['loss'] / sums['count'])
  return result


@functools.cache  # one object per problem: jitted functions know it again
def classification(classes: int, smoothing: float = 0.0) -> Task:
  """The task for so many classes, with label smoothing if asked for."""
  smooth = functools.partial(loss, smoothing=smoothing) if smoothing else loss
  return Task(classes, smooth, predict, measure, agree, summarize, 'accuracy')


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)
