"""Logs that survive a kill, bars that are lines off a terminal, signals."""

import errno
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import threading

import pytest
from support.jobs import one_line

from fastsnn_jax.errors import UserError
from fastsnn_jax.training import log as progress
from fastsnn_jax.training.log import Bar, Log, signals


class Terminal:
  """Standard error that says that it is a terminal."""

  def __init__(self):
    self.text = ''

  def write(self, text):
    self.text += text

  def flush(self):
    pass

  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """`clock.now` is the time that progress sees."""

  class Clock:
    now = 0.0

  monkeypatch.setattr(progress.time, 'monotonic', lambda: Clock.now)
  return Clock


def test_rows_come_back_as_they_were_written(tmp_path):
  log = Log(tmp_path)
  assert log.rows() == []
  log.write('ann32', 10, loss=0.5, epoch=1)
  log.write('ann4', 5, loss=0.25)
  log.close()
  want = [
    {'stage': 'ann32', 'step': 10, 'loss': 0.5, 'epoch': 1},
    {'stage': 'ann4', 'step': 5, 'loss': 0.25},
  ]
  assert Log(tmp_path).rows() == want
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == want


def test_rewind_drops_only_this_stages_rows_behind_the_step(tmp_path):
  log = Log(tmp_path)
  for stage, step in (('ann32', 9), ('ann4', 3), ('ann4', 6), ('ann4', 9)):
    log.write(stage, step)
  log.rewind('ann4', 6)
  assert [(r['stage'], r['step']) for r in log.rows()] == [
    ('ann32', 9),
    ('ann4', 3),
    ('ann4', 6),
  ]
  assert [path.name for path in tmp_path.glob('metrics*')] == ['metrics.jsonl']
  log.close()


def test_a_line_that_a_kill_cut_short_is_left_out_and_written_over(tmp_path):
  log = Log(tmp_path)
  log.write('ann4', 3)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"stage": "ann4", "st')
  assert [row['step'] for row in log.rows()] == [3]
  log.rewind('ann4', 3)  # what a stage does at its start
  log.write('ann4', 6)
  log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [3, 6]


@pytest.mark.skipif(
  importlib.util.find_spec('tensorboardX') is None, reason='not installed'
)
def test_tensorboard_events_lie_beside_the_lines(tmp_path):
  log = Log(tmp_path)
  log.write('ann4', 3, loss=0.5)
  log.close()
  events = list((tmp_path / 'tensorboard' / 'ann4').glob('*tfevents*'))
  assert len(events) == 1
  assert events[0].stat().st_size > 0


def test_without_tensorboard_the_lines_are_written_all_the_same(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  log = Log(tmp_path)
  log.write('ann4', 3, loss=0.5)
  log.close()
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


ODD = ['3', '[]', 'null', '"x"', '{}', '{"stage": "ann4"}', '{"stage": "ann4"']
ODD += ['{"stage": 4, "step": 1}', '{"stage": "ann4", "step": "1"}', '[' * 9**5]
ODD += ['{"stage": "ann4", "step": ' + '9' * 5000 + '}', '\0', '\x85']


@pytest.mark.parametrize('line', ODD)
def test_a_line_that_is_no_row_is_left_out(tmp_path, line):
  log = Log(tmp_path)
  log.write('ann4', 1, loss=math.nan)
  with (tmp_path / 'metrics.jsonl').open('a', encoding='latin-1') as file:
    file.write(f'{line}\n')
  log.write('ann4', 2, loss=0.5)
  assert [row['step'] for row in log.rows()] == [1, 2]
  assert log.curves()['ann4']['step'] == [1, 2]
  log.rewind('ann4', 1)
  log.close()
  assert [row['step'] for row in log.rows()] == [1]


def test_a_full_disk_is_one_error_and_no_thread_of_its_own(
  tmp_path, monkeypatch
):
  log, before = Log(tmp_path), threading.active_count()
  log.write('ann4', 1, loss=0.5)
  assert threading.active_count() == before

  def full(self, *_):
    self._writer.close()
    raise OSError(errno.ENOSPC, 'No space left on device')

  record_writer = pytest.importorskip('tensorboardX.record_writer')
  monkeypatch.setattr(record_writer.RecordWriter, 'flush', full)
  with pytest.raises(UserError, match='No space left on device') as caught:
    log.write('ann4', 2, loss=0.5)
  one_line(caught)
  log.close()  # though there is no room now


@pytest.mark.parametrize('again', [False, True])
def test_a_workdir_that_is_gone_is_not_made_anew(tmp_path, again):
  log = Log(tmp_path / 'w')
  (tmp_path / 'w').mkdir()
  log.rewind('ann4', 0) if again else log.write('ann4', 1)
  shutil.rmtree(tmp_path / 'w')
  if again:  # a save made it again
    (tmp_path / 'w').mkdir()
  with pytest.raises(UserError, match=r'metrics\.jsonl: it cannot be written'):
    log.write('ann4', 2)
  log.close()


def test_off_a_terminal_a_bar_is_a_line_now_and_then(capsys, clock):
  with Bar('ann4: 2 epochs', 100, done=20) as bar:
    for clock.now in (10, 20, 29):
      bar.advance(5, 'loss 0.5')
    assert capsys.readouterr().err == ''
    clock.now = 31
    bar.advance(5, 'loss 0.4')
    # 20 units in 31 seconds, 60 to go
    want = 'ann4: 2 epochs:  40 %  loss 0.4  0:01:33 left\n'
    assert capsys.readouterr().err == want
    bar.advance(5)
    bar.line('ann4 epoch 1')
  shown = capsys.readouterr()
  assert (shown.out, shown.err) == ('', 'ann4 epoch 1\n')


def test_on_a_terminal_a_bar_shows_title_note_and_lines(monkeypatch):
  """As they are: a name in brackets is no markup."""
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.setenv('TERM', 'xterm')
  title, note, line = (
    '[/a] [red]',
    'loss 0.4 [/b] x[0]',
    'lr[0.1] [/red] [bold]',
  )
  with Bar(title, 10) as bar:
    bar.advance(10, note)
    bar.line('a line that stays')
    bar.line(line)
  for part in (title, note, '100%', 'a line that stays', line):
    assert part in terminal.text


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_put_back(number):
  before = signal.getsignal(number)
  with signals() as asked:
    assert asked() is None
    os.kill(os.getpid(), number)
    assert asked() == number
  assert signal.getsignal(number) is before


def test_a_second_signal_is_meant():
  def twice():
    with signals():
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(KeyboardInterrupt):
    twice()


def test_outside_the_main_thread_signals_are_left_alone():
  seen = []

  def work():
    with signals() as asked:
      seen.append(asked())

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [None]
  assert signal.getsignal(signal.SIGTERM) is before
