"""The host's side of a stage: what is saved, judged, measured and told."""

import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_training import EPOCH, RECIPE, assert_equal_bits, epochs_of, run_stage

from fastsnn_jax.training import input as feeding
from fastsnn_jax.training import loop as running
from fastsnn_jax.training import step as training
from fastsnn_jax.training import watch
from fastsnn_jax.training.log import Log

SPEED = ('images_per_second', 'step_seconds', 'compile_seconds')


@pytest.mark.parametrize('epoch', [1, 3])
def test_asked_to_end_with_an_epoch_it_is_judged_when_the_run_goes_on(
  tmp_path, monkeypatch, epoch
):
  monkeypatch.setattr(running, 'CHUNK_SECONDS', 0)  # chunks of one step
  judged = []

  def score(variables, epoch):
    judged.append(epoch)
    # Of the variables' bits; the first epoch is the best.
    value = float(sum(np.abs(x).sum() for x in jax.tree.leaves(variables)))
    return {'accuracy': value, 'score': -epoch}

  whole, _ = run_stage(tmp_path / 'whole', score=score)
  assert judged == [1, 2, 3]
  sent = []  # steps; the last of an epoch is looked at in the same breath
  real = feeding.Resident.advance

  def advance(self, state, step, stop):
    sent.append(stop)
    return real(self, state, step, stop)

  def asked():
    return signal.SIGTERM if sent[-1] == epoch * EPOCH else None

  judged.clear()
  with monkeypatch.context() as patched:
    patched.setattr(feeding.Resident, 'advance', advance)
    with pytest.raises(SystemExit):
      run_stage(tmp_path / 'cut', score=score, asked=asked)
  assert judged == [*range(1, epoch)]  # a validation pass may take too long
  assert epochs_of(tmp_path / 'cut') == [(e, e * EPOCH) for e in judged]
  resumed, reached = run_stage(tmp_path / 'cut', score=score)
  assert judged == [1, 2, 3]
  assert reached == -1
  assert_equal_bits(resumed, whole)
  ours, theirs = (
    [
      {k: v for k, v in row.items() if k not in SPEED}
      for row in Log(tmp_path / name).rows()
    ]
    for name in ('cut', 'whole')
  )
  assert ours == theirs
  # Killed before the next save, it is judged once more, and has one row.
  run_stage(tmp_path / 'cut', score=score)
  assert [row[0] for row in epochs_of(tmp_path / 'cut')] == [1, 2, 3]


@pytest.fixture
def clock(monkeypatch):
  """`clock.now`: a chunk takes 2 seconds, the first 100 more to compile."""
  clock = SimpleNamespace(now=0.0)
  real = training.train_chunk
  times = SimpleNamespace(
    monotonic=lambda: clock.now, perf_counter=lambda: clock.now
  )
  for module in (watch, feeding):
    monkeypatch.setattr(module, 'time', times)

  def chunk(*args, **settings):
    clock.now += 2 if clock.now else 100  # it runs in the background
    return real(*args, **settings)

  monkeypatch.setattr(training, 'train_chunk', chunk)
  monkeypatch.setattr(running, 'CHUNK_SECONDS', 0)  # chunks of one step
  return clock


def test_compiling_and_judging_are_no_time_of_the_steps(tmp_path, clock):
  def score(variables, epoch):
    clock.now += 1000
    return {'score': epoch}

  run_stage(tmp_path, score=score)
  first, *others = Log(tmp_path).rows()
  assert first['compile_seconds'] == 100
  assert first['step_seconds'] == 2 * (EPOCH - 1) / EPOCH
  for row in others:
    assert row['step_seconds'] == 2
    assert row['images_per_second'] == RECIPE.batch / 2
    assert not {'compile_seconds', 'start_seconds', 'input_wait'} & set(row)


@pytest.mark.parametrize('wait', [0.05, 0.5])
def test_devices_that_wait_for_images_are_told_of(
  tmp_path, monkeypatch, capsys, clock, wait
):
  def spent(self):
    return {'compile': 100.0, 'start': 0.0, 'wait': wait * (clock.now - 100)}

  monkeypatch.setattr(feeding.Resident, 'spent', spent)
  run_stage(tmp_path)
  said = capsys.readouterr().err
  shares = [row['input_wait'] for row in Log(tmp_path).rows()]
  assert shares == pytest.approx([wait] * 3)  # of each epoch
  line = f'the devices wait for images {100 * wait:.0f} % of the time'
  told = said.count(f'ann2: {line}; raise --data.workers')
  assert told == (3 if wait > running.TOO_LONG else 0)
