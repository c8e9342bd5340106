"""The optimiser of a stage of training, by optax."""

import math

import jax
import jax.numpy as jnp
import optax


def make_optimizer(config, stage, epoch_steps: int):
  """`sgd` or AdamW, as a stage of an `Experiment` asks for it."""
  rate = learning_rate(config, stage, epoch_steps)
  mask = None if config.decay == 'all' else _is_kernel
  if config.optimizer == 'adamw':
    return optax.adamw(rate, weight_decay=stage.weight_decay, mask=mask)
  return sgd(rate, config.momentum, stage.weight_decay, mask)


def sgd(rate, momentum: float, decay: float, mask=None):
  """PyTorch's: g += decay p; v = momentum v + g; p -= rate v."""
  return optax.chain(
    optax.add_decayed_weights(decay, mask),
    optax.trace(momentum),
    optax.scale_by_learning_rate(rate),
  )


def learning_rate(config, stage, epoch_steps: int) -> optax.Schedule:
  """Step -> learning rate of a stage."""
  rate, steps = stage.learning_rate, stage.epochs * epoch_steps
  match stage.schedule:
    case 'constant':
      schedule = optax.constant_schedule(rate)
    case 'cosine':
      schedule = optax.cosine_decay_schedule(rate, steps)
    case 'poly':
      schedule = optax.polynomial_schedule(rate, 0, 0.9, steps)
    case _:
      drops = {}
      for share in stage.milestones:
        # Rounded first: 60 * (2 / 3) may be a last bit above 40.
        step = math.ceil(round(stage.epochs * share, 6)) * epoch_steps
        drops[step] = drops.get(step, 1) * 0.1
      schedule = optax.piecewise_constant_schedule(rate, drops)
  warmup, power = round(config.warmup * epoch_steps), config.warmup_power
  # A linear rise starts above 0; the official code's, of power 4, at 0.
  first = 1 if power == 1 else 0

  def warmed(step):
    return schedule(step) * jnp.minimum((step + first) / warmup, 1) ** power

  return warmed if warmup else schedule


def _is_kernel(params):
  return jax.tree.map(lambda x: x.ndim > 1, params)
