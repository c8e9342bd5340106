"""Answers after every step, and early exits, against the steps themselves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.evaluation.exits import run_until_sure

CLASSES = tuple('abcd')
FIELDS = {'classes': CLASSES, 'mean': (0.5,), 'std': (0.25,)}
RAW = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 1)).astype(np.uint8)
IMAGES = jnp.asarray((RAW / 255.0 - 0.5) / 0.25, jnp.float32)
DATA = {'image': RAW, 'label': np.arange(12) % 4}


def rows(pool=None):
  second = fs.Conv(6) if pool is None else fs.Chain((pool, fs.Conv(6)))
  return (
    fs.Layer('stem', fs.Conv(6, weights=fs.EightBit())),
    fs.Layer('conv', second, ('stem',)),
    fs.Layer('sum', fs.Residual(fs.Conv(6)), ('conv', 'conv')),
    fs.Layer('head', fs.Dense(4, norm=False), ('sum',)),
  )


@functools.cache
def ann(pooled=False):
  table = rows(fs.MaxPool() if pooled else None)
  network = fs.Network(table, fs.QuantRelu(2, 2.0), bits=2, **FIELDS)
  return network, network.init(jax.random.key(0), IMAGES)


def model(params, x):
  x = x.reshape(len(x), -1) @ params['a']
  x = fs.quantize_activation(x, 2.0, 2, name='a')
  x = fs.quantize_activation(x @ params['b'], 2.0, 2, name='b')
  return 3 * x @ params['c'] + jnp.arange(4) / 9


@functools.cache
def function():
  keys = jax.random.split(jax.random.key(1), 3)
  shapes = {'a': (36, 8), 'b': (8, 8), 'c': (8, 4)}
  params = {
    name: jax.random.normal(key, shape) / shape[0] ** 0.5
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  return fs.from_function(model, params, IMAGES, **FIELDS)


CASES = {
  'signed': (ann, 'signed', {}),
  'settled': (ann, 'settled', {'settle': 5}),
  'until quiet': (ann, 'settled', {}),
  'pooled': (functools.partial(ann, True), 'settled', {'settle': 5}),
  'function': (function, 'settled', {'settle': 5}),
}


def spiking(case):
  make, mode, settings = CASES[case]
  network, variables = make()
  return fs.to_spiking(network, mode, **settings), variables


def margins(outputs):
  """Of probabilities, in NumPy."""
  shares = np.exp(outputs - outputs.max(-1, keepdims=True))
  shares = np.sort(shares / shares.sum(-1, keepdims=True), -1)
  return shares[..., -1] - shares[..., -2]


@pytest.mark.parametrize('case', CASES)
def test_exits_are_those_of_the_answers_after_every_step(case):
  network, variables = spiking(case)
  outputs = np.asarray(fs.anytime(network, variables, IMAGES))
  neuron = network.neuron
  assert outputs.shape == (12, neuron.total_steps, 4)
  full, _ = network.apply(variables, IMAGES)
  np.testing.assert_allclose(outputs[:, -1], full, atol=1e-5)
  margin = tasks.for_network(network).margin
  for threshold in (0.0, 0.3, 1.0):
    found = run_until_sure(network, variables, IMAGES, margin, threshold)
    over = margins(outputs) > threshold
    at = np.where(over.any(1), over.argmax(1), outputs.shape[1] - 1)
    early = np.full(12, True)
    if network.until_quiet:  # its last entry is for many steps
      early = over[:, :-1].any(1)
      assert (found.steps[~early] >= neuron.steps).all()
    np.testing.assert_array_equal(found.steps[early], at[early] + 1)
    want = outputs[np.arange(12), at]
    np.testing.assert_allclose(found.output, want, atol=1e-5)
    assert found.ran >= max(found.steps)
    if threshold == 0:
      assert found.ran < network.most_steps  # less was computed
    if threshold == 1:
      np.testing.assert_allclose(found.output, full, atol=1e-5)


@pytest.mark.parametrize('case', ['until quiet', 'function'])
def test_classify_at_threshold_1_is_the_full_run(case):
  network, variables = spiking(case)
  full = fs.classify(network, variables, RAW)
  found = fs.classify(network, variables, RAW, exit_margin=1.0)
  np.testing.assert_array_equal(found, full)
  assert fs.classify(network, variables, RAW[0], exit_margin=0.0).shape == ()


def test_the_curve_is_monotone_and_counted_by_hand():
  network, variables = spiking('settled')
  grid = (0.0, 0.1, 0.2, 0.4, 0.8, 1.0)
  curve = fs.exit_curve(network, variables, DATA, margins=grid, batch=5)
  assert curve['steps'] == sorted(curve['steps'])
  assert curve['steps'][-1] == curve['full_steps'] == network.most_steps
  outputs = np.asarray(fs.anytime(network, variables, IMAGES))
  for i, threshold in enumerate(grid):
    over = margins(outputs) > threshold
    at = np.where(over.any(1), over.argmax(1), outputs.shape[1] - 1)
    right = outputs[np.arange(12), at].argmax(-1) == DATA['label']
    assert curve['accuracy'][i] == pytest.approx(right.mean())
    assert curve['steps'][i] == pytest.approx((at + 1).mean())
  chosen = grid.index(curve['chosen'])
  assert min(curve['accuracy'][chosen:]) >= curve['full'] - 0.001
  if chosen:
    assert curve['accuracy'][chosen - 1] < curve['full'] - 0.001


def test_until_quiet_counts_the_steps_of_each_image():
  network, variables = spiking('until quiet')
  curve = fs.exit_curve(network, variables, DATA, margins=(1.0,))
  steps = np.maximum(network.settle(variables, IMAGES).steps, 3)
  assert curve['steps'] == [pytest.approx(steps.mean())]


def test_what_has_no_margin_or_no_steps_is_refused():
  network, variables = ann()
  with pytest.raises(fs.UserError, match='spiking'):
    fs.anytime(network, variables, IMAGES)
  with pytest.raises(fs.UserError, match='spiking network has steps'):
    fs.classify(network, variables, RAW, exit_margin=0.5)
  spiking = fs.to_spiking(network)
  with pytest.raises(fs.UserError, match='from 0 to 1'):
    fs.classify(spiking, variables, RAW, exit_margin=1.5)
  with pytest.raises(fs.UserError, match='must rise'):
    fs.exit_curve(spiking, variables, DATA, margins=(0.5, 0.1))
  boxes = dataclasses.replace(spiking, task='segmentation')
  with pytest.raises(fs.UserError, match='no margin'):
    fs.exit_curve(boxes, variables, DATA)


def test_an_image_of_nan_has_no_answer():
  network, variables = spiking('until quiet')
  images = IMAGES[:3].at[1, 2, 2, 0].set(jnp.nan)
  margin = tasks.for_network(network).margin
  found = run_until_sure(network, variables, images, margin, 0.9)
  assert np.isnan(found.output[1]).all()
  assert np.isfinite(found.output[jnp.array([0, 2])]).all()
