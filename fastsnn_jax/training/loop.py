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
SIDE_STEPS = 10  # between two sides of images (reference behaviour D3.7)


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

  The host sends a step after the other and reads what they report at a look,
  about once a second, so the devices do not wait for it. A step that is not
  finite is noticed at the next look; every save and every epoch looks first.

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
  name, batch = f'ann{stage.bits}', config.data.batch
  epoch_steps = split.steps(batch)
  steps = stage.epochs * epoch_steps
  shuffle = Shuffle(config.seed, stage.bits)
  side_of = _sides(config.data.sizes, shuffle)
  train = make_step(network, task, config, stage, epoch_steps)
  saves = _Saves(session.workdir / 'unfinished' / name, identity, config)
  state = train.start(variables, split.shapes(batch), side_of(0))
  state, judged = saves.resume(state)
  state, key = distributed.everywhere((state, shuffle.draw_key))
  step = int(state.step)
  if step:
    say(f'{name}: going on from step {step} of {steps}')
  # The row of an epoch that is still to be judged is written again.
  session.log.rewind(name, step if judged else step - 1)
  reports, waited = collections.deque(), False
  looked, look_every, last_look = step, 1, time.perf_counter()
  meter = Meter(batch, session.trace)
  bar = Bar(f'{name}: {stage.epochs} epochs', steps, step)

  def judge(state, measured):
    """The state behind an epoch, with the best variables so far."""
    epoch = step // epoch_steps
    scores = score(state.judged, epoch)
    state = keep_best(state, scores.pop('score'))
    sums = task.summarize(jax.device_get(state.sums))
    row = {f'train_{k}': v for k, v in sums.items()}
    row |= {f'val_{k}': v for k, v in scores.items()} | measured
    session.log.write(name, step, epoch=epoch, **row)
    shown = [f'{key} {value:.4g}' for key, value in row.items()]
    bar.line('  '.join([f'{name} epoch {epoch}', *shown]))
    if row.get('input_wait', 0) > TOO_LONG:
      bar.line(
        f'{name}: the devices wait for images {100 * row["input_wait"]:.0f} % '
        'of the time; raise --data.workers, or store smaller images'
      )
    meter.start_epoch()
    return state

  with contextlib.closing(meter), bar:
    if not judged:
      state = judge(state, {})
    batches = split.batches(batch, shuffle=shuffle, start=step)
    with contextlib.closing(batches):
      while step < steps:
        if len(reports) > AHEAD:  # no more batches on the devices than that
          jax.block_until_ready(reports.popleft())
          waited = True
        with meter.reading():
          rows = distributed.by_row(next(batches))
        side = side_of(step)
        with meter.stepping(side):
          state, report = train.advance(state, rows, key, side)
        meter.running(report)
        reports.append(report)
        step += 1
        ends = step % epoch_steps == 0
        if step - looked < look_every and not ends and not saves.at(step):
          continue
        # All processes have to take the same turn from here on.
        signal = distributed.any_of(session.asked() or 0)
        save = signal or saves.due(step)
        newest = ends or save
        sums, bad_step = jax.device_get(reports[-1 if newest else 0])
        if newest:
          reports.clear()
          waited = False
        if bad_step >= 0:
          saves.close()
          raise UserError(
            f'{name}: the loss or an update is not finite at step {bad_step} '
            f'of {steps}; {saves.told()}; lower the learning rate, and remove '
            f'{saves.directory} to start the stage again'
          )
        now = time.perf_counter()
        took = max(now - last_look, 1e-9) / (step - looked)
        shown = [f'{k} {v:.4f}' for k, v in task.summarize(sums).items()]
        shown.append(f'{batch / took:,.0f} images/s')
        bar.advance(step - looked, '  '.join(shown))
        looked, last_look = step, now
        if waited:  # else it says how long a step takes to send
          look_every = int(np.clip(LOOK_SECONDS / took, 1, 1000))
        look_every = distributed.agree(look_every)
        for line in split.complaints():
          bar.line(f'{name}: {line}', own=True)
        if save:  # before judging, which may take longer than a machine stays
          saves.write(step, state, judged=not ends)
        if signal:
          saves.close()
          bar.line(f'{name}: saved at step {step}; the same command goes on')
          raise SystemExit(128 + signal)
        if ends:
          state = judge(state, meter.epoch())
          last_look = time.perf_counter()
  saves.close()
  return state.best, float(state.best_score)


def _sides(sides, shuffle):
  """Step -> side of its images, the same on every process; None for one."""
  if not sides:
    return lambda step: None
  seed = shuffle.number

  def side_of(step: int) -> int:
    drawn = np.random.PCG64([seed, step // SIDE_STEPS]).random_raw()
    return sides[drawn % len(sides)]

  return side_of


class _Saves:
  """The saves of a stage: the newest one, and when the next is due."""

  def __init__(self, directory, identity, config):
    self._store, self._identity = Store(directory), identity
    self.directory, self.close = self._store.directory, self._store.close
    self._seconds, self._steps = 60 * config.save_minutes, config.save_steps
    self._newest = max(self._store.steps(), default=None)
    self._last_step, self._last = self._newest or 0, time.monotonic()

  def resume(self, state):
    """(newest state on disk or the one given, whether it was judged)."""
    step = -1 if self._newest is None else self._newest
    made = self.directory.is_dir()  # by the first process
    distributed.check_shared(self.directory, step if made else -2)
    if step < 0:
      return state, True
    meta = self._store.meta(step)
    check_identity(self.directory, self._identity, meta['identity'])
    tree, _ = self._store.load(step, like=state)
    return jax.tree.map(jnp.array, tree), meta.get('judged', True)

  def at(self, step: int) -> bool:
    """Whether so many steps have passed that a save is due."""
    return self._steps is not None and step - self._last_step >= self._steps

  def due(self, step: int) -> bool:
    """The same, or so much time has passed; for all processes."""
    late = time.monotonic() - self._last > self._seconds
    return bool(distributed.agree(late or self.at(step)))

  def write(self, step: int, state, *, judged: bool) -> None:
    meta = {'identity': self._identity, 'judged': judged}
    self._store.save(step, state, meta)
    self._newest = self._last_step = step
    self._last = time.monotonic()

  def told(self) -> str:
    if self._newest is None:
      return 'nothing of the stage was saved yet'
    return f'the save at step {self._newest} is kept in {self.directory}'


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
