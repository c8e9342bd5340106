"""A batch sharded over eight devices stays where it is."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fastsnn_jax as fs
from fastsnn_jax import distributed
from fastsnn_jax.evaluation.batches import applied

pytestmark = pytest.mark.once

COLLECTIVES = re.compile(
  r'all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|'
  r'collective-broadcast'
)
MODES = {
  'ann': lambda network: network,
  'signed': fs.to_spiking,
  'settled': lambda network: fs.to_spiking(network, 'settled', settle=2),
  'until quiet': lambda network: fs.to_spiking(network, 'settled'),
}


@pytest.fixture(scope='module')
def mesh():
  assert jax.device_count() == 8
  return jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))


@pytest.fixture(scope='module')
def case():
  """A residual network with strides and pooling, and normalised images."""
  network = fs.build('small_resnet8', bits=2)
  images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
  random = np.random.default_rng(0)

  def leaf(path, like):
    if path[-1].key == 'kernel':
      return random.normal(0, 0.2, like.shape).astype(np.float32)
    return random.uniform(0.8, 1.2, like.shape).astype(np.float32)

  shapes = jax.eval_shape(network.init, jax.random.key(1), images)
  return network, jax.tree_util.tree_map_with_path(leaf, shapes), images


@pytest.mark.parametrize('mode', MODES)
def test_evaluation_needs_no_collective(mesh, case, mode):
  network, variables, images = case
  network = MODES[mode](network)
  expected, expected_activations = jax.jit(network.apply)(variables, images)
  by_image = NamedSharding(mesh, PartitionSpec('data'))
  everywhere = NamedSharding(mesh, PartitionSpec())
  arguments = (
    jax.device_put(variables, everywhere),
    jax.device_put(images, by_image),
  )
  run = functools.partial(applied, network)  # as evaluation does
  compiled = jax.jit(run).lower(*arguments).compile()
  assert not COLLECTIVES.findall(compiled.as_text())
  output, activations = compiled(*arguments)
  for name, leaf in {'output': output, **activations}.items():
    assert leaf.sharding.is_equivalent_to(by_image, leaf.ndim), name
  # The same codes, but for ties that another order of summation decides.
  for name, spikes in activations.items():
    assert np.mean(np.abs(spikes - expected_activations[name]) > 1e-3) < 1e-3
  close = np.isclose(output, expected, rtol=1e-4, atol=1e-4).all(1)
  assert close.sum() >= 15
  assert np.std(expected) > 0.01


def test_training_reduces_only_statistics(mesh, case):
  # The counterpart: were there no collective here, the test above would not
  # see any either, and batch norm would not be that of the whole batch.
  network, variables, images = case
  by_image = NamedSharding(mesh, PartitionSpec('data'))

  @jax.jit
  def statistics(variables, images):
    stem = fs.Network(network.layers[:2], network.neuron)
    return stem.apply(variables, images, train=True)[2]

  expected = statistics(variables, images)
  sharded = jax.device_put(images, by_image)
  compiled = statistics.lower(variables, sharded).compile()
  assert set(COLLECTIVES.findall(compiled.as_text())) == {'all-reduce'}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    statistics(variables, sharded),
    expected,
  )


def test_a_copy_shares_no_buffer_with_what_was_given():
  given = jnp.arange(3.0)
  mine, theirs = (
    {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
    for x in (given, distributed.everywhere(given))
  )
  assert len(theirs) == 8
  assert not mine & theirs


def convolved(params, images):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  z = jax.lax.conv_general_dilated(
    images, params['kernel'], (1, 1), 'SAME', dimension_numbers=numbers
  )
  y = fs.quantize_activation(z, params['theta'], 2, name='body')
  pooled = jax.lax.reduce_window(
    y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
  )
  return pooled.mean((1, 2)) @ params['head']


def small(kind):
  """A table or a function, its variables and images, on one device."""
  keys = jax.random.split(jax.random.key(0), 3)
  images = jax.random.normal(keys[0], (16, 4, 4, 1))
  if kind == 'table':
    head = fs.Chain((fs.GlobalAveragePool(), fs.Dense(3, norm=False)))
    rows = (fs.Layer('body', fs.Conv(4)), fs.Layer('head', head, ('body',)))
    network = fs.Network(rows, fs.QuantRelu(2))
    return network, network.init(keys[1], images), images
  params = {
    'kernel': jax.random.normal(keys[1], (3, 3, 1, 4)),
    'head': jax.random.normal(keys[2], (4, 3)),
    'theta': jnp.float32(2),
  }
  return *fs.from_function(convolved, params, images), images


@pytest.mark.parametrize('whole', [True, False], ids=['on mesh', 'elsewhere'])
@pytest.mark.parametrize(
  ('kind', 'mode'),
  [
    ('table', 'ann'),
    ('table', 'signed'),
    ('table', 'until quiet'),
    ('function', 'signed'),
    ('function', 'settled'),
  ],
)
def test_gradients_on_a_mesh_of_explicit_axes(kind, mode, whole):
  network, variables, images = small(kind)
  network = MODES[mode](network)

  @jax.jit
  def gradient(variables, images):
    def loss(variables):
      return jnp.square(network.apply(variables, images)[0]).mean()

    return jax.grad(loss)(variables)

  expected = gradient(variables, images)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  images = jax.device_put(images, NamedSharding(mesh, PartitionSpec('data')))
  if whole:
    everywhere = NamedSharding(mesh, PartitionSpec())
    variables = jax.device_put(variables, everywhere)
  for context in (contextlib.nullcontext(), jax.set_mesh(mesh)):
    with context:
      found = gradient(variables, images)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      found,
      expected,
    )


@pytest.mark.parametrize('mode', ['ann', 'signed', 'settled'])
def test_evaluation_of_a_function_needs_no_collective(mesh, mode):
  network, variables, images = small('function')
  network = MODES[mode](network)
  expected, _ = jax.jit(network.apply)(variables, images)
  by_image = NamedSharding(mesh, PartitionSpec('data'))
  arguments = (
    jax.device_put(variables, NamedSharding(mesh, PartitionSpec())),
    jax.device_put(images, by_image),
  )
  run = functools.partial(applied, network)
  compiled = jax.jit(run).lower(*arguments).compile()
  assert not COLLECTIVES.findall(compiled.as_text())
  output, activations = compiled(*arguments)
  for name, leaf in {'output': output, **activations}.items():
    assert leaf.sharding.is_equivalent_to(by_image, leaf.ndim), name
  np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
