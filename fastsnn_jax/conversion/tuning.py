"""How to fine-tune: the settings of `finetune`."""

import dataclasses
import math
import numbers

from fastsnn_jax.errors import check_fields, check_whole
from fastsnn_jax.training.optimizer import sgd

SCHEDULES = 'bias', 'sequential', 'parallel'


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How to fine-tune.

  Attributes:
    schedule: 'bias', 'sequential' or 'parallel'. Bias takes the first 512
      images as they are, and of the settings below `batch` and `accept` alone.
    epochs: passes over the images per layer (bias, sequential) or in all
      (parallel).
    learning_rate, momentum, weight_decay: of SGD, on all that moves.
    batch: images per step; an incomplete last batch is left out.
    batch_norm: 'train' normalises the twin with the batch's statistics and
      updates the running ones, as the official code does for ResNets; 'eval'
      leaves them, as it does for the CIFAR AlexNet and VGG. A function
      normalises as it is written.
    accept: 'better' keeps an update only where the score on the tuning images
      rises; a sweep of bias where the outputs for the last tenth of the images,
      which it does not take, come nearer to the quantised network's. 'always'
      keeps each (--force in the official code).
    crop, flip: augmentation of the tuning images.

  >>> Tuning(epochs=2).schedule
  'sequential'
  """

  schedule: str = 'sequential'
  epochs: int = 1
  learning_rate: float = 1e-3
  momentum: float = 0.9
  weight_decay: float = 1e-4
  batch: int = 128
  batch_norm: str = 'train'
  accept: str = 'better'
  crop: int = 4
  flip: bool = True

  def __post_init__(self):
    known = self.schedule in SCHEDULES
    for name, low in (('epochs', 1), ('batch', 1), ('crop', 0)):
      check_whole(f'Tuning: {name}', getattr(self, name), low)
    for name in ('learning_rate', 'momentum', 'weight_decay'):
      value = getattr(self, name)
      real = isinstance(value, numbers.Real) and 0 <= value < math.inf
      check_fields(self, (name, real, 'a finite number of at least 0'))
    check_fields(
      self,
      ('schedule', known, f'one of {", ".join(SCHEDULES)}'),
      ('batch_norm', self.batch_norm in ('train', 'eval'), 'train or eval'),
      ('accept', self.accept in ('better', 'always'), 'better or always'),
    )

  def optimizer(self):
    return sgd(self.learning_rate, self.momentum, self.weight_decay)
