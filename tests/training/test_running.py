"""The host's side of a stage: what is saved, judged, measured and told."""

import re
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support.training import (
  IMAGES,
  after,
  assert_equal_bits,
  compiled_once,
  devices,
  drawn_data,
  epochs_of,
  experiment,
  initial,
  run_stage,
  tiny,
)

import fastsnn_jax as fs
from fastsnn_jax.data import Arrays
from fastsnn_jax.training import loop, meter
from fastsnn_jax.training.log import Log

pytestmark = pytest.mark.once  # each runs stages

EPOCH, EPOCHS, BATCH = 7, 3, 8
SPEED = {
  'images_per_second',
  'step_seconds',
  'input_wait',
  'compile_seconds',
  'start_seconds',
}


@pytest.fixture
def each_step(monkeypatch):
  """The loop looks at every step."""
  monkeypatch.setattr(loop, 'LOOK_SECONDS', 0)


class Examples:
  """The tiny problem as a sequence of examples, which is streamed."""

  def __init__(self):
    self._data = drawn_data()

  def __len__(self):
    return IMAGES

  def __getitem__(self, index):
    return {name: x[index] for name, x in self._data.items()}


def saves_of(directory):
  """The steps of the saves on disk."""
  folder = directory / 'unfinished' / 'ann2'
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


# --- cut, and gone on --------------------------------------------------------


@pytest.mark.parametrize('looks', [1, 2, 4, 5, 9])
@pytest.mark.parametrize('data', [drawn_data, Examples])
def test_a_stage_that_was_asked_to_end_goes_on_to_the_same_result(
  tmp_path, capsys, each_step, looks, data
):
  whole, score = run_stage(tmp_path / 'whole', data=data())
  with pytest.raises(SystemExit) as caught:
    run_stage(tmp_path / 'cut', asked=after(looks), data=data())
  assert caught.value.code == 143
  said = re.search(r'ann2: saved at step (\d+)', capsys.readouterr().err)
  assert int(said[1]) == looks + 1
  assert saves_of(tmp_path / 'cut') == [looks + 1]
  resumed, again = run_stage(tmp_path / 'cut', data=data())
  assert_equal_bits(resumed, whole)
  assert again == score == 3
  for directory in ('whole', 'cut'):
    assert epochs_of(tmp_path / directory) == [
      (epoch, epoch * EPOCH) for epoch in (1, 2, 3)
    ]


@pytest.mark.parametrize('epoch', [1, 3])
def test_asked_to_end_with_an_epoch_it_is_judged_when_the_run_goes_on(
  tmp_path, each_step, epoch
):
  judged = []

  def score(variables, epoch):
    judged.append(epoch)
    # Of the variables' bits; the first epoch is the best.
    value = float(sum(np.abs(x).sum() for x in jax.tree.leaves(variables)))
    return {'accuracy': value, 'score': -epoch}

  whole, _ = run_stage(tmp_path / 'whole', score=score)
  assert judged == [1, 2, 3]
  judged.clear()
  with pytest.raises(SystemExit):
    run_stage(tmp_path / 'cut', score=score, asked=after(epoch * EPOCH - 1))
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


def test_saves_in_between_change_nothing(tmp_path):
  whole, _ = run_stage(tmp_path / 'whole')
  saving, _ = run_stage(tmp_path / 'saving', experiment(save_minutes=0.0))
  assert_equal_bits(saving, whole)
  # Cut at its end, it is not run again.
  again, _ = run_stage(tmp_path / 'saving')
  assert_equal_bits(again, whole)
  assert len(epochs_of(tmp_path / 'saving')) == 3


def test_saves_by_steps_come_at_these_steps_exactly(tmp_path, monkeypatch):
  steps = []
  write = loop._Saves.write

  def note(self, step, state, *, judged):
    assert int(state.step) == step
    steps.append((step, judged))
    write(self, step, state, judged=judged)

  monkeypatch.setattr(loop._Saves, 'write', note)
  run_stage(tmp_path, experiment(save_steps=5))
  assert steps == [(5, True), (10, True), (15, True), (20, True)]
  steps.clear()
  run_stage(tmp_path / 'epochs', experiment(save_steps=EPOCH))
  assert steps == [(EPOCH, False), (2 * EPOCH, False), (3 * EPOCH, False)]


def test_a_save_of_another_run_is_refused_naming_what_differs(tmp_path):
  with pytest.raises(SystemExit):
    run_stage(tmp_path, asked=after(1), identity={'seed': 0, 'model': 'a'})
  for other, bits in (
    ({'seed': 1, 'model': 'a'}, 2),
    ({'seed': 0, 'model': 'b'}, 32),  # and another tree
  ):
    with pytest.raises(fs.UserError) as caught:
      run_stage(
        tmp_path, identity=other, network=tiny(bits), variables=initial(bits)
      )
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    name = 'seed' if other['seed'] else 'model'
    assert f'{name}={other[name]}' in message
    assert f'{name}={ {"seed": 0, "model": "a"}[name] }' in message


# --- the host runs ahead ------------------------------------------------------


def test_the_host_reads_what_steps_report_at_looks_only(tmp_path, monkeypatch):
  sent, read = [], []
  real, get = compiled_once, jax.device_get

  def noting(*args):
    step = real(*args)

    def advance(state, batch, key, side):
      sent.append(len(sent) + 1)
      return step.advance(state, batch, key, side)

    return step._replace(advance=advance)

  def device_get(tree):
    read.append(len(sent))
    return get(tree)

  monkeypatch.setattr('support.training.compiled_once', noting)
  monkeypatch.setattr(jax, 'device_get', device_get)
  monkeypatch.setattr(loop, 'LOOK_SECONDS', 1e6)  # after the first look
  run_stage(tmp_path)
  assert sent == [*range(1, EPOCHS * EPOCH + 1)]
  # Until it is known how long a step takes; then each epoch's end, twice: its
  # report, and its sums.
  assert read == [1, 2, 3, 4, *(e * EPOCH for e in (1, 1, 2, 2, 3, 3))]


@pytest.mark.parametrize('steps', [1, 4])
def test_a_loss_that_is_not_finite_is_noticed_and_never_saved(
  tmp_path, monkeypatch, steps
):
  data = drawn_data()
  data['image'] = np.float32(data['image'])
  data['image'][13] = np.nan
  monkeypatch.setattr(loop, 'LOOK_SECONDS', 1e6)  # but before each save
  with pytest.raises(fs.UserError) as caught:
    run_stage(tmp_path, experiment(save_steps=steps, crop=0), data=data)
  message = str(caught.value)
  assert len(message.splitlines()) == 1
  told = re.search(r'not finite at step (\d+) of 21; (.*); lower', message)
  newest = int(told[1]) // steps * steps
  if newest:
    assert told[2].startswith(
      f'the save at step {newest} is kept in {tmp_path}'
    )
    assert saves_of(tmp_path)[-1] == newest
  else:
    assert told[2] == 'nothing of the stage was saved yet'
    assert saves_of(tmp_path) == []


def test_the_best_epoch_is_returned_not_the_last(tmp_path):
  seen = {}

  def score(variables, epoch):
    seen[epoch] = jax.tree.map(np.array, variables)
    return {'accuracy': 0.0, 'score': -abs(epoch - 2)}

  best, reached = run_stage(tmp_path, score=score)
  assert reached == 0
  assert_equal_bits(jax.tree.map(np.asarray, best), seen[2])


def test_sides_change_every_ten_steps_and_hang_on_the_seed_alone():
  side_of, again, other = (
    loop._sides((32, 64, 96), loop.Shuffle(seed)) for seed in (0, 0, 1)
  )
  sides = [side_of(step) for step in range(300)]
  assert sides == [again(step) for step in range(300)]
  assert sides != [other(step) for step in range(300)]
  assert set(sides) == {32, 64, 96}
  assert all(len(set(sides[i : i + 10])) == 1 for i in range(0, 300, 10))
  assert loop._sides((), loop.Shuffle(0))(17) is None


# --- what is measured ---------------------------------------------------------


def test_rows_hold_what_was_measured(tmp_path):
  run_stage(tmp_path)
  first, *_, row = Log(tmp_path).rows()
  assert row.keys() == {
    'stage',
    'step',
    'epoch',
    'train_accuracy',
    'train_loss',
    'val_accuracy',
    'images_per_second',
    'step_seconds',
    'input_wait',
  }
  assert row['stage'] == 'ann2'
  assert 0 <= row['train_accuracy'] <= 1
  assert first['compile_seconds'] > 0
  assert first['start_seconds'] > 0


@pytest.fixture
def clock(monkeypatch):
  """`clock.now` is the time that the meter sees."""
  clock = SimpleNamespace(now=0.0)
  times = SimpleNamespace(perf_counter=lambda: clock.now)
  monkeypatch.setattr(meter, 'time', times)
  return clock


def test_compiling_and_judging_are_no_time_of_the_steps(
  tmp_path, clock, monkeypatch
):
  """A step takes 2 seconds, the first 100 to compile; images take 5 to come."""
  real = compiled_once

  def timed(*args):
    step = real(*args)

    def advance(*args):
      clock.now += 100 if clock.now == 5 else 2
      return step.advance(*args)

    return step._replace(advance=advance)

  class Slow(Arrays):
    def batches(self, *args, **settings):
      for number, batch in enumerate(super().batches(*args, **settings)):
        clock.now += 5 * (number == 0)
        yield batch

  def score(variables, epoch):
    clock.now += 1000
    return {'score': epoch}

  monkeypatch.setattr('support.training.compiled_once', timed)
  run_stage(tmp_path, score=score, data=Slow(drawn_data()))
  first, *others = Log(tmp_path).rows()
  assert first['compile_seconds'] == 100
  assert first['start_seconds'] == 5
  assert first['step_seconds'] == 2 * (EPOCH - 1) / EPOCH
  for row in others:
    assert row['step_seconds'] == 2
    assert row['images_per_second'] == BATCH / 2
    assert row['input_wait'] == 0
    assert not {'compile_seconds', 'start_seconds'} & set(row)


class Work:
  """Stands for an array that the devices still compute."""

  def __init__(self):
    self._done = threading.Event()

  def block_until_ready(self):
    self._done.wait()

  def finish(self, measured):
    """It is there; the meter has seen it."""
    self._done.set()
    measured._idle.result()


def test_waiting_is_the_time_with_no_work_and_no_images(clock):
  measured = meter.Meter(BATCH)
  with measured.reading():
    clock.now += 7  # the input starts
  with measured.stepping(None):
    clock.now += 30  # compilation
  for late in (False, True):
    work = Work()
    with measured.stepping(None):
      measured.running(work)
    with measured.reading():
      clock.now += 4  # the devices are at work
      if late:
        work.finish(measured)
        clock.now += 2  # now they are not
    if not late:
      work.finish(measured)
  with devices(2):
    row = measured.epoch()
  measured.close()
  rate = row['images_per_second']
  assert row['images_per_second_per_device'] == round(rate / 2, 1)
  assert row['input_wait'] == 2 / 10
  assert row['start_seconds'] == 7
  assert row['compile_seconds'] == 30
  assert row['step_seconds'] == 10 / 3


def test_devices_that_wait_for_images_are_told_of(tmp_path, capsys):
  class Slow(Arrays):
    def batches(self, *args, **settings):
      for batch in super().batches(*args, **settings):
        time.sleep(0.1)
        yield batch

  run_stage(tmp_path, data=Slow(drawn_data()))
  said = capsys.readouterr().err
  shares = [row['input_wait'] for row in Log(tmp_path).rows()]
  assert len(shares) == EPOCHS
  for share in shares:
    assert 0.5 < share < 1
    line = f'the devices wait for images {100 * share:.0f} % of the time'
    assert f'ann2: {line}; raise --data.workers' in said


def test_a_trace_of_some_steps_is_written_and_changes_no_bit(tmp_path):
  plain, _ = run_stage(tmp_path / 'plain')
  traced, _ = run_stage(tmp_path / 'traced', trace=tmp_path / 'profile')
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert_equal_bits(traced, plain)
