"""The host's side of a training stage: chunks, progress, saves, resume."""

import contextlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import devices, training
from fastsnn_jax.checkpoint import Store
from fastsnn_jax.errors import UserError
from fastsnn_jax.network import Network
from fastsnn_jax.progress import Bar, Log
from fastsnn_jax.tasks import Task

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
  state = _resume(store, state, identity)
  if recipe.mesh is not None:
    state = devices.everywhere(state, recipe.mesh)
  step = int(state.step)
  log.rewind(name, step)
  saves = _Saves(store, identity, step, save_seconds, save_steps)
  chunk, watch = 1, _Watch(recipe, step, trace)

  with Bar(
    f'{name}: {recipe.steps // recipe.epoch_steps} epochs', recipe.steps, step
  ) as bar:
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
      return took, sums

    while step < recipe.steps:
      epoch_end = (step // recipe.epoch_steps + 1) * recipe.epoch_steps
      stop = min(step + chunk, epoch_end)
      with watch.starting():
        state, sums, bad = feed.advance(state, step, stop)
      waiting.append((stop - step, sums, bad))
      step = stop
      if step < epoch_end and len(waiting) < 2:
        continue  # the next chunk is sent before this one is looked at
      took, sums = fetch()
      chunk = int(np.clip(CHUNK_SECONDS / took, 1, training.SLOTS))
      chunk = devices.agree(chunk)
      # Once: a save has to follow the check for NaN.
      signal = devices.any_of(asked() or 0)
      due = signal or saves.due(step)
      if step == epoch_end or due:
        while waiting:
          _, sums = fetch()
      if step == epoch_end:
        epoch = step // recipe.epoch_steps
        measured = watch.epoch(step, feed.wait_share)
        judged = score(state.shown, epoch)
        state = training.keep_best(state, judged['score'])
        row = {f'train_{k}': v for k, v in task.summarize(sums).items()}
        row.update(
          {f'val_{k}': v for k, v in judged.items() if k != 'score'}, **measured
        )
        log.write(name, step, epoch=epoch, **row)
        bar.line(_line(name, epoch, row))
        if row.get('input_wait', 0) > TOO_LONG:
          bar.line(
            f'{name}: the devices wait for images {100 * row["input_wait"]:.0f}'
            ' % of the time; raise --data.workers, or store smaller images'
          )
        watch.resume(step)
      if due:
        saves.write(step, state)
      if signal:
        store.close()
        feed.close()
        bar.line(f'{name}: saved at step {step}; the same command goes on')
        raise SystemExit(128 + signal)
  store.close()
  feed.close()
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

  def write(self, step, state):
    if step != self.step:
      self._store.save(step, state, {'identity': self._identity})
    self.step = self._last_step = step
    self._last = time.monotonic()


class _Watch:
  """How long steps take, and a trace of some of them."""

  def __init__(self, recipe, step, trace):
    self._recipe, self._trace = recipe, trace
    self._chunks, self._compile = 0, None
    self.resume(step)

  def resume(self, step):
    """Time runs again, after an evaluation."""
    self._last = self._epoch_start = time.monotonic()
    self._epoch_step = step

  @contextlib.contextmanager
  def starting(self):
    """Around the start of a chunk; the first one is compiled there."""
    if self._trace is not None and self._chunks == 2:
      jax.profiler.start_trace(str(self._trace))
    began = time.monotonic()
    yield
    if self._chunks == 0:
      self._compile = time.monotonic() - began
    self._chunks += 1

  def took(self, count) -> float:
    """Seconds a step of the chunk that has just ended."""
    now = time.monotonic()
    took, self._last = (now - self._last) / count, now
    if self._trace is not None and self._chunks >= 4:
      self._end_trace()
    return took

  def _end_trace(self):
    if self._chunks > 2:
      jax.profiler.stop_trace()
    self._trace = None

  def epoch(self, step, wait_share) -> dict[str, float]:
    """What was measured since the epoch began, or the run went on."""
    if self._trace is not None:
      self._end_trace()
    seconds = (time.monotonic() - self._epoch_start) / (step - self._epoch_step)
    rate = self._recipe.batch / seconds
    row = {'images_per_second': round(rate, 1), 'step_seconds': seconds}
    if self._recipe.mesh is not None:
      row['images_per_second_per_device'] = round(
        rate / self._recipe.mesh.size, 1
      )
    if wait_share:
      row['input_wait'] = wait_share
    if memory := jax.local_devices()[0].memory_stats():  # None on a CPU
      row['peak_device_bytes'] = memory.get('peak_bytes_in_use', 0)
    if self._compile is not None:
      row['compile_seconds'], self._compile = self._compile, None
    return row


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
  """The newest state on disk, or the one given."""
  step = max(store.steps(), default=-1)
  there = store.directory.is_dir()  # made by the first process
  devices.check_shared(store.directory, step if there else -2)
  if step < 0:
    return state
  found = store.meta(step)['identity']
  if found != identity:
    ours, theirs = _difference(identity, found)
    raise UserError(
      f'{store.directory} holds a run with {theirs}, but {ours} was asked '
      'for; give the same settings, another --workdir, or remove it'
    )
  tree, _ = store.load(step, like=state)
  return jax.tree.map(jnp.array, tree)


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
