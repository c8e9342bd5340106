"""What a conversion leaves where it is cut, or where something is odd."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.jobs import one_line
from support.models import registered

import fastsnn_jax as fs
from fastsnn_jax.experiment import convert
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.report import pages

pytestmark = pytest.mark.once  # whole conversions

CLASSES = 'chien_\udce9', '$\\frac$', '<b>'
DATA = fs.Data('odd', batch=8, eval_batch=8, crop=0, flip=False)
CONFIG = fs.Experiment(
  'tiny_rows',
  DATA,
  (fs.Stage(32), fs.Stage(2)),
  fs.Conversion(bits=2, mode='signed', tune='none', explain=False),
)


def table(bits, classes):
  del bits
  return [
    fs.Layer('stem', fs.Conv(4, stride=2, weights=fs.EightBit())),
    fs.Layer('middle', fs.Conv(4, stride=2), ('stem',)),
    fs.Layer('head', fs.Dense(classes, norm=False), ('middle',)),
  ]


def part(count):
  images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 1))
  return {'image': images.astype(np.uint8), 'label': np.arange(count) % 3}


OWN = {'name': 'odd', 'train': part(16), 'test': part(8), 'classes': CLASSES}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir with networks as train.py leaves them, but not trained."""
  workdir = tmp_path_factory.mktemp('trained')
  with registered('tiny_rows', table):
    dataset = files.open_data(CONFIG, OWN)
    for bits in (32, 2):
      network = files.network_of(CONFIG, bits, dataset)
      variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      about = {'dataset': 'odd', 'experiment': dataclasses.asdict(CONFIG)}
      fs.save(workdir / f'ann{bits}', network, variables, **about)
    yield workdir


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'w')


def run(workdir, **overrides):
  return fs.convert(workdir, data=OWN, **overrides)


def results(workdir):
  return json.loads((workdir / 'report' / 'results.json').read_text())


def test_odd_names_odd_rows_and_a_damaged_float_network(workdir, capsys):
  rows = ['3', '[]', 'null', '{"stage": "ann2"', '\udce9']
  rows.append('{"stage": "ann2", "step": 1, "train_loss": NaN, "epoch": "x"}')
  text = '\n'.join(rows).encode('utf-8', 'surrogateescape')
  (workdir / 'metrics.jsonl').write_bytes(text)
  for file in workdir.glob('ann32/*/tree/**/*'):
    if file.is_file():
      file.write_bytes(b'damaged')
  run(workdir)
  back = results(workdir)
  assert tuple(back['classes']) == CLASSES
  assert back['float_accuracy'] is None
  assert back['rows'][0]['accuracy'] is not None
  said = capsys.readouterr().err
  assert 'goes without the float network' in said
  assert 'Traceback' not in said
  assert (workdir / 'report' / 'report.html').is_file()
  assert fs.load(workdir / 'snn2')[0].classes == CLASSES
  assert not (workdir / 'lock').exists()


@pytest.mark.parametrize('what', ['report', 'report/plots', 'report/report.md'])
def test_a_report_that_cannot_be_is_found_first(workdir, monkeypatch, what):
  monkeypatch.setattr(convert, 'convert_network', None)
  path = workdir / what
  path.parent.mkdir(exist_ok=True)
  path.mkdir() if path.suffix else path.write_text('')
  with pytest.raises(fs.UserError, match='cannot write the report') as caught:
    run(workdir)
  one_line(caught)


def test_a_kill_leaves_no_network_beside_a_report_of_another(
  workdir, monkeypatch
):
  run(workdir)
  assert results(workdir)['rows'][0]['steps'] == 3
  kept = fs.load(workdir / 'snn2')[0].neuron.steps

  def stop(*_, **__):
    raise KeyboardInterrupt

  # While it draws, all is as it was; while it saves, no page is there.
  for name, steps, has_pages in (
    ('_pages', 3, True),
    ('networks.save', 5, False),
  ):
    with monkeypatch.context() as patch:
      module = pages if name == '_pages' else convert
      patch.setattr(f'{module.__name__}.{name}', stop)
      with pytest.raises(KeyboardInterrupt):
        run(workdir, steps=5)
    assert results(workdir)['rows'][0]['steps'] == steps
    assert (workdir / 'report' / 'report.html').exists() == has_pages
    assert fs.load(workdir / 'snn2')[0].neuron.steps == kept == 3
  run(workdir, steps=5)
  assert fs.load(workdir / 'snn2')[0].neuron.steps == 5
  assert (workdir / 'report' / 'report.html').exists()


def test_a_network_that_is_tuned_by_biases_is_reported_and_kept(workdir):
  # With one step in place of three, rates are far from the levels.
  found = run(workdir, tune='bias', accept='always', steps=1)
  assert [row['tuned'] for row in found['rows']] == ['none', 'bias']
  (record,) = found['tuning']
  assert (record['schedule'], record['layer']) == ('bias', 'middle')
  assert 'bias' in (workdir / 'report' / 'report.md').read_text()
  (_, before), (_, after) = (
    fs.load(workdir / name) for name in ('ann2', 'snn2')
  )
  moved = [
    jax.tree_util.keystr(path)
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(before),
      jax.tree.leaves(after),
      strict=True,
    )
    if not np.array_equal(a, b)
  ]
  assert moved == ["['params']['middle']['synapse']['norm']['bias']"]
