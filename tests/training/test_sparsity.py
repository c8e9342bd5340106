"""The penalty on mean levels, and what it does to the firing rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training import initial, tiny

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.training.gradients import gradients, mean_levels

IMAGES = jax.random.normal(jax.random.key(0), (8, 4, 4, 1))


@pytest.mark.parametrize('mode', [None, 'signed'])
def test_levels_are_counts_over_t(mode):
  network, variables = tiny(), initial()
  network = fs.to_spiking(network, mode) if mode else network
  _, activations = jax.jit(network.apply)(variables, IMAGES)
  found = mean_levels(network, variables, activations)
  want = 0
  for name, x in activations.items():
    counts = np.asarray(x) / np.asarray(variables['params'][name]['theta'])
    want += counts.mean()
  assert found == pytest.approx(want, rel=1e-5)
  assert 0 < found < len(activations)


def test_training_with_the_penalty_fires_less():
  network, variables = tiny(), initial()
  task = tasks.for_network(network)
  batch = {
    'image': IMAGES,
    'label': jnp.arange(8) % 4,
    'mask': jnp.ones(8),
  }

  @jax.jit
  def step(params, sparsity):
    tree = {**variables, 'params': params}
    grads, sums, _ = gradients(
      tree, batch, network=network, task=task, sparsity=1.0
    )
    plain, same, _ = gradients(tree, batch, network=network, task=task)
    part = jax.tree.map(lambda a, b: a - b, grads, plain)  # of the penalty
    mixed = jax.tree.map(lambda a, b: a + sparsity * b, plain, part)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, params, mixed)
    return moved, sums['loss'] - same['loss']

  def trained(sparsity):
    params = variables['params']
    for _ in range(10):
      params, difference = step(params, sparsity)
      assert difference == 0  # the sums tell the task's own loss
    tree = {**variables, 'params': params}
    _, activations, _ = network.apply(tree, IMAGES, train=True)
    return float(mean_levels(network, tree, activations))

  assert trained(20.0) < 0.8 * trained(0.0)


def test_a_float_stage_has_no_levels():
  with pytest.raises(fs.UserError, match=r'sparsity=0\.1'):
    fs.Stage(32, sparsity=0.1)
  with pytest.raises(fs.UserError, match='at least 0'):
    fs.Stage(2, sparsity=-1.0)
  assert fs.Stage(2, sparsity=0.1).sparsity == 0.1
