"""`fastsnn export`: a network of a workdir as a file."""

import dataclasses
import json

import numpy as np
import pytest
from support.deployment import answers, drawn, images_of, reference, session
from support.models import registered, tiny_resnet

import fastsnn_jax as fs
from fastsnn_jax.experiment import commands

CONFIG = fs.Experiment('tiny_resnet', fs.Data('digits'))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  directory = tmp_path_factory.mktemp('work')
  with registered('tiny_resnet', tiny_resnet):
    network = fs.build('tiny_resnet', bits=2, mean=(0.3,), std=(0.4,))
    variables = drawn(network, images_of(1, 8, 8, 1))
    about = {'experiment': dataclasses.asdict(CONFIG)}
    fs.save(directory / 'ann2', network, variables, **about)
    signed = fs.to_spiking(network)
    fs.save(directory / 'snn2', signed, variables, **about)
    yield directory, network, variables


def run(capsys, workdir, *arguments):
  commands.export_command(
    ['--workdir', str(workdir), '--bits', '2', *arguments]
  )
  return capsys.readouterr()


def test_the_quantised_network_of_a_workdir(workdir, capsys):
  directory, network, variables = workdir
  path = directory / 'export' / 'quantised_2.onnx'
  assert run(capsys, directory, '--format', 'onnx').out.strip() == str(path)
  images = images_of(4, 8, 8, 1)
  output = np.asarray(reference(network, variables, images)[0])
  got = answers(session(path), images=images)['output']
  atol = 1e-5 * np.abs(output).max()
  np.testing.assert_allclose(got, output, rtol=0, atol=atol)
  about = json.loads((directory / 'export/quantised_2.onnx.json').read_text())
  assert about['image_shape'] == [8, 8, 1]
  assert (about['mean'], about['std'], about['T']) == ([0.3], [0.4], 3)
  assert about['classes'] == [*map(str, range(10))]


def test_modes_and_paths(workdir, capsys, tmp_path):
  directory, *_ = workdir
  path = tmp_path / 'step.onnx'
  more = '--path', str(path), '--sites'
  run(capsys, directory, '--format', 'onnx', '--mode', 'kept', *more)
  about = json.loads((tmp_path / 'step.onnx.json').read_text())
  assert about['mode'] == 'signed'
  assert 'layer0' in {x['name'] for x in about['outputs']}
  told = run(capsys, directory, '--format', 'nir')
  assert (directory / 'export' / 'unsigned_2.nir').exists()
  assert told.err.count('warning: NIR') == 3


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--format', 'pb'), 'the formats are onnx'),
    (('--format', 'onnx', '--mode', 'x'), '--mode x: the modes are'),
    (('--format', 'onnx', '--mode', 'float'), 'float network has 32 bits'),
    (('--format', 'onnx', '--bits', '3'), 'ann3 holds no checkpoint'),
  ],
)
def test_refusals_are_one_line(workdir, arguments, message, capsys):
  with pytest.raises(fs.UserError, match=message) as told:
    run(capsys, workdir[0], *arguments)
  assert '\n' not in str(told.value)
