"""Direct training of spiking networks: batch norm over batch and time."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import registered, tiny_resnet
from support.training import (
  after,
  assert_equal_bits,
  drawn_data,
  experiment,
  initial,
  run_stage,
  tiny,
  train_steps,
)

import fastsnn_jax as fs

SNN = fs.to_spiking(tiny())


@functools.cache
def trained():
  images = np.float32(drawn_data()['image'][:16]) / 255 * 4 - 2
  apply = jax.jit(functools.partial(SNN.apply, train=True))
  return images, *apply(initial(), images)


def moments(current):
  rows = np.asarray(current, np.float64).reshape(-1, current.shape[-1])
  return 0.1 * rows.mean(0), 0.9 + 0.1 * rows.var(0, ddof=1)


@pytest.mark.parametrize('name', ['stem', 'body'])
def test_statistics_are_those_of_batch_and_time(name):
  images, _, activations, statistics = trained()
  inputs = images  # at every step the same: they count once
  if name == 'body':
    spikes = np.asarray(activations['stem'])
    assert len(np.unique(spikes[:, 0] - spikes[:, 1])) > 1
    inputs = spikes.reshape(-1, *spikes.shape[2:])
  layer = {layer.name: layer for layer in SNN.layers}[name]
  plain = layer.synapse.clone(norm=False)
  params = dict(initial()['params'][name]['synapse'])
  params['bias'] = jnp.zeros(4)
  del params['norm']
  mean, var = moments(plain.apply({'params': params}, jnp.asarray(inputs)))
  norm = statistics[name]['synapse']['norm']
  np.testing.assert_allclose(norm['mean'], mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(norm['var'], var, rtol=1e-4)


@pytest.mark.once
def test_an_own_loop_learns_and_is_traced_once():
  images, *_ = trained()
  labels = drawn_data()['label'][:16]

  @jax.jit
  @chex.assert_max_traces(n=1)
  def step(variables):
    def loss_of(params):
      output, _, statistics = SNN.apply(
        {**variables, 'params': params}, images, train=True
      )
      log_p = jax.nn.log_softmax(output)
      return -jnp.mean(log_p[jnp.arange(16), labels]), statistics

    run = jax.value_and_grad(loss_of, has_aux=True)
    (loss, statistics), grads = run(variables['params'])
    move = functools.partial(jax.tree.map, lambda p, g: p - 0.05 * g)
    params = move(variables['params'], grads)
    return {'params': params, 'batch_stats': statistics}, loss

  variables, losses = initial(), []
  for _ in range(20):
    variables, loss = step(variables)
    losses.append(float(loss))
  assert losses[-1] < 0.7 * losses[0]
  old, new = (x['params']['stem'] for x in (initial(), variables))
  assert np.any(old['synapse']['kernel'] != new['synapse']['kernel'])
  assert old['theta'] != new['theta']


@pytest.mark.once
def test_a_stage_goes_on_to_the_same_bits(tmp_path):
  config = experiment(spiking=True, batch=25)
  run = functools.partial(run_stage, config=config, network=SNN)
  whole, _ = run(tmp_path / 'whole')
  with pytest.raises(SystemExit):
    run(tmp_path / 'cut', asked=after(2))
  resumed, _ = run(tmp_path / 'cut')
  assert_equal_bits(resumed, whole)


def test_the_loss_of_a_stage_falls():
  config = experiment(spiking=True, batch=25)
  _, reports = train_steps(SNN, initial(), config, 12)
  sums = [jax.device_get(report[0]) for report in reports]
  first, last = (sums[i]['loss'] / sums[i]['count'] for i in (1, -1))
  assert last < first


@pytest.mark.parametrize('bits', [2, 4])
def test_a_stage_may_be_spiking(bits):
  assert fs.Stage(bits, spiking=True).spiking


def test_a_float_stage_may_not():
  with pytest.raises(fs.UserError, match=r'stage.spiking=True.*32 bits'):
    fs.Stage(32, spiking=True)


@pytest.mark.once
def test_an_experiment_saves_the_quantised_twin(tmp_path):
  stage = fs.Stage(2, epochs=1, spiking=True)
  config = fs.Experiment('tiny_resnet', fs.Data(batch=16, crop=1), (stage,))
  data = {'train': drawn_data(), 'test': drawn_data(1)}
  with registered('tiny_resnet', tiny_resnet):
    result = fs.train(config, tmp_path, data=data)
    ann, variables = fs.load(tmp_path / 'ann2')
    assert ann.neuron == fs.QuantRelu(2, 6.0)
    own = fs.evaluate(fs.to_spiking(ann), variables, data['test'])
    assert result == {'ann2': own['accuracy']}
    assert fs.train(config, tmp_path, data=data) == result
