"""The host's side of a training stage: chunks, progress, saves, resume."""

import contextlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed as devices
from fastsnn_jax.checkpoint.store import Store
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks import Task
from fastsnn_jax.training import step as training
from fastsnn_jax.training.log import Bar, Log, say
from fastsnn_jax.training.watch import Watch

CHUNK_SECONDS = 1.0
TOO_LONG = 0.1  # share of the time in which devices may wait for images


def run_stage(
  name: str,
  network: Network,
  variables,
  feed,
  *,
  task: Task,
  recipe: training.Recipe,
  score: Callable,
  log: Log,
  directory,
  identity: dict,
  save_seconds: float,
  asked: Callable,
  save_steps: int | None = None,
  trace=None,
):
  """Trains one stage, from its last save if there is one.

  Args:
    name: of the stage, 'ann4'.
    network, variables: to start from.
    feed: advances the state, see `feeding`.
    task, recipe: what and how.
    score: (variables, epoch) -> {metric: value} of an epoch, 'score' too.
    log: gets a row per epoch.
    directory: of the saves; removed by the caller when the stage is done.
    identity: JSON values that say which run this is; a save of another is
      refused.
    save_seconds: between saves.
    asked: returns the signal by which the run was asked to end, or None.
    save_steps: as many steps after a save follows the next one; None for none.
    trace: directory for a trace of some steps, or None.

  Returns:
    (variables of the best epoch, its score).

  Raises:
    UserError: the loss is not finite, or the save is of another run.
    SystemExit: a signal asked to end; all is saved.
  """
  state = training.create(variables, recipe, task)
  store = Store(directory)
  state, judged = _resume(store, state, identity)
  if recipe.mesh is not None:
    state = devices.everywhere(state, recipe.mesh)
  step = int(state.step)
  if step:
    say(f'{name}: going on from step {step} of {recipe.steps}')
  # The row of an epoch that is still to be judged is written again.
  log.rewind(name, step if judged else step - 1)
  saves = _Saves(store, identity, step, save_seconds, save_steps)
  chunk, watch = 1, Watch(recipe, step, trace)

  with (
    contextlib.closing(feed),
    Bar(
      f'{name}: {recipe.steps // recipe.epoch_steps} epochs', recipe.steps, step
    ) as bar,
  ):
    waiting = []

    def fetch():
      """Takes in the oldest chunk that runs; how long a step took."""
      count, sums, bad = waiting.pop(0)
      sums, bad = jax.device_get((sums, bad))
      if bad >= 0:
        store.close()
        raise UserError(_not_finite(name, bad, recipe, saves, directory))
      took = watch.took(count)
      bar.advance(count, _note(task.summarize(sums), recipe.batch / took))
      for line in feed.warnings():
        bar.line(f'{name}: {line}', own=True)
      return took

    def judge(state, measured):
      """The state behind an epoch, with what its score makes the best."""
      epoch = step // recipe.epoch_steps
      found = score(state.shown, epoch)
      state = training.keep_best(state, found['score'])
      train = task.summarize(jax.device_get(state.sums))
      row = {f'train_{k}': v for k, v in train.items()}
      row.update(
        {f'val_{k}': v for k, v in found.items() if k != 'score'}, **measured
      )
      log.write(name, step, epoch=epoch, **row)
      bar.line(_line(name, epoch, row))
      if row.get('input_wait', 0) > TOO_LONG:
        bar.line(
          f'{name}: the devices wait for images {100 * row["input_wait"]:.0f}'
          ' % of the time; raise --data.workers, or store smaller images'
        )
      watch.resume(step, feed.spent())
      return state

    if not judged:
      state = judge(state, {})
    while step < recipe.steps:
      epoch_end = (step // recipe.epoch_steps + 1) * recipe.epoch_steps
      stop = min(step + chunk, epoch_end)
      with watch.starting():
        state, sums, bad = feed.advance(state, step, stop)
      waiting.append((stop - step, sums, bad))
      step = stop
      if step < epoch_end and len(waiting) < 2:
        continue  # the next chunk is sent before this one is looked at
      chunk = int(np.clip(CHUNK_SECONDS / fetch(), 1, training.SLOTS))
      chunk = devices.agree(chunk)
      # Once: a save has to follow the check for NaN.
      signal = devices.any_of(asked() or 0)
      due = signal or saves.due(step)
      if step == epoch_end or due:
        while waiting:
          fetch()
      if due:  # before judging, which may take longer than a machine stays
        saves.write(step, state, judged=step != epoch_end)
      if signal:
        store.close()
        bar.line(f'{name}: saved at step {step}; the same command goes on')
        raise SystemExit(128 + signal)
      if step == epoch_end:
        state = judge(state, watch.epoch(step, feed.spent()))
  store.close()
  return state.best, float(state.best_score)


class _Saves:
  """When the state is saved, and what was."""

  def __init__(self, store, identity, step, seconds, steps):
    self._store, self._identity = store, identity
    self._seconds, self._steps = seconds, steps
    self._last, self._last_step = time.monotonic(), step
    self.step = max(store.steps(), default=None)

  def due(self, step) -> bool:
    due = time.monotonic() - self._last > self._seconds
    if self._steps is not None:
      due |= step - self._last_step >= self._steps
    return bool(devices.agree(due))

  def write(self, step, state, *, judged):
    if step != self.step:
      meta = {'identity': self._identity, 'judged': judged}
      self._store.save(step, state, meta)
    self.step = self._last_step = step
    self._last = time.monotonic()


def _not_finite(name, bad, recipe, saves, directory):
  held = f'the save at step {saves.step} is kept in {directory}'
  if saves.step is None:
    held = 'nothing of the stage was saved yet'
  return (
    f'{name}: the loss or an update is not finite at step {bad} of '
    f'{recipe.steps}; {held}; lower the learning rate, and remove {directory} '
    'to start the stage again'
  )


def _resume(store, state, identity):
  """(newest state on disk or the one given, whether it was judged)."""
  step = max(store.steps(), default=-1)
  there = store.directory.is_dir()  # made by the first process
  devices.check_shared(store.directory, step if there else -2)
  if step < 0:
    return state, True
  meta = store.meta(step)
  found = meta['identity']
  if found != identity:
    ours, theirs = _difference(identity, found)
    raise UserError(
      f'{store.directory} holds a run with {theirs}, but {ours} was asked '
      'for; give the same settings, another --workdir, or remove it'
    )
  tree, _ = store.load(step, like=state)
  return jax.tree.map(jnp.array, tree), meta.get('judged', True)


def check_identity(directory, asked: dict, found: dict) -> None:
  """Raises a UserError where a finished stage is of another run."""
  if asked != found:
    ours, theirs = _difference(asked, found)
    raise UserError(
      f'{directory} was trained with {theirs}, but {ours} was asked for; give '
      'the same settings, or another --workdir'
    )


def _difference(ours, theirs, name=''):
  """The first setting in which two identities differ, in words."""
  if isinstance(ours, dict) and isinstance(theirs, dict):
    for key in [*ours, *theirs]:
      pair = ours.get(key), theirs.get(key)
      if pair[0] != pair[1]:
        return _difference(*pair, f'{name}.{key}'.lstrip('.'))
  return f'{name}={ours}', f'{name}={theirs}'


def _note(metrics, rate):
  shown = [f'{name} {value:.4f}' for name, value in metrics.items()]
  return '  '.join([*shown, f'{rate:,.0f} images/s'])


def _line(name, epoch, row):
  shown = [f'{key} {value:.4g}' for key, value in row.items()]
  return '  '.join([f'{name} epoch {epoch}', *shown])
