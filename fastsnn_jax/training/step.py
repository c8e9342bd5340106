"""Quantisation-aware training: the state of a stage, and its steps.

Data that live on the device are shuffled, augmented and stepped through inside
jitted scans: each call of `train_chunk` runs as many steps as the host asks
for, about a second's work. Batches that stream in take a call of `train_batch`
each. What a step draws depends on the seed and its number only, so a resumed
run equals an unbroken one bit for bit, wherever it was cut.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastsnn_jax.data import augment, normalize, resize
from fastsnn_jax.distributed import keep_by_row
from fastsnn_jax.tasks import Task
from fastsnn_jax.training.gradients import gradients
from fastsnn_jax.training.optimizer import Recipe

__all__ = [
  'SLOTS',
  'Recipe',
  'TrainState',
  'create',
  'graft',
  'keep_best',
  'train_batch',
  'train_chunk',
  'train_step',
]

SLOTS = 64  # of a scan: the most steps that one call runs


class TrainState(NamedTuple):
  """All that a stage needs to go on: a plain tree of arrays."""

  variables: dict[str, Any]
  opt_state: Any
  step: jax.Array  # steps done in this stage
  sums: dict[str, jax.Array]  # the task's sums over this epoch so far
  bad_step: jax.Array  # first with a loss or update not finite, or -1
  best: dict[str, Any]  # variables of the best epoch so far
  best_score: jax.Array
  average: dict[str, Any]  # moving average of the variables, or empty

  @property
  def shown(self):
    """The variables to judge: their moving average, where there is one."""
    return self.average or self.variables


def create(variables, recipe: Recipe, task: Task) -> TrainState:
  """The state before the first step, from these variables (copied)."""
  variables = jax.tree.map(jnp.array, variables)
  outputs = jnp.zeros((1, *task.map, task.outputs))
  labels = {name: jnp.zeros((1, *s), t) for name, s, t in task.labels}
  _, sums = jax.eval_shape(task.loss, outputs, {**labels, 'mask': jnp.ones(1)})
  return TrainState(
    variables=variables,
    opt_state=recipe.optimizer().init(variables['params']),
    step=jnp.int32(0),
    sums=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
    bad_step=jnp.int32(-1),
    best=jax.tree.map(jnp.array, variables),
    best_score=jnp.float32(-jnp.inf),
    average=jax.tree.map(jnp.array, variables) if recipe.ema else {},
  )


def train_step(
  state, batch, *, network, task, optimizer, ema=0.0, **how
) -> TrainState:
  """One optimiser step on a batch of normalised images.

  `how` are the settings of `gradients.gradients`.
  """
  params = state.variables['params']
  grads, sums, statistics = gradients(
    state.variables, batch, network=network, task=task, **how
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, params)
  finite = jnp.isfinite(sums['loss'])
  for update in jax.tree.leaves(updates):
    finite &= jnp.all(jnp.isfinite(update))
  good = finite | (state.bad_step >= 0)
  variables = {
    'params': optax.apply_updates(params, updates),
    'batch_stats': statistics,
  }
  average = state.average
  if average:
    # Early on a shorter average, or it would be the start for long.
    decay = ema * (1 - jnp.exp(-(state.step + 1) / 2000))
    average = optax.incremental_update(variables, average, 1 - decay)
  return state._replace(
    variables=variables,
    average=average,
    opt_state=opt_state,
    step=state.step + 1,
    sums=jax.tree.map(jnp.add, state.sums, sums),
    bad_step=jnp.where(good, state.bad_step, state.step),
  )


@functools.partial(
  jax.jit,
  static_argnames=('network', 'task', 'recipe', 'side'),
  donate_argnames='state',
)
def train_chunk(state, data, key, stop, *, network, task, recipe, side=None):
  """Steps up to number `stop` of this stage, `SLOTS` at most, in one epoch.

  Args:
    state: `TrainState`; donated.
    data: dict of arrays on the device, images uint8.
    key: of the stage.
    stop: traced, so that every length of a chunk is one program.
    network, task, recipe: static.
    side: that images are resized to; None to leave them; static too.

  Returns:
    (state, sums of the epoch so far, bad_step); the latter two survive the
    donation of the state to the next call.
  """
  size = data['label'].shape[0]
  epoch = state.step // recipe.epoch_steps
  order_key, draw_key = jax.random.split(key)
  order = jax.random.permutation(jax.random.fold_in(order_key, epoch), size)
  state = _open_epoch(state, recipe)

  def step(state):
    position = state.step % recipe.epoch_steps * recipe.batch
    position = position + jnp.arange(recipe.batch)
    rows = keep_by_row(order[position % size], recipe.mesh)
    batch = jax.tree.map(lambda x: x[rows], data)
    batch['mask'] = (position < size).astype(jnp.float32)
    batch = keep_by_row(batch, recipe.mesh)
    return _augmented_step(state, batch, draw_key, network, task, recipe, side)

  def slot(state, _):
    going = (state.step < stop) & (state.bad_step < 0)
    return jax.lax.cond(going, step, lambda s: s, state), None

  state, _ = jax.lax.scan(slot, state, length=SLOTS)
  return state, jax.tree.map(jnp.copy, state.sums), jnp.copy(state.bad_step)


@functools.partial(
  jax.jit,
  static_argnames=('network', 'task', 'recipe', 'side'),
  donate_argnames='state',
)
def train_batch(state, batch, key, *, network, task, recipe, side=None):
  """One step on a batch that came in; nothing once a step was bad.

  Args:
    state: `TrainState`; donated.
    batch: 'image' uint8, the task's labels and 'mask', sharded by row.
    key: of the stage.
    network, task, recipe, side: static.

  Returns:
    As `train_chunk`.
  """
  _, draw_key = jax.random.split(key)

  def step(state):
    return _augmented_step(state, batch, draw_key, network, task, recipe, side)

  state = _open_epoch(state, recipe)
  state = jax.lax.cond(state.bad_step < 0, step, lambda s: s, state)
  return state, jax.tree.map(jnp.copy, state.sums), jnp.copy(state.bad_step)


def _open_epoch(state, recipe):
  """The sums start anew with each epoch."""
  fresh = state.step % recipe.epoch_steps == 0
  sums = jax.tree.map(lambda x: jnp.where(fresh, 0, x), state.sums)
  return state._replace(sums=sums)


def _augmented_step(state, batch, draw_key, network, task, recipe, side):
  key = jax.random.fold_in(draw_key, state.step)
  batch = augment(
    key,
    batch,
    crop=recipe.crop,
    flip=recipe.flip,
    jitter=recipe.jitter,
    fill=tuple(255 * mean for mean in network.mean),
    side=side,
  )
  images = normalize(batch['image'], network.mean, network.std)
  if side is not None:
    images = resize(images, side)
  return train_step(
    state,
    {**batch, 'image': images},
    network=network,
    task=task,
    optimizer=recipe.optimizer(),
    ema=recipe.ema,
    **recipe.gradients(),
  )


@functools.partial(jax.jit, donate_argnames='state')
def keep_best(state: TrainState, score) -> TrainState:
  """Takes the variables as the best ones, where their score is the highest."""
  better = score > state.best_score
  best = jax.tree.map(
    lambda new, old: jnp.where(better, new, old), state.shown, state.best
  )
  top = jnp.maximum(score, state.best_score)
  return state._replace(best=best, best_score=top)


def graft(fresh, old, *, only: str = ''):
  """`fresh` variables with every leaf that `old` has of the same name.

  From 32 bits to fewer, theta and weight_alpha are new and keep their initial
  values; from there on everything is taken over.

  Args:
    fresh, old: variables.
    only: take over layers whose name begins so; '' for all.
  """
  old = {
    path: leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(old)
    if path[1].key.startswith(only)
  }
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.asarray(old.get(path, leaf)), fresh
  )
