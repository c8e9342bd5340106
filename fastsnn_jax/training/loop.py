"""The host's side of a training stage: batches, progress, saves, resume."""

import collections
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed
from fastsnn_jax.checkpoint.store import Store
from fastsnn_jax.data import Shuffle
from fastsnn_jax.errors import UserError
from fastsnn_jax.training.log import Bar, Log, say
from fastsnn_jax.training.meter import Meter
from fastsnn_jax.training.step import keep_best, make_step

LOOK_SECONDS = 1.0  # between two looks at what the devices have done
AHEAD = 2  # steps that are sent before the first of them is done
TOO_LONG = 0.1  # share of the time in which devices may wait for images
SIDE_STEPS = 10  # between two sides of images (reference behaviour D3.7)


class Session(NamedTuple):
  """What the stages of a run share."""

  workdir: Any  # gets saves in 'unfinished', removed by the caller
  log: Log  # gets a row per epoch
  asked: Callable  # () -> the signal that asked the run to end, or None
  trace: Any = None  # directory for a trace of some steps


def run_stage(
  network, variables, task, split, config, stage, *, score, session, identity
):
  """Trains one stage, from its last save if there is one.

  The host sends a step after the other and reads what they report at a look,
  about once a second, so the devices do not wait for it. A step that is not
  finite is noticed at the next look; every save and every epoch looks first.

  Args:
    network, variables, task, split: what to train, what for, and on what.
    config, stage: `Experiment`, and which of its stages.
    score: (variables, epoch) -> {metric: value} of an epoch, 'score' too.
    session: the `Session` of the run.
    identity: JSON values by which a save of another run is known, and refused.

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
    if (wait := row.get('input_wait', 0)) > TOO_LONG:
      bar.line(
        f'{name}: the devices wait for images {100 * wait:.0f} % of the time; '
        'raise --data.workers, or store smaller images'
      )
    meter.start_epoch()
    return state

  if not judged:
    state = judge(state, {})
  batches = split.batches(batch, shuffle=shuffle, start=step)
  with contextlib.closing(meter), bar, contextlib.closing(batches):
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
      sums, bad_step = jax.device_get(reports[-1 if ends or save else 0])
      if ends or save:
        reports.clear()
        waited = False
      if bad_step >= 0:
        saves.close()
        raise UserError(
          f'{name}: the loss or an update is not finite at step {bad_step} of '
          f'{steps}; {saves.told()}; lower the learning rate, and remove '
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
  seed = shuffle.number

  def side_of(step):
    random = np.random.PCG64([seed, step // SIDE_STEPS])
    return sides[random.random_raw() % len(sides)]

  return side_of if sides else lambda step: None


class _Saves(Store):
  """The saves of a stage: the newest one, and when the next is due."""

  def __init__(self, directory, identity, config):
    super().__init__(directory)
    self._identity, self._steps = identity, config.save_steps or math.inf
    self._seconds, self._last = 60 * config.save_minutes, time.monotonic()
    self._newest = max(self.steps(), default=0)

  def resume(self, state):
    """(newest state on disk or the one given, whether it was judged)."""
    made = self.directory.is_dir()  # by the first process
    distributed.check_shared(self.directory, self._newest if made else -1)
    if not self._newest:
      return state, True
    meta = self.meta(self._newest)
    check_identity(self.directory, self._identity, meta['identity'])
    tree, _ = self.load(self._newest, like=state)
    return jax.tree.map(jnp.array, tree), meta.get('judged', True)

  def at(self, step: int) -> bool:
    """Whether so many steps have passed that a save is due."""
    return step - self._newest >= self._steps

  def due(self, step: int) -> bool:
    """The same, or so much time has passed; for all processes."""
    late = time.monotonic() - self._last > self._seconds
    return bool(distributed.agree(late or self.at(step)))

  def write(self, step: int, state, *, judged: bool) -> None:
    self.save(step, state, {'identity': self._identity, 'judged': judged})
    self._newest, self._last = step, time.monotonic()

  def told(self) -> str:
    kept = f'the save at step {self._newest} is kept in {self.directory}'
    return kept if self._newest else 'nothing of the stage was saved yet'


def check_identity(directory, asked: dict, saved: dict) -> None:
  """Raises a UserError where a save or a finished stage is of another run.

  A setting that the save does not know came later: it counts if it is in use.
  """
  for ours, theirs in _differences(asked, saved):
    raise UserError(
      f'{directory} is of a run with {theirs}, but {ours} was asked for; give '
      'the same settings, another --workdir, or remove it'
    )


def _differences(ours, theirs, name=''):
  """Yields the settings in which two identities differ, in words."""
  if isinstance(ours, dict) and isinstance(theirs, dict):
    for key in [*ours, *theirs]:
      if key in theirs or ours[key]:
        path = f'{name}.{key}'.lstrip('.')
        yield from _differences(ours.get(key), theirs.get(key), path)
  elif ours != theirs:
    yield f'{name}={ours}', f'{name}={theirs}'
