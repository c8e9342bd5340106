"""Whole jobs that are cut: by a kill, by a signal, at a certain step."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from support.shared import ROOT

import fastsnn_jax as fs
from fastsnn_jax.experiment import train
from fastsnn_jax.training.log import Log

# What a program of the tests finds its modules by.
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
_SPEED = {
  *('images_per_second', 'images_per_second_per_device', 'step_seconds'),
  *('compile_seconds', 'start_seconds', 'input_wait'),
}


def assert_equal_bits(ours, theirs):
  """Two trees are the same, to the last bit."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def one_line(caught):
  """What an error says; it has to be one line."""
  assert len(str(caught.value).splitlines()) == 1
  return str(caught.value)


def stopping(looks):
  """`signals` that asks to end at a look of this number."""
  left = [looks]

  @contextlib.contextmanager
  def signals():
    def asked():
      left[0] -= 1
      return signal.SIGTERM if left[0] == 0 else None

    yield asked

  return signals


def assert_a_cut_run_is_whole(config, directory, monkeypatch):
  """Ended by a signal and given again, the job has the same bits."""
  whole = fs.train(config, directory / 'whole')
  # It looks at each step whether it was asked to end.
  monkeypatch.setattr('fastsnn_jax.training.loop.LOOK_SECONDS', 0)
  with monkeypatch.context() as patch:
    patch.setattr(train, 'signals', stopping(14))
    with pytest.raises(SystemExit):
      fs.train(config, directory / 'cut')
  assert fs.train(config, directory / 'cut') == whole
  ours, theirs = (
    fs.load(directory / name / 'ann32')[1] for name in ('whole', 'cut')
  )
  assert_equal_bits(ours, theirs)


class Command:
  """train.py as a process of its own, on as many devices, or on these."""

  def __init__(self, folder, config, devices=None):
    self._folder = folder
    (folder / 'mine.py').write_text(config)
    self._environment = {**os.environ, 'PYTHONPATH': PYTHONPATH}
    if devices:
      flag = f'--xla_force_host_platform_device_count={devices}'
      self._environment['XLA_FLAGS'] = flag

  def start(self, workdir):
    return subprocess.Popen(
      [
        *(sys.executable, ROOT / 'train.py'),
        *('--config', self._folder / 'mine.py'),
        *('--workdir', self._folder / workdir),
      ],
      cwd=self._folder,
      env=self._environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def finish(self, workdir):
    process = self.start(workdir)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said

  def cut(self, workdir, number, stage, beyond=0):
    """Sends a signal once a step behind `beyond` is saved; what was said."""
    saves = self._folder / workdir / 'unfinished' / stage
    process = self.start(workdir)
    try:
      end = time.monotonic() + 240
      while process.poll() is None and time.monotonic() < end:
        if newest(saves) > beyond:
          break
        time.sleep(0.01)
    finally:
      process.send_signal(number)
      _, said = process.communicate(timeout=240)
    assert newest(saves) > beyond, said
    return process.returncode, said


def newest(saves):
  """The last step that is saved; 0 for none."""
  try:
    return max(int(p.name) for p in saves.iterdir() if p.name.isdigit())
  except (FileNotFoundError, ValueError):
    return 0


def rows_without_speed(workdir):
  """The rows of metrics.jsonl, but for what no two runs have the same."""
  return [
    {k: v for k, v in row.items() if k not in _SPEED}
    for row in Log(workdir).rows()
  ]


def check_kills(folder, config, stages):
  """kill -9 and SIGTERM in the last stage; then the end is that of no cut."""
  command, last = Command(folder, config), stages[-1]
  command.finish('whole')
  code, _ = command.cut('cut', signal.SIGKILL, last)
  assert code == -signal.SIGKILL
  assert not (folder / 'cut' / last).exists(), 'the stage was done too soon'
  step = newest(folder / 'cut' / 'unfinished' / last)
  code, said = command.cut('cut', signal.SIGTERM, last, beyond=step)
  assert code == 143, said
  assert 'Traceback' not in said
  saved = newest(folder / 'cut' / 'unfinished' / last)
  assert said.splitlines()[-1] == (
    f'{last}: saved at step {saved}; the same command goes on'
  )
  assert saved > step
  command.finish('cut')
  for stage in stages:
    _, want = fs.load(folder / 'whole' / stage)
    _, got = fs.load(folder / 'cut' / stage)
    assert_equal_bits(got, want)
  rows = rows_without_speed(folder / 'cut')
  assert rows == rows_without_speed(folder / 'whole')
  epochs = [row['epoch'] for row in rows if row['stage'] == last]
  assert epochs == list(range(1, len(epochs) + 1))
  assert not (folder / 'cut' / 'unfinished' / last).exists()
