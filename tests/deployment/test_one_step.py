"""The graph of one step gives our spikes, one by one."""

import pathlib
import re

import jax
import numpy as np
import pytest
from support.deployment import (
  THETA,
  answers,
  drawn,
  images_of,
  reference,
  session,
)
from support.models import tiny_resnet

import fastsnn_jax as fs

SHAPE = 8, 8, 2


@pytest.fixture(scope='module')
def trained():
  *rows, head = tiny_resnet(2, 4)
  rows.append(fs.Layer('pooled', fs.AveragePool(3, 1, 1), (rows[-1].name,)))
  head = fs.Layer('head', head.synapse, ('pooled',))
  network = fs.Network((*rows, head), fs.QuantRelu(2))
  images = images_of(100, *SHAPE)
  return network, drawn(network, images), images


def simulated(path, about, images):
  """What each step answers, until T, or until nothing fires if it settles."""
  runner, steps = session(path), []
  states = {
    x['input']: np.full((len(images), *x['shape'][1:]), x['initial'], 'f4')
    for x in about['states']
  }
  states = {
    x['input']: states[x['input']].astype(x['dtype']) for x in about['states']
  }
  settles = about['neuron']['settle']
  while len(steps) < about['T'] or (settles and steps[-1]['fired'].any()):
    found = answers(
      runner, images=images, step=np.array(len(steps) + 1), **states
    )
    states = {x['input']: found[x['output']] for x in about['states']}
    steps.append(found)
  return steps


@pytest.mark.parametrize('mode', ['unsigned', 'signed', 'settled'])
def test_spikes_are_ours_one_by_one(mode, trained, tmp_path):
  network, variables, images = trained
  spiking = fs.to_spiking(network, mode)
  path = tmp_path / 'step.onnx'
  about = fs.export(
    *(spiking, variables, path),
    **{'format': 'onnx', 'image_shape': SHAPE, 'sites': True},
  )
  output, activations = reference(spiking, variables, images)
  steps = simulated(path, about, images)
  fired = 0
  for name, activity in activations.items():
    ours = np.round(np.asarray(activity) / THETA)
    spikes = np.stack([x[name] for x in steps], 1)
    np.testing.assert_array_equal(spikes[:, :3], ours[:, :3])
    late = ours[:, 3:].sum(1)  # all that is fired until quiet is one entry
    np.testing.assert_array_equal(spikes[:, 3:].sum(1, dtype=int), late)
    fired += np.abs(spikes).reshape(len(images), len(steps), -1).sum(-1)
  assert spikes.min() == (0 if mode == 'unsigned' else -1)
  np.testing.assert_array_equal(np.stack([x['fired'] for x in steps], 1), fired)
  scale = float(np.abs(output).max())
  last = steps[-1]['output']
  np.testing.assert_allclose(last, output, rtol=0, atol=1e-5 * scale)
  if mode != 'settled':
    each = jax.jit(spiking.output_over_time)(variables, activations)
    got = np.stack([x['output'] for x in steps], 1)
    np.testing.assert_allclose(got, each, rtol=0, atol=1e-5 * scale)


def test_settled_ends_on_the_quantised_levels(trained, tmp_path):
  network, variables, images = trained
  path = tmp_path / 'step.onnx'
  spiking = fs.to_spiking(network, 'settled')
  about = fs.export(spiking, variables, path, format='onnx', image_shape=SHAPE)
  counts = simulated(path, about, images)[-1]
  _, activations = reference(network, variables, images)
  for name, activity in activations.items():
    level = np.round(np.asarray(activity) / (THETA / 3))
    equal = counts[f'count/{name}/next'] == level
    assert equal.mean() > 0.9999, name


def test_the_loop_of_the_page_runs(trained, tmp_path, monkeypatch):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'deployment.md'
  blocks = re.findall(r'```python\n(.*?)```', page.read_text(), re.S)
  (code,) = (x for x in blocks if 'settled_2.onnx' in x)
  network, variables, images = trained
  spiking = fs.to_spiking(network, 'settled')
  monkeypatch.chdir(tmp_path)
  fs.export(
    *(spiking, variables, 'settled_2.onnx'),
    **{'format': 'onnx', 'image_shape': SHAPE},
  )
  names = {'images': np.asarray(images)}
  exec(code, names)
  output = np.asarray(reference(spiking, variables, images)[0])
  scale = np.abs(output).max()
  np.testing.assert_allclose(names['answer'], output, rtol=0, atol=1e-5 * scale)
