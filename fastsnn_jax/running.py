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
  done, saved_step = step, max(store.steps(), default=None)

  def save():
    nonlocal saved, saved_step
    if step != saved_step:
      store.save(step, state, {'identity': identity})
    saved_step = step
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
        store.close()
        held = f'the save at step {saved_step} is kept in {directory}'
        if saved_step is None:
          held = 'nothing of the stage was saved yet'
        raise UserError(
          f'{name}: the loss or an update is not finite at step {bad} of '
          f'{recipe.steps}; {held}; lower the learning rate, and remove '
          f'{directory} to start the stage again'
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
  for step in store.steps()[-1:]:
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
