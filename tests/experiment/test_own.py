"""Data, models and tasks of one's own, through the whole job."""

import dataclasses
import json
import sys
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from support.jobs import one_line
from support.models import registered

import fastsnn_jax as fs
from fastsnn_jax import data, tasks
from fastsnn_jax.experiment import cli
from fastsnn_jax.training.log import Log

pytestmark = pytest.mark.once

CLASSES, TRAIN, TEST = tuple('0123456789'), 160, 40


def table(bits, classes):
  weights = None if bits == 32 else fs.Apot(bits)
  return [
    fs.Layer('stem', fs.Conv(8, stride=2, weights=fs.EightBit())),
    fs.Layer('middle', fs.Conv(8, stride=2, weights=weights), ('stem',)),
    fs.Layer('head', fs.Dense(classes, norm=False), ('middle',)),
  ]


@pytest.fixture(scope='module', autouse=True)
def three_rows():
  with registered('three_rows', table, size=8):
    yield


def digits(labels=lambda part: {'label': part['label']}):
  """{'train': …, 'test': …} of the first digits, as dicts of arrays."""
  known = data.load('digits')
  parts = known.train.take(slice(TRAIN)), known.test.take(slice(TEST))
  return {
    name: {'image': part['image'], **labels(part)}
    for name, part in zip(('train', 'test'), parts, strict=True)
  }


def config_of(model='three_rows', name='digits', **changes):
  return fs.Experiment(
    model=model,
    data=fs.Data(name, batch=16, eval_batch=40, crop=0, flip=False),
    stages=(fs.Stage(2, epochs=2, learning_rate=0.05, schedule='constant'),),
    convert=fs.Conversion(mode='settled', tune='none', explain=False),
    **changes,
  )


# --- data -------------------------------------------------------------------


def examples(part):
  return [
    {name: x[i] for name, x in part.items()} for i in range(len(part['image']))
  ]


def map_dataset(part):
  import grain

  return grain.MapDataset.source(examples(part))


FORMS = {
  'arrays': lambda part: part,
  'generator': lambda part: iter(examples(part)),
  'list': examples,
  'grain': map_dataset,
}


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """`rows(form)`: what training and conversion say of data in this form."""
  done = {}

  def run(form):
    if form not in done:
      workdir = tmp_path_factory.mktemp(form)
      parts = {name: FORMS[form](part) for name, part in digits().items()}
      known = {'mean': (0.3,), 'std': (0.4,), 'classes': CLASSES}
      own = {'name': 'mine', **parts, **known}
      trained = fs.train(config_of(), workdir, data=own)
      # What is read once is gone.
      parts = {name: FORMS[form](part) for name, part in digits().items()}
      results = fs.convert(workdir, data=fs.Dataset('mine', **parts, **known))
      done[form] = trained, results
    return done[form]

  return run


@pytest.mark.parametrize('form', FORMS)
def test_data_of_ones_own_are_trained_on_and_converted(rows, form):
  trained, results = rows(form)
  assert results['dataset'] == 'mine'
  assert results['images'] == TEST
  assert results['classes'] == list(CLASSES)
  (settled,) = results['rows']
  assert settled['agreement'] == 1
  assert settled['ann_accuracy'] == trained['ann2']


@pytest.mark.parametrize(
  ('form', 'other'), [('generator', 'arrays'), ('list', 'arrays')]
)
def test_the_form_of_the_data_changes_nothing(rows, form, other):
  (trained, results), (same, others) = rows(form), rows(other)
  assert trained == same
  assert (
    results['training']['ann2']['train_loss']
    == (others['training']['ann2']['train_loss'])
  )
  assert results['rows'] == others['rows']


@pytest.mark.parametrize('given', [False, True])
def test_validation_images_are_held_out_unless_they_are_given(tmp_path, given):
  own = digits()
  if given:
    own['validation'] = {name: x[:7] for name, x in own['test'].items()}
  fs.train(config_of(), tmp_path, data=own)
  held_out = 0 if given else TRAIN // 10
  steps = -(-(TRAIN - held_out) // 16)
  log = Log(tmp_path).rows()
  assert [row['step'] for row in log] == [steps, 2 * steps]
  judged = 7 if given else held_out
  for row in log:
    correct = judged * row['val_accuracy']
    assert correct == pytest.approx(round(correct), abs=1e-4)


@pytest.mark.parametrize(
  ('own', 'says'),
  [
    ({'train': {}}, "'train' and 'test'"),
    ([1, 2], 'give a Dataset'),
    ({'train': {'label': np.arange(3)}, 'test': {}}, "needs 'image'"),
  ],
)
def test_data_that_are_none_are_refused(tmp_path, own, says):
  with pytest.raises(fs.UserError, match=says) as caught:
    fs.train(config_of(), tmp_path, data=own)
  one_line(caught)


# --- a model and a data set that a config file registers --------------------

CONFIG = """
import fastsnn_jax as fs
from fastsnn_jax import data

def table(bits, classes):
  return [
    fs.Layer('stem', fs.Conv(8, stride=4)),
    fs.Layer('middle', fs.Conv(8), ('stem',)),
    fs.Layer('head', fs.Dense(classes, norm=False), ('middle',)),
  ]

def load(path):
  known = data.load('digits')
  return {'train': known.train.take(slice(64)), 'test': known.test.take([1, 2])}

fs.register_model('mine', table, size=8, replace=True)
fs.register_dataset('few', load)
config = fs.Experiment(
  model='mine',
  data=fs.Data('few', batch=16, eval_batch=8, crop=0, flip=False),
  stages=(fs.Stage(3, epochs=1),),
  convert=fs.Conversion(mode='settled', tune='none', explain=False),
)
"""


def test_the_console_script_takes_a_model_and_data_of_ones_own(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(cli, '_silence_orbax', lambda: None)
  file, workdir = tmp_path / 'mine.py', tmp_path / 'run'
  file.write_text(CONFIG)
  for command in ('train', 'convert'):
    arguments = ('--config', str(file), '--workdir', str(workdir))
    monkeypatch.setattr(sys, 'argv', ['fastsnn', command, *arguments])
    cli.main()
  report = workdir / 'report'
  assert capsys.readouterr().out == f'{report / "report.html"}\n'
  results = json.loads((report / 'results.json').read_text())
  assert (results['model'], results['dataset']) == ('mine', 'few')
  assert [row['agreement'] for row in results['rows']] == [1]


# --- a task -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Brightness(fs.Task):
  """The mean of an image, by the first output of the network."""

  metric: ClassVar[str] = 'error'  # negative: higher is better

  def loss(self, outputs, batch):
    sums = self.measure(self.predict(outputs), batch)
    mean = sums['square'] / jnp.maximum(sums['count'], 1)
    return mean, {'loss': sums['square'], **sums}

  def predict(self, outputs):
    return outputs[:, 0]

  def measure(self, predictions, batch):
    square = jnp.square(predictions - batch['target']) * batch['mask']
    return {'square': jnp.sum(square), 'count': jnp.sum(batch['mask'])}

  def agree(self, predictions, others, batch):
    same = jnp.abs(predictions - others) < 1e-3
    return (same * batch['mask']).sum(), batch['mask'].sum()

  def summarize(self, sums, kept=None):
    return {'error': -float(np.sqrt(sums['square'] / sums['count']))}


def means(part):
  return {'target': (part['image'].mean((1, 2, 3)) / 25.5).astype(np.float32)}


@pytest.fixture(scope='module')
def bright(three_rows, tmp_path_factory):
  """(workdir, test images, what train and convert returned)."""
  workdir = tmp_path_factory.mktemp('bright')
  fs.register_task('brightness', Brightness)
  own = {**digits(means), 'classes': ('brightness', 'nothing')}
  fs.register_dataset('bright', lambda path: own)
  tuning = {'tune': ('sequential', 'parallel'), 'tune_images': 64}
  config = config_of('bright_rows', 'bright')
  stages = tuple(
    fs.Stage(bits, epochs=12, learning_rate=0.01, schedule='cosine')
    for bits in (32, 3)
  )
  config = dataclasses.replace(
    config, stages=stages, convert=fs.Conversion(explain=False, **tuning)
  )
  with registered('bright_rows', table, size=8, task='brightness'):
    trained = fs.train(config, workdir)
    yield workdir, own['test'], trained, fs.convert(workdir)
  del tasks._TASKS['brightness']
  del data.named._OWN['bright']


def test_a_task_of_ones_own_goes_through_the_whole_job(bright):
  _, test, trained, results = bright
  assert (results['task'], results['metric']) == ('brightness', 'error')
  assert results['float_error'] == trained['ann32']
  spread = float(np.std(test['target']))
  assert -spread < trained['ann32'] < 0  # better than a constant answer
  done = [(row['mode'], row['tuned']) for row in results['rows']]
  assert done == [
    ('unsigned', 'none'),
    ('signed', 'none'),
    ('settled', 'none'),
    ('signed', 'sequential'),
    ('signed', 'parallel'),
  ]
  for row in results['rows']:
    assert row['ann_error'] == trained['ann3']
    assert row['over_time'][-1] == row['error'] < 0
  settled = results['rows'][2]
  assert settled['agreement'] == 1
  assert settled['error'] == pytest.approx(trained['ann3'], rel=1e-4)
  for record in results['tuning']:
    assert record['error'] < 0
  # The epoch of the least error is kept.
  curve = results['training']['ann32']['val_error']
  assert max(curve) == max(curve, key=lambda value: -abs(value))


def test_its_report_and_its_networks_are_as_all_are(bright):
  workdir, test, trained, _ = bright
  text = (workdir / 'report' / 'report.md').read_text()
  assert '| Error | ANN error |' in text
  assert f'The float network reaches {trained["ann32"]:.3g} error' in text
  network, variables = fs.load(workdir / 'ann3')
  assert fs.evaluate(network, variables, test)['error'] == pytest.approx(
    trained['ann3'], rel=1e-5
  )
  spiking, tuned = fs.load(workdir / 'snn3')
  row = fs.compare(network, variables, {'it': (spiking, tuned)}, test)['it']
  assert row['error'] < 0
  with pytest.raises(fs.UserError, match=r'use fs\.evaluate'):
    fs.classify(network, variables, test['image'])
