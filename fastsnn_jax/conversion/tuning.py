"""What is static in a fine-tuning, and the optimiser it makes."""

import dataclasses

import optax
from jax.sharding import Mesh

from fastsnn_jax.errors import UserError

SCHEDULES = ('sequential', 'parallel')


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How to fine-tune.

  Attributes:
    schedule: 'sequential' or 'parallel'.
    epochs: passes over the images per layer (sequential) or in all (parallel).
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: on all that moves.
    batch: images per step; an incomplete last batch is left out.
    batch_norm: 'train' normalises the twin with the batch's statistics and
      updates the running ones, as the reference does for ResNets; 'eval'
      leaves them, as it does for the CIFAR AlexNet and VGG.
    accept: 'better' keeps an update only where the spiking network's score on
      the tuning images rises; 'always' keeps each (the reference's --force).
    crop, flip: augmentation of the tuning images.
    mesh: over whose devices batches are shared out; None for one device.
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
  mesh: Mesh | None = None

  def __post_init__(self):
    for name in ('epochs', 'batch'):
      if getattr(self, name) < 1:
        raise UserError(f'{name}={getattr(self, name)!r}: at least 1 is needed')
    for name, values in (
      ('schedule', SCHEDULES),
      ('batch_norm', ('train', 'eval')),
      ('accept', ('better', 'always')),
    ):
      if getattr(self, name) not in values:
        raise UserError(
          f'{name}={getattr(self, name)!r}: it is one of {", ".join(values)}'
        )

  def optimizer(self):
    return optax.chain(
      optax.add_decayed_weights(self.weight_decay),
      optax.trace(self.momentum),
      optax.scale_by_learning_rate(self.learning_rate),
    )
