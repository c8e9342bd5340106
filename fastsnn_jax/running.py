"""The host's side of a training stage: chunks, progress, saves, resume."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import training
from fastsnn_jax.checkpoint import Store
from fastsnn_jax.errors import UserError
from fastsnn_jax.network import Network
from fastsnn_jax.progress import Bar, Log
from fastsnn_jax.tasks import Task

CHUNK_SECONDS = 1.0


def run_stage(
  name: str,
  network: Network,
  variables,
  data,
  *,
  task: Task,
  recipe: training.Recipe,
  score: Callable,
  key,
  log: Log,
  directory,
  identity: dict,
  save_seconds: float,
  asked: Callable,
):
  """Trains one stage, from its last save if there is one.

  Args:
    name: of the stage, 'ann4'.
    network, variables: to start from.
    data: dict of arrays; goes to the device.
    task, recipe: what and how.
    score: (variables, epoch) -> {metric: value} of an epoch, 'score' too.
    key: of all that the stage draws.
    log: gets a row per epoch.
    directory: of the saves; removed by the caller when the stage is done.
    identity: JSON values that say which run this is; a save of another is
      refused.
    save_seconds: between saves.
    asked: returns the signal by which the run was asked to end, or None.

  Returns:
    (variables of the best epoch, its score).

  Raises:
    UserError: the loss is not finite, or the save is of another run.
    SystemExit: a signal asked to end; all is saved.
  """
  state = training.create(variables, recipe, task)
  store = Store(directory)
  state = _resume(store, state, identity)
  log.rewind(name, int(state.step))
  data = jax.tree.map(jnp.asarray, data)
  step, chunk, saved = int(state.step), 1, time.monotonic()
  done = step

  def save():
    nonlocal saved
    if int(state.step) not in store.steps():
      store.save(int(state.step), state, {'identity': identity})
    saved = time.monotonic()

  with Bar(
    f'{name}: {recipe.steps // recipe.epoch_steps} epochs', recipe.steps, done
  ) as bar:
    last = epoch_start = time.monotonic()
    waiting, epoch_step = [], step

    def fetch():
      """Takes in the oldest chunk that runs; how long a step took."""
      nonlocal last, done
      count, sums, bad = waiting.pop(0)
      sums, bad = jax.device_get((sums, bad))
      if bad >= 0:
        kept = max(store.steps(), default=None)
        store.close()
        raise UserError(
          f'{name}: the loss is not finite at step {bad} of {recipe.steps}; '
          f'the save at step {kept or 0} is kept in {directory}; lower the '
          'learning rate, and remove that directory to start the stage again'
        )
      done += count
      now = time.monotonic()
      took, last = (now - last) / count, now
      bar.advance(count, _note(task.summarize(sums), recipe.batch / took))
      return took, sums

    while step < recipe.steps:
      epoch_end = (step // recipe.epoch_steps + 1) * recipe.epoch_steps
      stop = min(step + chunk, epoch_end)
      state, sums, bad = training.train_chunk(
        state, data, key, stop, network=network, task=task, recipe=recipe
      )
      waiting.append((stop - step, sums, bad))
      step = stop
      if step < epoch_end and len(waiting) < 2:
        continue  # the next chunk is sent before this one is looked at
      took, sums = fetch()
      chunk = int(np.clip(CHUNK_SECONDS / took, 1, training.SLOTS))
      signal = asked()  # once: a save has to follow the check for NaN
      due = signal or time.monotonic() - saved > save_seconds
      if step == epoch_end or due:
        while waiting:
          _, sums = fetch()
      if step == epoch_end:
        epoch = step // recipe.epoch_steps
        judged = score(state.variables, epoch)
        state = training.keep_best(state, judged['score'])
        now = time.monotonic()
        rate = (step - epoch_step) * recipe.batch / (now - epoch_start)
        row = {f'train_{k}': v for k, v in task.summarize(sums).items()}
        row.update(
          {f'val_{k}': v for k, v in judged.items() if k != 'score'},
          images_per_second=round(rate, 1),
        )
        log.write(name, step, epoch=epoch, **row)
        bar.line(_line(name, epoch, row))
        last = epoch_start = time.monotonic()
        epoch_step = step
      if due:
        save()
      if signal:
        store.close()
        bar.line(f'{name}: saved at step {step}; the same command goes on')
        raise SystemExit(128 + signal)
  store.close()
  return state.best, float(state.best_score)


def _resume(store, state, identity):
  """The newest state on disk, or the one given."""
  for step in reversed(store.steps()):
    found = store.meta(step)['identity']
    if found != identity:
      ours, theirs = _difference(identity, found)
      raise UserError(
        f'{store.directory} holds a run with {theirs}, but {ours} was asked '
        'for; give the same settings, another --workdir, or remove it'
      )
    tree, _ = store.load(step, like=state)
    return jax.tree.map(jnp.array, tree)
  return state


def check_identity(directory, asked: dict, found: dict) -> None:
  """Raises a UserError where a finished stage is of another run."""
  if asked != found:
    ours, theirs = _difference(asked, found)
    raise UserError(
      f'{directory} was trained with {theirs}, but {ours} was asked for; give '
      'the same settings, or another --workdir'
    )


def _difference(ours, theirs):
  for key in ours.keys() | theirs.keys():
    if ours.get(key) != theirs.get(key):
      return f'{key}={ours.get(key)}', f'{key}={theirs.get(key)}'
  return 'these settings', 'others'


def _note(metrics, rate):
  shown = [f'{name} {value:.4f}' for name, value in metrics.items()]
  return '  '.join([*shown, f'{rate:,.0f} images/s'])


def _line(name, epoch, row):
  shown = [f'{key} {value:.4g}' for key, value in row.items()]
  return '  '.join([f'{name} epoch {epoch}', *shown])
