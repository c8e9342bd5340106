"""The lock of a workdir, and names that no directory can have."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from support.jobs import one_line

import fastsnn_jax as fs
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Data, Experiment, Stage
from fastsnn_jax.experiment.lock import locked
from fastsnn_jax.experiment.train import held_out

HOLD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, f'{os.getpid()} on elsewhere'.encode())
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def no_flock(monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', refuse)


def refused(workdir):
  with pytest.raises(fs.UserError) as caught, locked(workdir):
    pytest.fail('two at once')
  return one_line(caught)


def test_a_lock_names_its_process_and_goes_with_it(tmp_path):
  workdir = tmp_path / 'runs' / 'new'
  me = f'{os.getpid()} on {socket.gethostname()}'
  with locked(workdir):
    assert (workdir / 'lock').read_text().strip() == me
    assert me in refused(workdir)
  assert not list(workdir.iterdir())
  with locked(workdir):
    pass


def test_a_lock_is_let_go_at_a_kill(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-S', '-c', HOLD, tmp_path / 'lock'],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  with process:
    process.stdout.readline()
    assert f'{process.pid} on elsewhere works there' in refused(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert (tmp_path / 'lock').exists()
  with locked(tmp_path):
    assert str(os.getpid()) in (tmp_path / 'lock').read_text()


@pytest.mark.usefixtures('no_flock')
def test_without_flock_the_living_process_counts(tmp_path):
  with locked(tmp_path):
    assert f'process {os.getpid()}' in refused(tmp_path)
  here, dead = socket.gethostname(), subprocess.Popen([sys.executable, '-V'])
  dead.wait()
  for text, free in (
    (f'{dead.pid} on {here}', True),
    (f'{dead.pid} on another-host', False),
    (f'{10**20} on {here}', False),
    (f'1 on {here}', False),
    ('', False),  # another process is about to name itself
  ):
    (tmp_path / 'lock').write_text(text)
    if free:
      with locked(tmp_path):
        pass
    else:
      assert 'works there' in refused(tmp_path)


def test_a_lock_is_not_a_file_of_the_users(tmp_path):
  (tmp_path / 'lock').write_text('my notes')
  assert 'another kind' in refused(tmp_path)
  assert (tmp_path / 'lock').read_text() == 'my notes'
  (tmp_path / 'lock').unlink()
  (tmp_path / 'notes').write_text('')
  (tmp_path / 'lock').symlink_to('notes')
  assert 'cannot be written to' in refused(tmp_path)


def test_both_functions_take_it(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'experiment_of', lambda _: Experiment())
  monkeypatch.setattr(files, 'trained_bits', lambda *_: (2,))
  with locked(tmp_path):
    with pytest.raises(fs.UserError, match='works there'):
      fs.train(Experiment(), tmp_path)
    with pytest.raises(fs.UserError, match='works there'):
      fs.convert(tmp_path)


@pytest.mark.parametrize('again', [False, True])
def test_a_workdir_that_was_removed_meanwhile_is_told(tmp_path, again):
  workdir = tmp_path / 'w'

  def remove():
    with locked(workdir):
      shutil.rmtree(workdir)
      if again:
        (workdir / 'unfinished').mkdir(parents=True)

  with pytest.raises(fs.UserError) as caught:
    remove()
  assert 'it was removed or replaced' in one_line(caught)


NOWHERE = ['', '  ', 'x' * 300, 'a\0b', '~nosuchuser/x', 'y' * 5000]


@pytest.mark.parametrize('name', NOWHERE)
def test_a_workdir_that_cannot_be_is_refused(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  for call in (lambda: fs.train(Experiment(), name), lambda: fs.convert(name)):
    with pytest.raises(fs.UserError, match='--workdir') as caught:
      call()
    one_line(caught)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['lr[0.1]', r'a\b', 'a*?', '#1 %20', 'é 中'])
def test_any_other_name_will_do(tmp_path, name):
  with locked(files.at(tmp_path / name)):
    assert (tmp_path / name / 'lock').is_file()


def test_a_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert files.at('~/runs') == tmp_path / 'runs'
  with pytest.raises(fs.UserError, match=re.escape('it is a file')):
    files.at(__file__)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'data': Data(crop=8)}, 'data.crop=8: .* side 8 .* at most 7'),
    ({'data': Data(crop=1000)}, 'data.crop=1000: .* nothing but padding'),
    (
      {'data': Data(batch=1), 'stages': (Stage(2, epochs=100_000),)},
      '100000 epochs are 2160000000 steps, but a stage has at most 2147483647',
    ),
    ({'data': Data(batch=1), 'warmup': 1e5}, 'stage.epochs, warmup: 100000'),
  ],
)
def test_what_the_data_forbid_is_refused_before_the_work(changes, says):
  images = np.zeros((24_000, 8, 8, 1), np.uint8)
  part = {'image': images, 'label': np.arange(24_000) % 2}
  config = Experiment(**changes)
  dataset = files.open_data(config, {'train': part, 'test': part})
  with pytest.raises(fs.UserError, match=says) as caught:
    held_out(config, dataset)
  one_line(caught)
  held_out(Experiment(data=Data(crop=7)), dataset)
