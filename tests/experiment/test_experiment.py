"""The main job on the digits: train, be cut, go on, convert, report."""

import dataclasses
import json
import pathlib
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.jobs import (
  Command,
  assert_equal_bits,
  check_kills,
  newest,
  one_line,
)
from support.models import TINY_RESNET, registered, tiny_resnet
from support.shared import ROOT

import fastsnn_jax as fs
from fastsnn_jax import data, tasks
from fastsnn_jax.checkpoint import store as checkpoint
from fastsnn_jax.experiment import commands
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage
from fastsnn_jax.experiment.convert import convert_network
from fastsnn_jax.training.log import Log

CONFIG = f"""{TINY_RESNET}
config = fs.Experiment(
  model='tiny_resnet',
  data=fs.Data('digits', batch=32, eval_batch=120, crop=1, flip=False),
  stages=(fs.Stage(32, epochs=1), fs.Stage(2, epochs=8, learning_rate=0.04)),
  save_minutes=0.0,
)
"""


@pytest.fixture(scope='module', autouse=True)
def registered_tiny_resnet():
  with registered('tiny_resnet', tiny_resnet):
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


def shown(network, images):
  return data.normalize(jnp.asarray(images), network.mean, network.std)


# --- networks on disk -------------------------------------------------------


@pytest.fixture(scope='module')
def drawn(registered_tiny_resnet):
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


def test_an_experiment_stands_for_its_last_stages_network(tmp_path):
  network = fs.build('tiny_resnet', 2)  # of ten classes, as the digits
  variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
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
def job(tmp_path_factory, registered_tiny_resnet):
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
    late = row['mode'] == 'settled'
    assert row['T'] == top
    assert row['steps'] == max(row.get('quiet_step', 0), top)
    assert row['ann_accuracy'] == trained[f'ann{row["bits"]}']
    for name in ('accuracy', 'ann_accuracy', 'agreement', 'mean_firing_rate'):
      assert 0 <= row[name] <= 1
    for name in ('spikes_per_image', 'synops_per_image', 'macs_per_image'):
      assert row[name] > 0
    assert row['max_logit_difference'] >= 0
    assert len(row['over_time']) == len(row['agreement_over_time'])
    assert len(row['over_time']) == top + late
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


def test_the_report_explains_what_was_kept(job, results):
  names = [layer.name for layer in fs.load(job[0] / 'snn2')[0].firing]
  assert [x['network'] for x in results['cost']] == [
    *('float', 'quantised', 'spiking, parallel'),
  ]
  counts = json.loads((job[0] / 'report' / 'neurobench.json').read_text())
  spiking = counts['2 bits, spiking, parallel']['SynapticOperations']
  assert spiking['Effective_ACs'] == results['cost'][-1]['acs'] > 0
  (curve,), (seen,) = results['early_exit'], results['diagnosis']
  assert curve['full'] == results['rows'][-1]['accuracy']
  assert curve['steps'] == sorted(curve['steps'])
  assert [site['name'] for site in seen['sites']] == names


def test_the_command_diagnose_prints_and_draws(copy, capsys):
  report = copy / 'report'
  commands.diagnose_command(
    ['--workdir', str(copy), '--bits', '2', '--images', '40']
  )
  text = (report / 'diagnosis-2-bits.txt').read_text()
  assert capsys.readouterr().out == text
  assert text.startswith('site ')
  assert (report / 'diagnosis-2-bits.png').stat().st_size > 5000
  with pytest.raises(fs.UserError, match='ann3'):
    commands.diagnose_command(['--workdir', str(copy), '--bits', '3'])


def test_settled_agrees_with_the_ann_on_every_image(results):
  for row in results['rows']:
    if row['mode'] == 'settled':
      assert row['agreement'] == 1
      assert row['accuracy'] == row['ann_accuracy']
      assert row['max_logit_difference'] < 1e-3
      assert row['quiet_step'] > row['T']
      assert row['not_quiet'] == 0


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

  monkeypatch.setattr('fastsnn_jax.experiment.train.run_stage', forbidden)
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
  workdir, asked, digits = tmp_path / 'copy', [], data.load('digits')
  shutil.copytree(job[0], workdir)

  def load(name, path):
    asked.append(path)
    return digits

  monkeypatch.setattr('fastsnn_jax.data.named.load', load)
  results = fs.convert(
    workdir,
    bits=2,
    mode='signed',
    tune='none',
    data_path='elsewhere',
    explain=False,
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
    convert_network(
      network,
      {**variables, 'params': params},
      tasks.for_network(network),
      data.load('digits').test,
      None,
      EXPERIMENT,
      Conversion(mode='signed', tune='none'),
    )


def test_what_is_not_quiet_is_told_with_the_remedy(monkeypatch, capsys):
  network = fs.build('tiny_resnet', 2)
  variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  row = dict.fromkeys(('accuracy', 'ann_accuracy', 'agreement'), 1.0)
  row |= {'images': 9, 'steps': 5, 'not_quiet': 4}

  def compare(ann, variables, spiking, *rest, **options):
    (settled, _) = spiking['settled']
    assert settled.neuron.settle == 2
    return {'settled': row}

  monkeypatch.setattr('fastsnn_jax.experiment.convert.compare', compare)
  settings = Conversion(mode='settled', settle=2, tune='none')
  test = data.load('digits').test
  task = tasks.for_network(network)
  convert_network(network, variables, task, test, None, EXPERIMENT, settings)
  said = capsys.readouterr().err
  assert '4 of 9 images still fired in the last of 5 steps' in said
  assert '--settle auto' in said


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


@pytest.mark.once
def test_a_stage_cut_while_its_result_was_written_is_done_again(copy):
  """A kill between the last step and the rename of the checkpoint."""
  want = fs.load(copy / 'ann2')[1]
  shutil.rmtree(copy / 'ann2')
  (copy / 'ann2' / '0.orbax-checkpoint-tmp').mkdir(parents=True)
  fs.train(EXPERIMENT, copy)
  assert_equal_bits(fs.load(copy / 'ann2')[1], want)


@pytest.mark.once
def test_convert_keeps_the_network_asked_for(copy):
  less = {'mode': ('unsigned', 'signed'), 'tune': 'none', 'explain': False}
  found = fs.convert(copy, bits=(), keep='unsigned', **less)
  assert found['settings']['convert.bits'] == (2,)  # all that were trained
  network, _ = fs.load(copy / 'snn2')
  assert network == fs.to_spiking(fs.load(copy / 'ann2')[0], 'unsigned')
  with pytest.raises(fs.UserError, match="keep='settled'") as caught:
    fs.convert(copy, keep='settled', **less)
  one_line(caught)


@pytest.mark.once
def test_convert_without_tuning_keeps_the_last_mode(copy):
  shutil.rmtree(copy / 'snn2')
  shutil.rmtree(copy / 'ann32')
  found = fs.convert(
    copy, mode=('settled',), settle=5, tune=('none',), explain=False
  )
  assert [(r['mode'], r['steps']) for r in found['rows']] == [('settled', 8)]
  assert found['tuning'] == []
  assert found['float_accuracy'] is None  # its network is gone
  network, variables = fs.load(copy / 'snn2')
  assert network.neuron == fs.IntegrateAndFire(3, True, 0.0, 3, settle=5)
  assert_equal_bits(variables, fs.load(copy / 'ann2')[1])


@pytest.mark.once
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


@pytest.mark.once
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
