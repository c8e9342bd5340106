"""The host's side of a training stage: batches, progress, saves, resume."""

import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed
from fastsnn_jax.checkpoint.store import Store
from fastsnn_jax.data import Shuffle, Split
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks import Task
from fastsnn_jax.training.log import Bar, Log, say
from fastsnn_jax.training.meter import Meter
from fastsnn_jax.training.step import keep_best, make_step

LOOK_SECONDS = 1.0  # between two looks at what the devices have done
AHEAD = 2  # steps that are sent before the first of them is done
TOO_LONG = 0.1  # share of the time in which devices may wait for images
SIDE_STEPS = 10  # between two changes of the images' side (D3.7)


class Session(NamedTuple):
  """What the stages of a run share.

  Attributes:
    workdir: gets saves in 'unfinished', removed by the caller.
    log: gets a row per epoch.
    asked: returns the signal by which the run was asked to end, or None.
    trace: directory for a trace of some steps, or None.
  """

  workdir: Any
  log: Log
  asked: Callable
  trace: Any = None


def run_stage(
  network: Network,
  variables,
  task: Task,
  split: Split,
  config,
  stage,
  *,
  score: Callable,
  session: Session,
  identity: dict,
):
  """Trains one stage, from its last save if there is one.

  Metrics are fetched a look later than they are computed, so that the devices
  never wait for the host. A step that is not finite is noticed late, but never
  saved.

  Args:
    network, variables: to start from.
    task, split: what for, and on which examples.
    config, stage: `Experiment`, and which of its stages.
    score: (variables, epoch) -> {metric: value} of an epoch, 'score' too.
    session: of the run.
    identity: JSON values that say which run this is; a save of another is
      refused.

  Returns:
    (variables of the best epoch, its score).

  Raises:
    UserError: the loss is not finite, or the save is of another run.
    SystemExit: a signal asked to end; all is saved.
  """
  name, log = f'ann{stage.bits}', session.log
  batch = config.data.batch
  epoch_steps = split.steps(batch)
  steps = stage.epochs * epoch_steps
  shuffle = Shuffle(config.seed, stage.bits)
  side_of = _Sides(config.data.sizes, shuffle)
  train = make_step(network, task, config, stage, epoch_steps)
  state = train.start(variables, split.shapes(batch), side_of(0))
  store = Store(session.workdir / 'unfinished' / name)
  state, judged = _resume(store, state, identity)
  state = distributed.everywhere(state)
  key = distributed.everywhere(shuffle.draw_key)
  step = int(state.step)
  if step:
    say(f'{name}: going on from step {step} of {steps}')
  # The row of an epoch that is still to be judged is written again.
  log.rewind(name, step if judged else step - 1)
  saves = _Saves(store, identity, step, config)
  reports = collections.deque()
  meter = Meter(batch, session.trace)
  looked, look_every, last_look = step, 1, time.perf_counter()

  def check(report):
    """Takes in what the devices say of the steps so far."""
    sums, bad = jax.device_get(report)
    if bad >= 0:
      store.close()
      raise UserError(_not_finite(name, bad, steps, saves))
    return sums

  def judge(state, measured):
    """The state behind an epoch, with what its score makes the best."""
    epoch = step // epoch_steps
    scores = score(state.judged, epoch)
    state = keep_best(state, scores.pop('score'))
    train = task.summarize(jax.device_get(state.sums))
    row = {f'train_{k}': v for k, v in train.items()}
    row |= {f'val_{k}': v for k, v in scores.items()} | measured
    log.write(name, step, epoch=epoch, **row)
    bar.line(_line(name, epoch, row))
    if row.get('input_wait', 0) > TOO_LONG:
      bar.line(
        f'{name}: the devices wait for images {100 * row["input_wait"]:.0f} % '
        'of the time; raise --data.workers, or store smaller images'
      )
    meter.start_epoch()
    return state

  with (
    contextlib.closing(meter),
    Bar(f'{name}: {stage.epochs} epochs', steps, step) as bar,
  ):
    if not judged:
      state = judge(state, {})
    batches = split.batches(batch, shuffle=shuffle, start=step)
    with contextlib.closing(batches):
      while step < steps:
        if len(reports) > AHEAD:  # no more batches on the devices than that
          jax.block_until_ready(reports.popleft())
        with meter.reading():
          rows = distributed.by_row(next(batches))
        side = side_of(step)
        with meter.stepping(side):
          state, report = train.advance(state, rows, key, side)
        meter.running(report)
        reports.append(report)
        step += 1
        epoch_ends = step % epoch_steps == 0
        if step - looked < look_every and not epoch_ends and not saves.at(step):
          continue
        # The first process decides for all, so that they take the same turn.
        signal = distributed.any_of(session.asked() or 0)
        save = signal or saves.due(step)
        sums = check(reports[-1 if epoch_ends or save else 0])
        now = time.perf_counter()
        took = max(now - last_look, 1e-9) / (step - looked)
        note = _note(task.summarize(sums), batch / took)
        bar.advance(step - looked, note)
        looked, last_look = step, now
        look_every = int(np.clip(LOOK_SECONDS / took, 1, 1000))
        look_every = distributed.agree(look_every)
        for line in split.complaints():
          bar.line(f'{name}: {line}', own=True)
        if save:  # before judging, which may take longer than a machine stays
          saves.write(step, state, judged=not epoch_ends)
        if signal:
          store.close()
          bar.line(f'{name}: saved at step {step}; the same command goes on')
          raise SystemExit(128 + signal)
        if epoch_ends:
          state = judge(state, meter.epoch())
          last_look = time.perf_counter()
  store.close()
  return state.best, float(state.best_score)


class _Sides:
  """Step -> side of its images, the same on every process; None for one."""

  def __init__(self, sides, shuffle):
    self._sides, self._seed = sides, shuffle.number if sides else 0

  def __call__(self, step: int) -> int | None:
    if not self._sides:
      return None
    drawn = np.random.PCG64([self._seed, step // SIDE_STEPS]).random_raw()
    return self._sides[drawn % len(self._sides)]


class _Saves:
  """When the state is saved, and what was."""

  def __init__(self, store, identity, step, config):
    self._store, self._identity = store, identity
    self._seconds, self._steps = 60 * config.save_minutes, config.save_steps
    self._last, self._last_step = time.monotonic(), step
    self.step = max(store.steps(), default=None)
    self.directory = store.directory

  def at(self, step) -> bool:
    """Whether so many steps have passed that a save is due."""
    return self._steps is not None and step - self._last_step >= self._steps

  def due(self, step) -> bool:
    late = time.monotonic() - self._last > self._seconds
    return bool(distributed.agree(late or self.at(step)))

  def write(self, step, state, *, judged):
    if step != self.step:
      meta = {'identity': self._identity, 'judged': judged}
      self._store.save(step, state, meta)
    self.step = self._last_step = step
    self._last = time.monotonic()


def _not_finite(name, bad, steps, saves):
  saved = f'the save at step {saves.step} is kept in {saves.directory}'
  if saves.step is None:
    saved = 'nothing of the stage was saved yet'
  return (
    f'{name}: the loss or an update is not finite at step {bad} of {steps}; '
    f'{saved}; lower the learning rate, and remove {saves.directory} to start '
    'the stage again'
  )


def _resume(store, state, identity):
  """(newest state on disk or the one given, whether it was judged)."""
  step = max(store.steps(), default=-1)
  made = store.directory.is_dir()  # by the first process
  distributed.check_shared(store.directory, step if made else -2)
  if step < 0:
    return state, True
  meta = store.meta(step)
  check_identity(store.directory, identity, meta['identity'])
  tree, _ = store.load(step, like=state)
  return jax.tree.map(jnp.array, tree), meta.get('judged', True)


def check_identity(directory, asked: dict, saved: dict) -> None:
  """Raises a UserError where a save or a finished stage is of another run.

  A setting that the save does not know came later: it counts if it is in use.
  """
  if difference := _difference(asked, saved):
    ours, theirs = difference
    raise UserError(
      f'{directory} is of a run with {theirs}, but {ours} was asked for; give '
      'the same settings, another --workdir, or remove it'
    )


def _difference(ours, theirs, name=''):
  """The first setting in which two identities differ, in words."""
  if isinstance(ours, dict) and isinstance(theirs, dict):
    for key in [*ours, *theirs]:
      if key not in theirs and not ours[key]:
        continue
      path = f'{name}.{key}'.lstrip('.')
      if difference := _difference(ours.get(key), theirs.get(key), path):
        return difference
    return None
  return None if ours == theirs else (f'{name}={ours}', f'{name}={theirs}')


def _note(metrics, rate):
  shown = [f'{name} {value:.4f}' for name, value in metrics.items()]
  return '  '.join([*shown, f'{rate:,.0f} images/s'])


def _line(name, epoch, row):
  shown = [f'{key} {value:.4g}' for key, value in row.items()]
  return '  '.join([f'{name} epoch {epoch}', *shown])
