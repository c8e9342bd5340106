"""What a conversion takes: images to judge and to tune with, fine-tunings."""

import dataclasses
import functools
import math

from fastsnn_jax.architectures import task_of
from fastsnn_jax.conversion import finetune as finetuning
from fastsnn_jax.evaluation import batches as batching
from fastsnn_jax.experiment import stages
from fastsnn_jax.training.log import say

TUNE_BYTES = 2 * 10**9  # of a stream's images, in memory and on each device


def in_reach(dataset, config, settings):
  """A stream with its test split as a loader, and some training images.

  Fine-tuning goes over its images again and again: they are decoded once, as
  evaluation sees them, and stay in memory.
  """
  return dataclasses.replace(
    dataset,
    train=_tuning_images(dataset.train, dataset.mean, config, settings),
    test=stages.judged_part(
      dataset.test, config.model, config.data, dataset.mean
    ),
  )


def _tuning_images(source, mean, config, settings):
  """All of them on every process: each step takes its share of any images."""
  if not settings.schedules:
    return {}
  load = functools.partial(
    stages.judged_part,
    model=config.model,
    settings=config.data,
    mean=mean,
    shared=False,
  )
  wanted, total = settings.tune_images, len(source)
  if wanted is None:
    wanted = max(TUNE_BYTES // math.prod(load(source).shape), 1)
    if wanted < total:
      say(
        f'fine-tuning takes {wanted} of {total} training images, '
        f'{TUNE_BYTES / 1e9:.0f} GB; --tune-images N takes another number'
      )
  if wanted < total:
    source, _ = source.split(1 - wanted / total, config.seed)
  loader = load(source)
  images = batching.collect(loader)
  stages.tell_skipped('fine-tuning', loader, own=False)
  return images


def tunings(config, settings):
  """One `Tuning` per schedule asked for."""
  # Boxes and masks are of no use to it: its targets are activations.
  shifted = not config.data.size and (task_of(config.model) == 'classification')
  return tuple(
    finetuning.Tuning(
      schedule=schedule,
      epochs=settings.tune_epochs,
      learning_rate=settings.tune_learning_rate,
      weight_decay=settings.tune_weight_decay,
      batch=batching.even(config.data.batch, stages.mesh()),
      batch_norm=settings.batch_norm,
      accept=settings.accept,
      crop=config.data.crop if shifted else 0,
      flip=config.data.flip,
      mesh=stages.mesh(),
    )
    for schedule in settings.schedules
  )
