"""What version 0.1 wrote is loaded, trained on and converted.

tests/data/old_workdir was cut in the second epoch of its last stage;
old_workdir.json and old_workdir_ann2.npz have what the same version made of it.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from support.models import registered, tiny_resnet
from support.shared import ROOT

import fastsnn_jax as fs
from fastsnn_jax.checkpoint import store
from fastsnn_jax.experiment import commands
from fastsnn_jax.experiment.workdir import experiment_of
from fastsnn_jax.training.log import Log

DATA = ROOT / 'tests' / 'data'
OLD = DATA / 'old_workdir'


@pytest.fixture(scope='module', autouse=True)
def registered_tiny_resnet():
  with registered('tiny_resnet', tiny_resnet):
    yield


@pytest.fixture
def workdir(tmp_path):
  return shutil.copytree(OLD, tmp_path / 'workdir')


@pytest.fixture(scope='module')
def expected():
  return json.loads((DATA / 'old_workdir.json').read_text())


def test_its_networks_are_loaded(workdir):
  assert experiment_of(workdir).stages[-1] == fs.Stage(
    2, epochs=2, learning_rate=0.04
  )
  for bits in (32, 4):
    network, variables = fs.load(workdir / f'ann{bits}')
    assert (network.model, network.bits) == ('tiny_resnet', bits)
    assert network.classes == tuple('0123456789')
    assert ('theta' in variables['params']['layer0']) == (bits == 4)


def test_help_reads_no_array(workdir, monkeypatch, capsys):
  for directory in workdir.glob('ann*'):
    shutil.rmtree(directory / '0' / 'tree')
  with pytest.raises(SystemExit) as end:
    commands.convert_command(['--workdir', str(workdir), '--help'])
  assert not end.value.code
  assert '(default: parallel)' in capsys.readouterr().out  # its experiment's
  with pytest.raises(fs.UserError, match='cannot be read'):
    store.load(workdir / 'ann4')


@pytest.mark.once
def test_it_is_trained_on_to_the_same_network(workdir, expected):
  config = experiment_of(workdir)
  trained = fs.train(config, workdir)
  assert trained['ann4'] == pytest.approx(expected['trained']['ann4'])
  # 360 test images; a change of the last bit may choose another class of one.
  assert trained['ann2'] == pytest.approx(expected['trained']['ann2'], abs=0.01)
  _, variables = fs.load(workdir / 'ann2')
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  with np.load(DATA / 'old_workdir_ann2.npz') as wanted:
    assert len(leaves) == len(wanted.files)
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      np.testing.assert_allclose(
        leaf, wanted[name], rtol=1e-3, atol=1e-4, err_msg=name
      )
  epochs = [row['epoch'] for row in Log(workdir).rows()]
  assert epochs == [1, 1, 1, 2]


@pytest.mark.once
def test_it_is_converted_to_the_same_rows(workdir, expected):
  results = fs.convert(workdir, bits=4, explain=False)
  assert len(results['rows']) == len(expected['rows'])
  for row, wanted in zip(results['rows'], expected['rows'], strict=True):
    for name, value in wanted.items():
      if isinstance(value, str):
        assert row[name] == value
      else:
        np.testing.assert_allclose(
          row[name], value, rtol=1e-3, atol=0.003, err_msg=name
        )
  for record, wanted in zip(results['tuning'], expected['tuning'], strict=True):
    assert record['layer'] == wanted['layer']
    assert record['loss_after'] == pytest.approx(wanted['loss_after'], rel=1e-3)
