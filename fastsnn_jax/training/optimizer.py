"""What is static in one stage of training, and the optimiser it makes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is static in the training of one stage.

  Attributes:
    steps: optimiser steps of the whole stage.
    epoch_steps: of one epoch; the last batch is filled up with images of the
      same epoch, which batch norm sees and the loss does not.
    batch: images per step.
    learning_rate: at the start.
    schedule: 'step' (a tenth at each milestone), 'cosine', 'poly' (the power
      0.9 of what is left of the stage) or 'constant'.
    milestones: shares of the stage's epochs.
    momentum: of SGD.
    weight_decay: added to the gradient as weight_decay * parameter.
    decay: 'all' parameters, theta and weight_alpha too, as the reference does,
      or 'kernels' only.
    method: 'sgd' or 'adamw'.
    warmup: steps in which the rate rises to the schedule's.
    warmup_power: of the share of the warm-up that is over; 1 rises evenly.
    ema: decay of the moving average of the variables, 0 for none; times
      1 - exp(-t / 2000) behind step t (spec/detection.md 4).
    crop, flip, jitter: see `data.augment`.
    sides: of the square images between which training changes every
      ten steps; () for one size.
    dtype, accumulate, remat: see `gradients.gradients`.
    mesh: over whose devices batches are sharded; None for one device.
    per_device: batch norm takes statistics of its own on each device.
  """

  steps: int
  epoch_steps: int
  batch: int
  learning_rate: float
  schedule: str = 'step'
  milestones: tuple[float, ...] = (0.5, 0.75)
  momentum: float = 0.9
  weight_decay: float = 1e-4
  decay: str = 'all'
  method: str = 'sgd'
  warmup: int = 0
  warmup_power: float = 1.0
  ema: float = 0.0
  crop: int = 4
  flip: bool = True
  jitter: float = 0.0
  sides: tuple[int, ...] = ()
  dtype: str = 'float32'
  accumulate: int = 1
  remat: bool = False
  mesh: Mesh | None = None
  per_device: bool = False

  def optimizer(self) -> optax.GradientTransformation:
    """SGD: g += wd p; v = momentum v + g; p -= lr v, as PyTorch's; or AdamW."""
    mask = None if self.decay == 'all' else _is_kernel
    if self.method == 'adamw':
      return optax.adamw(
        self.schedule_of_rate(), weight_decay=self.weight_decay, mask=mask
      )
    return optax.chain(
      optax.add_decayed_weights(self.weight_decay, mask),
      optax.trace(self.momentum),
      optax.scale_by_learning_rate(self.schedule_of_rate()),
    )

  def schedule_of_rate(self) -> optax.Schedule:
    """Step -> learning rate."""
    rate = self.learning_rate
    schedule = {
      'constant': lambda: optax.constant_schedule(rate),
      'cosine': lambda: optax.cosine_decay_schedule(rate, self.steps),
      'poly': lambda: optax.polynomial_schedule(rate, 0, 0.9, self.steps),
      'step': lambda: optax.piecewise_constant_schedule(rate, self._drops()),
    }[self.schedule]()
    if not self.warmup:
      return schedule
    # A linear rise starts above 0; the reference's, of power 4, at 0.
    first = 1 if self.warmup_power == 1 else 0

    def warmed(step):
      share = jnp.minimum((step + first) / self.warmup, 1)
      return schedule(step) * share**self.warmup_power

    return warmed

  def gradients(self) -> dict[str, Any]:
    """The settings of `gradients.gradients`."""
    return {
      'dtype': self.dtype,
      'accumulate': self.accumulate,
      'remat': self.remat,
      'per_device': self.mesh if self.per_device else None,
    }

  def _drops(self) -> dict[int, float]:
    """{first step of the first epoch behind a milestone: factor}."""
    epochs, drops = self.steps // self.epoch_steps, {}
    for share in self.milestones:
      # Rounded first: 60 * (2 / 3) may be a last bit above 40.
      step = math.ceil(round(epochs * share, 6)) * self.epoch_steps
      drops[step] = drops.get(step, 1) * 0.1
    return drops


def _is_kernel(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )
