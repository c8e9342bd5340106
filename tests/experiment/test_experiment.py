"""The main job on the digits: train, be cut, go on, convert, report."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import registered

import fastsnn_jax as fs
from fastsnn_jax import data
from fastsnn_jax.checkpoint import store as checkpoint
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment import judging
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage
from fastsnn_jax.training.log import Log

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A registered model that compiles in a second; small_resnet8 takes ten.
REGISTER = """
from fastsnn_jax.architectures import register
from fastsnn_jax.architectures.resnet import resnet
from fastsnn_jax.nn.weights import Apot, EightBit

def table(bits, classes):
  return resnet(
    classes,
    stem=8,
    channels=(8,),
    blocks=(1,),
    ends=EightBit(),
    middle=None if bits == 32 else Apot(bits),
    stem_stride=2,
  )

register('tiny_resnet', table, replace=True)
"""

CONFIG = (
  REGISTER
  + """
from fastsnn_jax.config import Data, Experiment, Stage

config = Experiment(
  model='tiny_resnet',
  data=Data('digits', batch=32, eval_batch=120, crop=1, flip=False),
  stages=(Stage(32, epochs=1), Stage(2, epochs=24, learning_rate=0.04)),
  save_minutes=0.0,
)
"""
)


@pytest.fixture(scope='module', autouse=True)
def tiny_resnet():
  names = {}
  exec(REGISTER, names)
  with registered('tiny_resnet', names['table']):
    yield


EXPERIMENT = Experiment(
  model='tiny_resnet',
  data=Data('digits', batch=64, eval_batch=120, crop=1, flip=False),
  stages=(
    Stage(32, epochs=20, schedule='cosine'),
    Stage(2, epochs=10, learning_rate=0.04, schedule='cosine'),
  ),
  convert=Conversion(
    bits=(2,), tune=('sequential', 'parallel'), tune_images=128
  ),
)


ROWS = [
  (2, 'unsigned', 'none'),
  (2, 'signed', 'none'),
  (2, 'settled', 'none'),
  (2, 'signed', 'sequential'),
  (2, 'signed', 'parallel'),
]


def assert_equal_bits(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def shown(network, images):
  return data.normalize(jnp.asarray(images), network.mean, network.std)


def one_line(caught):
  assert len(str(caught.value).splitlines()) == 1
  return str(caught.value)


# --- networks on disk -------------------------------------------------------


@pytest.fixture(scope='module')
def drawn(tiny_resnet):
  network = fs.build(
    'tiny_resnet', 2, ['no', 'yes', 'perhaps'], mean=(0.3,), std=(0.4,)
  )
  return network, network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize('mode', ['ann', 'signed', 'unsigned', 'settled'])
def test_a_network_comes_back_ready_to_run(tmp_path, drawn, mode):
  network, variables = drawn
  if mode != 'ann':
    network = fs.to_spiking(network, mode)
  fs.save(tmp_path / 'net', network, variables, note='a')
  loaded, tree = fs.load(tmp_path / 'net')
  assert loaded == network
  assert_equal_bits(tree, variables)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))
  # Equal networks and variables are one compiled program: equal outputs.
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
  run = jax.jit(lambda n, v, x: n.apply(v, shown(n, x))[0], static_argnums=0)
  np.testing.assert_array_equal(
    run(loaded, tree, images), run(network, variables, images)
  )
  answers = fs.classify(loaded, tree, images)
  assert {loaded.classes[i] for i in answers} <= {'no', 'yes', 'perhaps'}


def test_an_experiment_stands_for_its_last_stages_network(tmp_path, drawn):
  _, variables = drawn
  fs.save(tmp_path / 'net', EXPERIMENT, variables)
  loaded, tree = fs.load(tmp_path / 'net')
  assert (loaded.model, loaded.bits) == ('tiny_resnet', 2)
  assert len(loaded.classes) == 10  # those of its data
  assert len(loaded.mean) == 1
  assert_equal_bits(tree, variables)


def test_a_table_of_ones_own_is_passed_to_load(tmp_path, drawn):
  network, variables = drawn
  own = dataclasses.replace(network, model=None)
  fs.save(tmp_path / 'net', own, variables)
  with pytest.raises(fs.UserError, match='network=') as caught:
    fs.load(tmp_path / 'net')
  one_line(caught)
  loaded, tree = fs.load(tmp_path / 'net', network=own)
  assert loaded is own
  assert_equal_bits(tree, variables)


def test_another_table_is_refused_by_the_name_of_a_layer(tmp_path, drawn):
  fs.save(tmp_path / 'net', *drawn)
  other = fs.build('cifar_vgg11', 2)
  with pytest.raises(fs.UserError, match='tiny_resnet') as caught:
    fs.load(tmp_path / 'net', network=other)
  assert 'layer' in one_line(caught)


# --- the whole job ----------------------------------------------------------


@pytest.fixture(scope='module')
def job(tmp_path_factory, tiny_resnet):
  """(workdir, what train returned, what convert returned)."""
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  trained = fs.train(EXPERIMENT, workdir)
  return workdir, trained, fs.convert(workdir)


@pytest.fixture(scope='module')
def results(job):
  return json.loads((job[0] / 'report' / 'results.json').read_text())


@pytest.fixture
def copy(job, tmp_path):
  """The workdir, to be spoiled."""
  return pathlib.Path(shutil.copytree(job[0], tmp_path / 'copy'))


def test_train_returns_the_test_accuracy_of_each_stage(job):
  workdir, trained, _ = job
  assert list(trained) == ['ann32', 'ann2']
  digits = data.load('digits')
  for name, accuracy in trained.items():
    network, variables = fs.load(workdir / name)
    assert fs.evaluate(network, variables, digits.test) == {
      'accuracy': accuracy
    }
  assert trained['ann32'] > 0.7


def test_the_workdir_holds_what_the_design_says(job):
  workdir = job[0]
  names = {path.name for path in workdir.iterdir()}
  assert names >= {'ann32', 'ann2', 'snn2', 'report'}
  assert not any((workdir / 'unfinished').iterdir())
  rows = Log(workdir).rows()
  found = [(row['stage'], row['epoch']) for row in rows]
  assert found == [
    *(('ann32', epoch) for epoch in range(1, 21)),
    *(('ann2', epoch) for epoch in range(1, 11)),
  ]
  report = workdir / 'report'
  for name in ('results.json', 'report.md', 'report.html'):
    assert (report / name).stat().st_size > 500
  assert list((report / 'plots').glob('*.png'))


def test_results_hold_every_field_of_every_row(job, results):
  workdir, trained, returned = job
  assert results['model'] == 'tiny_resnet'
  assert results['dataset'] == 'digits'
  assert results['images'] == 360
  assert results['float_accuracy'] == trained['ann32']
  found = [(r['bits'], r['mode'], r['tuned']) for r in results['rows']]
  assert found == ROWS
  for row in results['rows']:
    top = 2 ** row['bits'] - 1
    settle = 8 if row['mode'] == 'settled' else 0
    assert (row['T'], row['steps']) == (top, top + settle)
    assert row['ann_accuracy'] == trained[f'ann{row["bits"]}']
    for name in ('accuracy', 'ann_accuracy', 'agreement', 'mean_firing_rate'):
      assert 0 <= row[name] <= 1
    for name in ('spikes_per_image', 'synops_per_image', 'macs_per_image'):
      assert row[name] > 0
    assert row['max_logit_difference'] >= 0
    assert len(row['over_time']) == len(row['agreement_over_time'])
    assert len(row['over_time']) == row['steps']
    assert row['over_time'][-1] == row['accuracy']
    names = [layer.name for layer in fs.load(workdir / 'snn2')[0].firing]
    assert [layer['name'] for layer in row['layers']] == names
  assert [row['accuracy'] for row in returned['rows']] == [
    row['accuracy'] for row in results['rows']
  ]


def test_results_hold_the_records_of_tuning_and_training(results):
  found = [(r['schedule'], r['layer']) for r in results['tuning']]
  assert found == [
    ('sequential', 'layer1.0.part1'),
    ('sequential', 'layer1.0.part2'),
    ('parallel', 'all'),
  ]
  assert results['training']['ann32']['epoch'] == list(range(1, 21))
  assert results['settings']['seed'] == 0


def test_settled_agrees_with_the_ann_on_every_image(results):
  for row in results['rows']:
    if row['mode'] == 'settled':
      assert row['agreement'] == 1
      assert row['accuracy'] == row['ann_accuracy']
      assert row['max_logit_difference'] < 1e-3
      assert row['quiet_step'] <= row['steps']


def test_settled_logits_are_the_anns_in_float64(job):
  ann, variables = fs.load(job[0] / 'ann2')
  images = data.load('digits').test['image']
  with jax.enable_x64(True):
    variables = jax.tree.map(lambda x: jnp.float64(np.asarray(x)), variables)
    mean, std = np.float64(ann.mean), np.float64(ann.std)
    x = jnp.asarray((images / 255 - mean) / std)
    want, _ = jax.jit(ann.apply)(variables, x)
    snn = fs.to_spiking(ann, 'settled')
    got, _ = jax.jit(snn.apply)(variables, x)
    assert got.dtype == want.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def test_the_saved_spiking_network_is_that_of_the_last_row(job, results):
  digits = data.load('digits')
  network, variables = fs.load(job[0] / 'snn2')
  assert network.spiking
  assert network.neuron == fs.IntegrateAndFire(3)
  got = fs.evaluate(network, variables, digits.test, batch=120)
  assert got['accuracy'] == results['rows'][-1]['accuracy']
  answer = fs.classify(network, variables, digits.test['image'][0])
  assert network.classes[answer] in '0123456789'


def test_training_again_only_evaluates(job, monkeypatch, capsys):
  workdir, trained, _ = job

  def forbidden(*args, **kwargs):
    raise AssertionError('a finished stage is trained again')

  monkeypatch.setattr('fastsnn_jax.experiment.stages.run_stage', forbidden)
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert fs.train(EXPERIMENT, workdir) == trained
  assert (workdir / 'metrics.jsonl').read_bytes() == before
  said = capsys.readouterr().err.splitlines()
  assert said[:2] == ['ann32: trained already', 'ann2: trained already']
  assert len(said) == 4
  assert all('on the test images' in line for line in said[2:])


def test_another_time_between_saves_or_conversion_is_the_same_run(job):
  workdir, trained, _ = job
  same = dataclasses.replace(EXPERIMENT, save_minutes=1.0, convert=Conversion())
  assert fs.train(same, workdir) == trained


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'seed': 1}, ('seed=1', 'seed=0')),
    ({'model': 'small_resnet8'}, ('small_resnet8', 'tiny_resnet')),
    ({'momentum': 0.8}, ('momentum=0.8', 'momentum=0.9')),
    (
      {'data': dataclasses.replace(EXPERIMENT.data, crop=0)},
      ('data.crop=0', 'data.crop=1'),
    ),
    (
      {'stages': (Stage(32, epochs=4, schedule='cosine'),)},
      ('stages.32 bits.epochs=4', 'stages.32 bits.epochs=20'),
    ),
  ],
)
def test_other_settings_in_the_same_workdir_are_refused(job, changes, named):
  other = dataclasses.replace(EXPERIMENT, **changes)
  with pytest.raises(fs.UserError) as caught:
    fs.train(other, job[0])
  message = one_line(caught)
  assert all(part in message for part in named)
  assert 'ann32' in message


def test_data_that_moved_are_named_at_conversion(job, tmp_path, monkeypatch):
  workdir, asked = tmp_path / 'copy', []
  shutil.copytree(job[0], workdir)

  def load(name, path):
    asked.append(path)
    return data.digits.load()

  monkeypatch.setattr('fastsnn_jax.experiment.stages.data.load', load)
  results = fs.convert(
    workdir, bits=2, mode='signed', tune='none', data_path='elsewhere'
  )
  assert asked == ['elsewhere']
  assert [row['mode'] for row in results['rows']] == ['signed']
  assert 'convert.data_path' not in results['settings']


def test_a_threshold_that_is_not_positive_is_refused(drawn):
  network, variables = drawn
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: -x if path[-1].key == 'theta' else x, variables['params']
  )
  with pytest.raises(fs.UserError, match=r"'layer0': theta=-6"):
    judging.convert_network(
      network,
      {**variables, 'params': params},
      data.load('digits'),
      modes=('signed',),
      settle=8,
      tunings=(),
      tune_images=None,
      batch=100,
      seed=0,
    )


def test_convert_of_a_bit_width_that_was_not_trained_is_refused(job):
  with pytest.raises(fs.UserError, match='ann4') as caught:
    fs.convert(job[0], bits=(4,))
  one_line(caught)


def test_convert_where_nothing_was_trained_is_refused(tmp_path):
  for workdir in (tmp_path, tmp_path / 'missing'):
    with pytest.raises(fs.UserError, match='no trained network') as caught:
      fs.convert(workdir)
    assert str(workdir) in one_line(caught)


def test_a_network_in_the_wrong_folder_is_refused(copy):
  (copy / 'ann2').rename(copy / 'ann4')
  with pytest.raises(fs.UserError, match='4 bits') as caught:
    fs.convert(copy, bits=(4,))
  one_line(caught)


def test_a_stage_cut_while_its_result_was_written_is_done_again(copy):
  """A kill between the last step and the rename of the checkpoint."""
  want = fs.load(copy / 'ann2')[1]
  shutil.rmtree(copy / 'ann2')
  (copy / 'ann2' / '0.orbax-checkpoint-tmp').mkdir(parents=True)
  fs.train(EXPERIMENT, copy)
  assert_equal_bits(fs.load(copy / 'ann2')[1], want)


def test_convert_keeps_the_network_asked_for(copy):
  less = {'mode': ('unsigned', 'signed'), 'tune': ('none',)}
  found = fs.convert(copy, bits=(), keep='unsigned', **less)
  assert found['settings']['convert.bits'] == (2,)  # all that were trained
  network, _ = fs.load(copy / 'snn2')
  assert network == fs.to_spiking(fs.load(copy / 'ann2')[0], 'unsigned')
  with pytest.raises(fs.UserError, match="keep='settled'") as caught:
    fs.convert(copy, keep='settled', **less)
  one_line(caught)


def test_convert_without_tuning_keeps_the_last_mode(copy):
  shutil.rmtree(copy / 'snn2')
  shutil.rmtree(copy / 'ann32')
  found = fs.convert(copy, mode=('settled',), settle=5, tune=('none',))
  assert [(r['mode'], r['steps']) for r in found['rows']] == [('settled', 8)]
  assert found['tuning'] == []
  assert found['float_accuracy'] is None  # its network is gone
  network, variables = fs.load(copy / 'snn2')
  assert network.neuron == fs.IntegrateAndFire(3, True, 0.0, 3, settle=5)
  assert_equal_bits(variables, fs.load(copy / 'ann2')[1])


@pytest.mark.parametrize('select', ['test', 'last'])
def test_the_epoch_is_selected_as_asked_for(tmp_path, select):
  config = dataclasses.replace(
    EXPERIMENT, stages=EXPERIMENT.stages[:1], select=select
  )
  trained = fs.train(config, tmp_path)
  _, meta = checkpoint.load(tmp_path / 'ann32')
  assert meta['selected']['by'] == select
  reached = meta['selected']['epoch' if select == 'last' else 'accuracy']
  rows = Log(tmp_path).rows()
  if select == 'last':
    assert reached == 20
    assert rows[-1]['step'] == 20 * 21  # without the 144 held out
  else:
    best = max(row['val_accuracy'] for row in rows)
    assert trained['ann32'] == best == pytest.approx(reached)
    assert rows[-1]['step'] == 20 * 23  # all 1,437 images in batches of 64


@pytest.mark.slow
def test_the_demo_in_short_has_rows_for_all_bits_modes_and_tunings(tmp_path):
  config = schema.load(ROOT / 'configs' / 'digits.py')
  stages = [dataclasses.replace(s, epochs=5) for s in config.stages]
  trained = fs.train(
    dataclasses.replace(config, stages=tuple(stages)), tmp_path
  )
  assert list(trained) == ['ann32', 'ann4', 'ann3', 'ann2']
  assert all(accuracy > 0.8 for accuracy in trained.values())
  found = fs.convert(tmp_path)
  assert [(r['bits'], r['mode'], r['tuned']) for r in found['rows']] == [
    (bits, mode, tuned) for bits in (4, 3, 2) for _, mode, tuned in ROWS
  ]
  for row in found['rows']:
    if row['mode'] == 'settled':
      assert row['agreement'] == 1
  for bits in (4, 3, 2):
    network, _ = fs.load(tmp_path / f'snn{bits}')
    assert network.neuron.steps == 2**bits - 1


# --- kills ------------------------------------------------------------------


class Command:
  """train.py as a process of its own, on as many devices, or on these."""

  def __init__(self, folder, config, devices=None):
    self._folder = folder
    (folder / 'mine.py').write_text(config)
    self._environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    if devices:
      flag = f'--xla_force_host_platform_device_count={devices}'
      self._environment['XLA_FLAGS'] = flag

  def start(self, workdir):
    return subprocess.Popen(
      [
        sys.executable,
        ROOT / 'train.py',
        '--config',
        self._folder / 'mine.py',
        '--workdir',
        self._folder / workdir,
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
  try:
    return max(int(p.name) for p in saves.iterdir() if p.name.isdigit())
  except (FileNotFoundError, ValueError):
    return 0


def rows_without_speed(workdir):
  speed = {
    'images_per_second',
    'images_per_second_per_device',
    'step_seconds',
    'compile_seconds',
    'start_seconds',
    'input_wait',
  }
  return [
    {k: v for k, v in row.items() if k not in speed}
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


def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
  check_kills(tmp_path, CONFIG, ('ann32', 'ann2'))


@pytest.mark.slow
def test_the_demos_network_survives_kills_too(tmp_path):
  text = CONFIG.replace("'tiny_resnet',\n  data", "'small_resnet8',\n  data")
  assert 'small_resnet8' in text
  check_kills(tmp_path, text, ('ann32', 'ann2'))


@pytest.mark.slow
def test_ten_kills_at_random_steps_change_no_bit(tmp_path):
  random = np.random.default_rng(0)
  longer = re.sub(r'Stage\(2, epochs=\d+', 'Stage(2, epochs=60', CONFIG)
  assert longer != CONFIG
  command = Command(tmp_path, longer, devices=1)
  command.finish('whole')
  assert 'images_per_second_per_device' not in Log(tmp_path / 'whole').rows()[0]
  saves = tmp_path / 'cut' / 'unfinished' / 'ann2'
  for _ in range(10):
    process = command.start('cut')
    before = newest(saves)
    while newest(saves) <= before and process.poll() is None:
      time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))  # into a save, an epoch, a chunk
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, 'the stage was done too soon'
  command.finish('cut')
  _, want = fs.load(tmp_path / 'whole' / 'ann2')
  _, got = fs.load(tmp_path / 'cut' / 'ann2')
  assert_equal_bits(got, want)
