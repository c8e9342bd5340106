"""Quantisation-aware training: one stage, on data that lives on the device.

An epoch is shuffled, augmented and stepped through inside jitted scans. Each
call of `train_chunk` runs as many steps as the host asks for, about a second's
work; between the calls come progress, saving and the check for NaN. What a step
draws depends on the seed and its number only, so a resumed run equals an
unbroken one bit for bit, wherever it was cut.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastsnn_jax.data import crop_flip, normalize
from fastsnn_jax.tasks import Task

SLOTS = 64  # of a scan: the most steps that one call runs


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is static in the training of one stage.

  Attributes:
    steps: optimiser steps of the whole stage.
    epoch_steps: of one epoch; the last batch is filled up with images of the
      same epoch, which batch norm sees and the loss does not.
    batch: images per step.
    learning_rate: at the start.
    schedule: 'step' (a tenth at each milestone), 'cosine' or 'constant'.
    milestones: shares of the stage's epochs.
    momentum: of SGD.
    weight_decay: added to the gradient as weight_decay * parameter.
    decay: 'all' parameters, theta and weight_alpha too, as the reference does,
      or 'kernels' only.
    crop: zero padding in pixels for random crops; 0 for none.
    flip: mirror images at random.
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
  crop: int = 4
  flip: bool = True

  def optimizer(self) -> optax.GradientTransformation:
    """SGD: g += wd p; v = momentum v + g; p -= lr v, as PyTorch's."""
    rate = self.learning_rate
    schedule = {
      'constant': lambda: optax.constant_schedule(rate),
      'cosine': lambda: optax.cosine_decay_schedule(rate, self.steps),
      'step': lambda: optax.piecewise_constant_schedule(
        rate,
        self._drops(),
      ),
    }[self.schedule]()
    mask = None if self.decay == 'all' else _is_kernel
    return optax.chain(
      optax.add_decayed_weights(self.weight_decay, mask),
      optax.trace(self.momentum),
      optax.scale_by_learning_rate(schedule),
    )

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


class TrainState(NamedTuple):
  """All that a stage needs to go on: a plain tree of arrays."""

  variables: dict[str, Any]
  opt_state: Any
  step: jax.Array  # steps done in this stage
  sums: dict[str, jax.Array]  # the task's sums over this epoch so far
  bad_step: jax.Array  # first with a loss or update not finite, or -1
  best: dict[str, Any]  # variables of the best epoch so far
  best_score: jax.Array


def create(variables, recipe: Recipe, task: Task) -> TrainState:
  """The state before the first step, from these variables (copied)."""
  variables = jax.tree.map(jnp.array, variables)
  batch = {'label': jnp.zeros(1, jnp.int32), 'mask': jnp.ones(1)}
  _, sums = jax.eval_shape(task.loss, jnp.zeros((1, task.outputs)), batch)
  return TrainState(
    variables=variables,
    opt_state=recipe.optimizer().init(variables['params']),
    step=jnp.int32(0),
    sums=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
    bad_step=jnp.int32(-1),
    best=jax.tree.map(jnp.array, variables),
    best_score=jnp.float32(-jnp.inf),
  )


def train_step(state, batch, *, network, task, optimizer) -> TrainState:
  """One optimiser step on a batch of normalised images."""

  def loss_of(params):
    variables = {**state.variables, 'params': params}
    output, _, statistics = network.apply(variables, batch['image'], train=True)
    loss, sums = task.loss(output, batch)
    return loss, (sums, statistics)

  params = state.variables['params']
  grads, (sums, statistics) = jax.grad(loss_of, has_aux=True)(params)
  updates, opt_state = optimizer.update(grads, state.opt_state, params)
  finite = jnp.isfinite(sums['loss'])
  for update in jax.tree.leaves(updates):
    finite &= jnp.all(jnp.isfinite(update))
  good = finite | (state.bad_step >= 0)
  return state._replace(
    variables={
      'params': optax.apply_updates(params, updates),
      'batch_stats': statistics,
    },
    opt_state=opt_state,
    step=state.step + 1,
    sums=jax.tree.map(jnp.add, state.sums, sums),
    bad_step=jnp.where(good, state.bad_step, state.step),
  )


@functools.partial(
  jax.jit,
  static_argnames=('network', 'task', 'recipe'),
  donate_argnames='state',
)
def train_chunk(state, data, key, stop, *, network, task, recipe):
  """Steps up to number `stop` of this stage, `SLOTS` at most, in one epoch.

  Args:
    state: `TrainState`; donated.
    data: dict of arrays on the device, images uint8.
    key: of the stage.
    stop: traced, so that every length of a chunk is one program.
    network, task, recipe: static.

  Returns:
    (state, sums of the epoch so far, bad_step); the latter two survive the
    donation of the state to the next call.
  """
  optimizer = recipe.optimizer()
  size = data['label'].shape[0]
  epoch = state.step // recipe.epoch_steps
  order_key, draw_key = jax.random.split(key)
  order = jax.random.permutation(jax.random.fold_in(order_key, epoch), size)
  fresh = state.step % recipe.epoch_steps == 0
  sums = jax.tree.map(lambda x: jnp.where(fresh, 0, x), state.sums)

  def step(state):
    position = state.step % recipe.epoch_steps * recipe.batch
    position = position + jnp.arange(recipe.batch)
    rows = order[position % size]
    batch = jax.tree.map(lambda x: x[rows], data)
    batch['mask'] = (position < size).astype(jnp.float32)
    draw = jax.random.fold_in(draw_key, state.step)
    images = crop_flip(
      draw, batch['image'], padding=recipe.crop, flip=recipe.flip
    )
    batch['image'] = normalize(images, network.mean, network.std)
    return train_step(
      state, batch, network=network, task=task, optimizer=optimizer
    )

  def slot(state, _):
    going = (state.step < stop) & (state.bad_step < 0)
    return jax.lax.cond(going, step, lambda s: s, state), None

  state, _ = jax.lax.scan(slot, state._replace(sums=sums), length=SLOTS)
  return state, jax.tree.map(jnp.copy, state.sums), jnp.copy(state.bad_step)


@functools.partial(jax.jit, donate_argnames='state')
def keep_best(state: TrainState, score) -> TrainState:
  """Takes the variables as the best ones, where their score is the highest."""
  better = score > state.best_score
  best = jax.tree.map(
    lambda new, old: jnp.where(better, new, old), state.variables, state.best
  )
  top = jnp.maximum(score, state.best_score)
  return state._replace(best=best, best_score=top)


def graft(fresh, old):
  """`fresh` variables with every leaf that `old` has of the same name.

  From 32 bits to fewer, theta and weight_alpha are new and keep their initial
  values; from there on everything is taken over.
  """
  old = dict(jax.tree_util.tree_leaves_with_path(old))
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.asarray(old.get(path, leaf)), fresh
  )
