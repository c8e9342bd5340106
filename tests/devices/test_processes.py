"""Two processes on one machine do together what one does alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from support.models import TINY_RESNET
from support.pictures import encode, smooth, write_tfds
from support.shared import ROOT

from fastsnn_jax.checkpoint import store as checkpoint
from fastsnn_jax.training.log import Log

pytestmark = pytest.mark.once

IMAGES, HELD_OUT, TEST, JUDGED = 32, 6, 7, 13

CONFIG = f"""{TINY_RESNET}
import os

config = fs.Experiment(
  model='tiny_resnet',
  data=fs.Data(
    'cifar10',
    path=os.environ['PICTURES'],
    batch=8,
    eval_batch=6,
    held_out=6 / 32,
    stream=True,
    size=8,
  ),
  stages=(
    fs.Stage(32, epochs=2, learning_rate=0.02, schedule='constant'),
    fs.Stage(2, epochs=1, learning_rate=0.01),
  ),
  convert=fs.Conversion(
    bits=(2,),
    mode=('signed', 'settled'),
    tune=('sequential', 'parallel'),
    explain=False,
  ),
)
"""

# As a user's own program: nothing in it speaks of processes.
JUDGE = f"""
import json
import sys

from fastsnn_jax import distributed

distributed.start()

import numpy as np

{TINY_RESNET}
network, variables = fs.load(sys.argv[2])
random = np.random.default_rng(0)
data = {{
  'image': random.integers(0, 256, ({JUDGED}, 8, 8, 3)).astype(np.uint8),
  'label': random.integers(0, 3, {JUDGED}),
}}
twins = {{'signed': (fs.to_spiking(network), variables)}}
row = fs.compare(network, variables, twins, data, batch=4)['signed']
answer = fs.evaluate(network, variables, data, batch=4)
print(json.dumps([answer, row], default=float))
"""


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A TFDS set with one damaged picture, an experiment, and a program."""
  folder = tmp_path_factory.mktemp('pictures')
  rows = [
    (encode(smooth(12 + i % 5, 16 - i % 3, seed=i), 'JPEG'), i % 3)
    for i in range(IMAGES + TEST)
  ]
  rows[9] = b'damaged', 0
  parts = {'train': rows[:IMAGES], 'test': rows[IMAGES:]}
  write_tfds(folder, parts, shape=(None, None, 3))
  (folder / 'config.py').write_text(CONFIG)
  (folder / 'judge.py').write_text(JUDGE)
  return folder


class Launch:
  """A command with two devices in all: in one process, or one in each."""

  def __init__(self, pictures, workdir, command, processes, apart=False):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    self._started = []
    folder = pictures if command == 'judge' else ROOT
    program = folder / f'{command}.py'
    for number in range(processes):
      mine = f'{workdir}{number}' if apart else str(workdir)
      arguments = ['--workdir', mine]
      if command != 'judge':
        arguments += ['--config', str(pictures / 'config.py')]
      environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
        'PICTURES': str(pictures),
        'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false '
        f'--xla_force_host_platform_device_count={2 // processes}',
      }
      if processes > 1:
        environment['JAX_COORDINATOR_ADDRESS'] = f'127.0.0.1:{port}'
        environment['JAX_NUM_PROCESSES'] = str(processes)
        environment['JAX_PROCESS_ID'] = str(number)
      self._started.append(
        subprocess.Popen(
          [sys.executable, str(program), *arguments],
          env=environment,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
        )
      )

  def ask_to_end(self, once):
    """SIGTERM to the last, as soon as there is this file."""
    while not once.exists():
      assert all(process.poll() is None for process in self._started)
      time.sleep(0.01)
    self._started[-1].send_signal(signal.SIGTERM)

  def end(self, code=0):
    """What each process said."""
    try:
      said = [p.communicate(timeout=300)[0] for p in self._started]
    finally:
      for process in self._started:
        process.kill()
    codes = [process.returncode for process in self._started]
    assert codes == [code] * len(codes), '\n\n'.join(said)
    return said


@pytest.fixture(scope='module')
def alone(pictures):
  """The workdir of one process."""
  workdir = pictures / 'alone'
  Launch(pictures, workdir, 'train', 1).end()
  return workdir


@pytest.fixture(scope='module')
def together(pictures):
  """That of two, cut within the first epoch; what each of them said."""
  workdir = pictures / 'together'
  launch = Launch(pictures, workdir, 'train', 2)
  launch.ask_to_end(workdir / 'unfinished' / 'ann32')
  cut = launch.end(128 + signal.SIGTERM)
  (saved,) = (workdir / 'unfinished' / 'ann32').glob('[0-9]*')
  again = Launch(pictures, workdir, 'train', 2).end()
  return workdir, int(saved.name), cut, again


def own(lines):
  """Without what the libraries say."""
  return [x for x in lines.splitlines() if x and not x.startswith('[Gloo]')]


def assert_close(ours, theirs, atol):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol),
    ours,
    theirs,
  )


@pytest.mark.slow
def test_two_processes_cut_and_resumed_train_what_one_does(alone, together):
  workdir, saved, _, _ = together
  assert 0 < saved < 4  # of the epoch's steps
  for name in ('ann32', 'ann2'):
    ours, theirs = (checkpoint.load(path / name) for path in (workdir, alone))
    # The float network to rounding; in two bits it may fall on other levels.
    assert_close(ours[0], theirs[0], 1e-5 if name == 'ann32' else 1e-3)
    ours, theirs = ours[1], theirs[1]
    assert ours['identity'] == theirs['identity']
    assert ours['selected'] == theirs['selected']
  assert not (workdir / 'unfinished' / 'ann32').exists()


def test_the_first_process_writes_and_speaks_for_all(alone, together):
  workdir, saved, cut, again = together
  ours, theirs = (Log(path).rows() for path in (workdir, alone))
  steps = [(row['stage'], row['step']) for row in ours]
  assert steps == [('ann32', 4), ('ann32', 8), ('ann2', 4)]
  for mine, other in zip(ours, theirs, strict=True):
    for name in ('train_accuracy', 'train_loss', 'val_accuracy'):
      np.testing.assert_allclose(mine[name], other[name], rtol=1e-4)
  assert f'ann32: saved at step {saved}; the same command goes on' in cut[0]
  assert 'ann2: accuracy' in again[0]
  # The others have a word only about pictures that they met themselves.
  for said in (cut[1], again[1]):
    assert all('cannot be decoded' in line for line in own(said))
  assert any('cannot be decoded' in said for said in cut + again)


def test_two_processes_judge_all_images(alone, pictures):
  (wanted,) = Launch(pictures, alone / 'ann2', 'judge', 1).end()
  accuracy, row = json.loads(own(wanted)[-1])
  for said in Launch(pictures, alone / 'ann2', 'judge', 2).end():
    ours, mine = json.loads(own(said)[-1])
    assert ours == accuracy
    assert mine['images'] == row['images'] == JUDGED
    for name in ('accuracy', 'agreement', 'spikes_per_image'):
      assert mine[name] == row[name], name


@pytest.mark.slow
def test_two_processes_convert_what_one_does(alone, pictures):
  # From one and the same network: in two bits, last bits may choose levels.
  workdir = pictures / 'converted'
  shutil.copytree(alone, workdir)
  found = []
  for path, processes in ((workdir, 2), (alone, 1)):
    first, *others = Launch(pictures, path, 'convert', processes).end()
    assert str(path / 'report' / 'report.html') in first
    assert not any(own(said) for said in others)
    results = json.loads((path / 'report' / 'results.json').read_text())
    found.append((results, checkpoint.load(path / 'snn2')[0]))
  (ours, tree), (theirs, same) = found
  assert_close(tree, same, 1e-4)
  assert len(ours['rows']) == len(theirs['rows']) == 4
  for mine, other in zip(ours['rows'], theirs['rows'], strict=True):
    assert mine.keys() == other.keys()
    for name in ('accuracy', 'ann_accuracy', 'agreement'):
      # One picture in a thousand, and at least one, may differ in float32.
      assert abs(mine[name] - other[name]) <= 1.01 / TEST, name
    np.testing.assert_allclose(
      mine['spikes_per_image'], other['spikes_per_image'], rtol=0.02
    )
    assert mine['macs_per_image'] == other['macs_per_image']
  assert [r['layer'] for r in ours['tuning']] == [
    r['layer'] for r in theirs['tuning']
  ]
  for mine, other in zip(ours['tuning'], theirs['tuning'], strict=True):
    np.testing.assert_allclose(
      mine['loss_before'], other['loss_before'], rtol=0.02
    )


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused(pictures):
  launch = Launch(pictures, pictures / 'own', 'train', 2, apart=True)
  for said in launch.end(2):
    (line,) = own(said)
    assert line.startswith(f'error: {pictures}/own')
    assert 'on a file system that they share' in line
