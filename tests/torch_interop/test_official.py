"""An official checkpoint through the whole conversion, in one command."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.shared import ROOT

import fastsnn_jax as fs
from fastsnn_jax.experiment import commands, recipes
from fastsnn_jax.experiment import import_official as official
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Stage

pytestmark = pytest.mark.once


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """A small network for the digits, under the official keys."""
  network = fs.build('small_resnet8', 2)
  variables = network.init(jax.random.key(3), jnp.ones((1, 8, 8, 1)))
  path = tmp_path_factory.mktemp('official') / 'mine.npz'
  state = fs.save_torch(variables, 'small_resnet8', 2)
  np.savez(path, **{f'module.{key}': value for key, value in state.items()})
  return path, variables


def convert(*arguments):
  commands.convert_command([str(argument) for argument in arguments])


def test_a_checkpoint_goes_through_the_whole_conversion(
  checkpoint, tmp_path, capsys
):
  path, variables = checkpoint
  workdir = tmp_path / 'run'
  convert(
    *('--from-torch', path, '--model', 'small_resnet8', '--bits', 2),
    *('--workdir', workdir, '--data', 'digits'),
    *('--mode', 'signed', 'settled', '--tune', 'parallel'),
    *('--tune-images', 200, '--accept', 'always', '--no-explain'),
  )
  network, found = fs.load(workdir / 'ann2')
  assert (network.model, network.bits) == ('small_resnet8', 2)
  jax.tree.map(np.testing.assert_array_equal, found, variables)
  spiking, _ = fs.load(workdir / 'snn2')
  assert spiking.neuron.steps == 3
  results = json.loads((workdir / 'report' / 'results.json').read_text())
  assert [(row['mode'], row['tuned']) for row in results['rows']] == [
    ('signed', 'none'),
    ('settled', 'none'),
    ('signed', 'parallel'),
  ]
  settled = results['rows'][1]
  assert settled['accuracy'] == settled['ann_accuracy']
  assert results['settings']['imported from'] == 'mine.npz'
  assert not any(name.startswith('stage') for name in results['settings'])
  assert 'report.html' in capsys.readouterr().out
  # The workdir is one like any other now.
  less = '--mode', 'settled', '--tune', 'none', '--no-explain'
  convert('--workdir', workdir, *less)
  # And a second import of the same model takes the place of the first.
  official.adopt(path, 'small_resnet8', 2, workdir, data_name='digits')


def test_the_width_of_an_official_network_need_not_be_named_again(tmp_path):
  network = fs.build('cifar_resnet20', 3, mean=(0.5,) * 3, std=(0.25,) * 3)
  variables = network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  config = recipes.recommended('cifar_resnet20', stages=(Stage(3),))
  fs.save(
    tmp_path / 'ann3',
    network,
    variables,
    experiment=dataclasses.asdict(config),
  )
  settings = files.experiment_of(tmp_path).convert
  assert files.trained_bits(tmp_path, settings.bits) == (3,)


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    ((), '--model NAME and --bits N'),
    (('--bits', 2), '--model NAME and --bits N'),
    (('--model', 'small_resnet8'), '--model NAME and --bits N'),
    (('--model', 'small_resnet8', '--bits', 2, 3), 'one bit width'),
    (('--model', 'small_resnet8', '--bits', 32), 'bits=32'),
    (('--model', 'resnet', '--bits', 2), "model='resnet'.*small_resnet8"),
    (('--model', 'cifar_resnet20', '--bits', 2), "key '.*' is missing"),
    (
      ('--model', 'small_resnet8', '--bits', 2, '--data', 'nothing'),
      "data set 'nothing' needs the path",
    ),
  ],
)
def test_a_wrong_command_line_says_what_is_needed(
  checkpoint, tmp_path, arguments, says
):
  with pytest.raises(fs.UserError, match=says):
    convert(
      '--from-torch', checkpoint[0], '--workdir', tmp_path / 'w', *arguments
    )
  assert not (tmp_path / 'w').exists()


def test_model_and_data_belong_to_an_import(tmp_path):
  network = fs.build('small_resnet8', 2)
  variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  path = tmp_path / 'x.npz'
  fs.save_torch(variables, 'small_resnet8', 2, path)
  official.adopt(path, 'small_resnet8', 2, tmp_path / 'w', data_name='digits')
  with pytest.raises(fs.UserError, match='belong to --from-torch'):
    convert('--workdir', tmp_path / 'w', '--model', 'small_resnet8')
  with pytest.raises(fs.UserError, match='belong to --from-torch'):
    convert('--workdir', tmp_path / 'w', '--size', '9')


def test_a_network_for_other_data_is_refused(tmp_path):
  network = fs.build('small_resnet8', 2, classes=7)
  variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  seven = fs.save_torch(variables, 'small_resnet8', 2)
  with pytest.raises(fs.UserError, match=r'\(.*7,?\), but digits \(10 classes'):
    official.adopt(
      _file(tmp_path / 'seven.npz', seven),
      'small_resnet8',
      2,
      tmp_path / 'w',
      data_name='digits',
    )
  network = fs.build('small_resnet8', 2)
  variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
  colour = fs.save_torch(variables, 'small_resnet8', 2)
  with pytest.raises(
    fs.UserError, match=r'kernel has shape .*images \(8, 8, 1\)'
  ):
    official.adopt(
      _file(tmp_path / 'colour.npz', colour),
      'small_resnet8',
      2,
      tmp_path / 'w',
      data_name='digits',
    )
  assert not (tmp_path / 'w').exists()


def _file(path, state):
  np.savez(path, **state)
  return path


def test_a_network_trained_in_the_workdir_is_not_written_over(
  checkpoint, tmp_path
):
  path, variables = checkpoint
  network = fs.build('small_resnet8', 3)
  fs.save(tmp_path / 'ann3', network, variables, dataset='digits')
  with pytest.raises(fs.UserError, match='a network trained there on digits'):
    official.adopt(path, 'small_resnet8', 2, tmp_path, data_name='digits')
  assert not (tmp_path / 'ann2').exists()


def test_a_missing_file_is_one_line_and_code_2(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, ROOT / 'convert.py', '--from-torch', 'none.npz'),
      *('--model', 'cifar_resnet20', '--bits', '2', '--workdir', 'w'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == 'error: none.npz: no such file\n'
  assert not list(tmp_path.iterdir())
