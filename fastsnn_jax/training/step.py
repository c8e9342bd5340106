"""Quantisation-aware training: the state of a stage, and its one jitted step.

What a step draws depends on the seed and its number only, so a resumed run
equals an unbroken one bit for bit, wherever it was cut.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fastsnn_jax import distributed
from fastsnn_jax.training.gradients import gradients
from fastsnn_jax.training.optimizer import make_optimizer


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
  def judged(self):
    """The variables to judge: their moving average, where there is one."""
    return self.average or self.variables


class Step(NamedTuple):
  """The training step of a stage, as `make_step` makes it."""

  start: Callable
  advance: Callable


def make_step(network, task, config, stage, epoch_steps: int) -> Step:
  """The step of a stage of an `Experiment`, compiled once for each side.

  A side, static, is what images are brought to, or None for their own.
  """
  optimizer = make_optimizer(config, stage, epoch_steps)

  def augment(batch, key, side):
    batch = task.augment(key, distributed.keep_by_row(batch), config.data, side)
    return distributed.keep_by_row(batch)

  def start(variables, shapes, side=None):
    """The state before the first step; `shapes` are those of a batch."""

    def sums_of(batch):
      batch = augment(batch, jax.random.key(0), side)
      output, _ = network.apply(variables, batch['image'])
      return task.loss(output, batch)[1]

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(sums_of, shapes))
    return create(variables, optimizer, zeros, average=bool(config.ema))

  @functools.partial(jax.jit, static_argnames='side', donate_argnames='state')
  def advance(state, batch, key, side=None):
    """(state, (sums of the epoch so far, bad_step)), which outlive the state.

    `batch` has raw images and labels, shared out by row; `key` is the stage's.
    """
    begins = state.step % epoch_steps == 0  # an epoch, whose sums start anew
    sums = jax.tree.map(lambda x: jnp.where(begins, 0, x), state.sums)
    state = train_step(
      state._replace(sums=sums),
      augment(batch, jax.random.fold_in(key, state.step), side),
      network=network,
      task=task,
      optimizer=optimizer,
      ema=config.ema,
      sparsity=stage.sparsity,
      **vars(config.compute),
    )
    # Copies, because the next step is given the buffers of the state.
    return state, jax.tree.map(jnp.copy, (state.sums, state.bad_step))

  return Step(start, advance)


def create(variables, optimizer, sums, *, average=False) -> TrainState:
  """The state before the first step, from a copy of the variables.

  `sums` are zeros like those of the task's `loss`.
  """
  copy = functools.partial(jax.tree.map, jnp.array, variables)
  return TrainState(
    variables=copy(),
    opt_state=optimizer.init(variables['params']),
    step=jnp.int32(0),
    sums=sums,
    bad_step=jnp.int32(-1),
    best=copy(),
    best_score=jnp.float32(-jnp.inf),
    average=copy() if average else {},
  )


def train_step(state, batch, *, network, task, optimizer, ema=0.0, **how):
  """One optimiser step on normalised images; for `how` see `gradients`."""
  params = state.variables['params']
  grads, sums, statistics = gradients(
    state.variables, batch, network=network, task=task, **how
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, params)
  leaves = jax.tree.leaves((sums['loss'], updates))
  finite = jnp.array([jnp.isfinite(x).all() for x in leaves]).all()
  good = finite | (state.bad_step >= 0)
  params = optax.apply_updates(params, updates)
  variables = {'params': params, 'batch_stats': statistics}
  # Buffers are given on from step to step.
  chex.assert_trees_all_equal_shapes_and_dtypes(variables, state.variables)
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


@functools.partial(jax.jit, donate_argnames='state')
def keep_best(state: TrainState, score) -> TrainState:
  """Takes the variables as the best ones, where their score is the highest."""
  better = functools.partial(jnp.where, score > state.best_score)
  new, old = (state.judged, score), (state.best, state.best_score)
  best, best_score = jax.tree.map(better, new, old)
  return state._replace(best=best, best_score=best_score)


def graft(fresh, old, *, only: str = ''):
  """`fresh` variables with every leaf that `old` has of the same name.

  From 32 bits to fewer, theta and weight_alpha are new and keep their initial
  values; from there on everything is taken over, or only the layers whose name
  begins with `only`.
  """
  leaves = dict(jax.tree_util.tree_leaves_with_path(old))

  def take(path, leaf):
    taken = path[1].key.startswith(only)
    return jnp.asarray(leaves.get(path, leaf) if taken else leaf)

  return jax.tree_util.tree_map_with_path(take, fresh)
