"""The schedule 'bias': what it adds, and to what, beside a NumPy oracle."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax.conversion import bias
from fastsnn_jax.nn.synapses import Synapse

pytestmark = pytest.mark.once

STEPS = 3
FIELDS = {'classes': tuple('abc'), 'mean': (0.5,), 'std': (0.25,)}


def table():
  """Dense rows: with a bias, with batch norm, and a sum of both kinds."""
  rows = (
    fs.Layer('first', fs.Dense(12, norm=False)),
    fs.Layer('second', fs.Dense(10), ('first',)),
    fs.Layer('third', fs.Residual(fs.Dense(10, norm=False)), ('second',) * 2),
    fs.Layer('head', fs.Dense(3, norm=False), ('third',)),
  )
  return fs.Network(rows, fs.QuantRelu(2, 1.5), **FIELDS)


def drawn(network, shape, seed=0):
  """Variables that are no trivial ones."""
  first = network.init(jax.random.key(seed), jnp.zeros((1, *shape)))
  random = np.random.default_rng(seed)

  def moved(path, x):
    fixed = path[-1].key in ('theta', 'kernel', 'weight_alpha')
    return x if fixed else x + random.uniform(0, 0.3, x.shape)

  return jax.tree.map(
    jnp.float32, jax.tree_util.tree_map_with_path(moved, first)
  )


# --- the oracle: the equations, one neuron after another ----------------------


def quantised(z, theta):
  return np.round(np.clip(z / theta, 0, 1) * STEPS) / STEPS * theta


def fired(currents, theta):
  """Signed spikes times theta, of [T, …] currents."""
  v, count, out = np.full(currents.shape[1:], theta / 2), 0, []
  for current in currents:
    v = v + current
    spike = (v >= theta).astype(float)
    v, count = v - theta * spike, count + spike
    back = (v <= -1e-3) & (count > 0)
    v, count = v + theta * back, count - back
    out.append((spike - back) * theta)
  return np.stack(out)


def current_of(own, name, x, skip=None):
  own = own['params'][name]['synapse'], own['batch_stats'].get(name)
  params, stats = own
  params = params.get('body', params)
  y = x @ params['kernel']
  if stats is None:
    y = y + params['bias']
  else:
    norm, running = params['norm'], stats['synapse']['norm']
    factor = norm['scale'] / np.sqrt(running['var'] + 1e-5)
    y = (y - running['mean']) * factor + norm['bias']
  return y if skip is None else y + skip


def oracle(variables, images, sweeps):
  """{layer: its bias} after so many sweeps."""
  own = jax.tree.map(lambda x: np.array(x, np.float64), variables)
  thetas = {k: p['theta'] for k, p in own['params'].items() if 'theta' in p}
  first = current_of(own, 'first', images)
  y1 = quantised(first, thetas['first'])
  y2 = quantised(current_of(own, 'second', y1), thetas['second'])
  y3 = quantised(current_of(own, 'third', y2, y2), thetas['third'])
  places = {
    'second': own['params']['second']['synapse']['norm'],
    'third': own['params']['third']['synapse']['body'],
  }
  for _ in range(sweeps):
    spikes = fired(np.stack([first] * STEPS), thetas['first'])
    for name, target in (('second', y2), ('third', y3)):
      run = functools.partial(
        lambda name, x: fired(
          current_of(own, name, x, x if name == 'third' else None), thetas[name]
        ),
        name,
        spikes,
      )
      gap = (target - run().sum(0) / STEPS).mean(0)
      places[name]['bias'] = places[name]['bias'] + gap
      spikes = run()
  return {name: place['bias'] for name, place in places.items()}


@pytest.mark.parametrize('sweeps', [1, 2])
def test_each_bias_gets_what_the_mean_rate_lacks(sweeps):
  ann = table()
  variables = drawn(ann, (8,))
  images = np.random.default_rng(1).normal(size=(2, 16, 8)).astype(np.float32)
  snn = fs.to_spiking(ann)
  tuned, images = variables, jnp.asarray(images)
  for _ in range(sweeps):
    tuned, errors = bias.corrected(ann, snn, variables, tuned, images)
  assert list(errors) == ['second', 'third']
  assert any(before != after for before, after in errors.values())
  wanted = oracle(variables, np.float64(images.reshape(32, 8)), sweeps)
  params = tuned['params']
  found = {
    'second': params['second']['synapse']['norm']['bias'],
    'third': params['third']['synapse']['body']['bias'],
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, atol=1e-5)
  old = variables['params']['second']['synapse']['norm']['bias']
  assert float(jnp.abs(found['second'] - old).max()) > 1e-2
  # Nothing else has moved.
  leaves = zip(jax.tree.leaves(tuned), jax.tree.leaves(variables), strict=True)
  assert sum(not np.array_equal(a, b) for a, b in leaves) == 2


# --- which parameter is a bias ------------------------------------------------


class Shifted(Synapse):
  """Affine, with parameters of other names: one of them is a bias."""

  affine = True

  @nn.compact
  def __call__(self, x, train=False):
    shape = x.shape[-1:]
    gain = self.param('a_gain', nn.initializers.ones, shape)
    level = self.param('level', nn.initializers.zeros, shape)
    return x * gain + level


def test_biases_are_found_by_what_they_do():
  pooled = fs.Chain((fs.Conv(4), fs.AveragePool(2)))
  skip = fs.Residual(fs.Conv(4), fs.Conv(4, kernel=1, padding=0))
  rows = (
    fs.Layer('stem', fs.Conv(4)),
    fs.Layer('plain', fs.Conv(4, norm=False), ('stem',)),
    fs.Layer('block', skip, ('plain', 'stem')),
    fs.Layer('own', Shifted(), ('block',)),
    fs.Layer('pooled', pooled, ('own',)),
    fs.Layer('bare', fs.AveragePool(2), ('pooled',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('bare',)),
  )
  ann = fs.Network(rows, fs.QuantRelu(2), **FIELDS)
  images = jnp.ones((1, 8, 8, 1))
  variables = drawn(ann, images.shape[1:])
  found = bias.biases(ann, variables, images)
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(variables['params'])
  ]
  assert {name: paths[x.leaf] for name, x in found.items()} == {
    'plain': 'plain/synapse/bias',
    'block': 'block/synapse/body/norm/bias',
    'own': 'own/synapse/level',
    'pooled': 'pooled/synapse/parts_0/norm/bias',
  }
  assert {x.axis for x in found.values()} == {3}


def test_a_layer_without_a_bias_is_left_and_said():
  rows = (
    fs.Layer('stem', fs.Conv(4)),
    fs.Layer('bare', fs.AveragePool(2), ('stem',)),
    fs.Layer('conv', fs.Conv(4), ('bare',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('conv',)),
  )
  ann = fs.Network(rows, fs.QuantRelu(2), **FIELDS)
  variables = drawn(ann, (4, 4, 1))
  random = np.random.default_rng(0)
  data = {'image': random.integers(0, 256, (10, 4, 4, 1)).astype(np.uint8)}
  _, records = fs.finetune(
    *(ann, fs.to_spiking(ann), variables, data),
    fs.Tuning('bias', batch=4, accept='always'),
  )
  assert [(r['layer'], r['accepted']) for r in records] == [
    ('bare', False),
    ('conv', True),
  ]
  assert records[0]['loss_before'] is None


@pytest.mark.parametrize('mode', ['signed', 'unsigned'])
def test_a_sweep_is_kept_where_held_out_outputs_come_nearer(mode):
  ann = table()
  snn = fs.to_spiking(ann, mode)
  images = np.random.default_rng(0).integers(0, 256, (40, 2, 4, 1), np.uint8)
  variables = drawn(ann, images.shape[1:])

  def tuned_by(images, accept):
    settings = fs.Tuning('bias', batch=12, accept=accept)
    return fs.finetune(ann, snn, variables, {'image': images}, settings)

  def distance(own):
    shown = (images[36:] / 255 - 0.5) / 0.25
    wanted, _ = ann.apply(variables, jnp.float32(shown))
    found, _ = snn.apply(own, jnp.float32(shown))
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())

  always, _ = tuned_by(images[:36], 'always')
  found, records = tuned_by(images, 'better')
  nearer = distance(always) < distance(variables)
  wanted = always if nearer else variables
  assert [r['accepted'] for r in records] == [nearer, nearer]
  assert records[0]['distance'] == pytest.approx(distance(always), rel=1e-4)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_network_that_settles_is_refused():
  ann = table()
  variables = ann.init(jax.random.key(0), jnp.zeros((1, 8)))
  snn = fs.to_spiking(ann, 'settled')
  data = {'image': np.zeros((4, 2, 4, 1), np.uint8)}
  with pytest.raises(fs.UserError, match="mode 'signed'"):
    fs.finetune(ann, snn, variables, data, fs.Tuning('bias'))


def test_a_vector_that_two_sites_share_is_no_bias_of_either():
  def model(params, x):
    x = x.reshape(len(x), -1) @ params['first']
    x = fs.quantize_activation(x + params['shared'], 1.0, 2, name='one')
    x = fs.quantize_activation(x + params['shared'], 1.0, 2, name='two')
    x = x @ params['last'] + params['bias'][None]
    return fs.quantize_activation(x, 1.0, 2, name='three')

  params = {
    'first': jnp.ones((4, 5)),
    'shared': jnp.ones(5),
    'last': jnp.ones((5, 3)),
    'bias': jnp.zeros(3),
  }
  images = jnp.ones((2, 2, 2, 1))
  network, variables = fs.from_function(model, params, images)
  found = bias.biases(network, variables, images)
  leaves = jax.tree.leaves(params)
  assert found.keys() == {'three'}
  assert leaves[found['three'].leaf] is params['bias']


def test_channels_of_a_function_may_stand_first():
  """As other frameworks' convolutions have them; half of them are corrected."""

  def model(params, x):
    x = jnp.moveaxis(x, -1, 1)
    x = jnp.einsum('bchw,cd->bdhw', x, params['a'])
    x = fs.quantize_activation(x, 1.0, 2, name='one')
    x = jnp.einsum('bchw,cd->bdhw', x, params['b'])
    x = fs.quantize_activation(
      x + params['bias'][:, None, None], 1.0, 2, name='two'
    )
    return x.mean((2, 3))

  random = np.random.default_rng(3)
  params = {
    'a': jnp.float32(random.normal(size=(1, 6))),
    'b': jnp.float32(random.normal(size=(6, 3))),
    'bias': jnp.full(3, 0.1),
  }
  images = jnp.float32(random.normal(size=(8, 4, 4, 1)))
  network, variables = fs.from_function(model, params, images)
  snn = fs.to_spiking(network)
  assert bias.biases(network, variables, images)['two'].axis == 1
  tuned, errors = bias.corrected(
    network, snn, variables, variables, images[None]
  )
  _, targets = network.apply(variables, images)
  _, spikes = snn.apply(variables, images)
  error = np.asarray(targets['two'] - spikes['two'].sum(1) / STEPS)
  assert list(errors) == ['two']
  assert errors['two'][0] == pytest.approx(np.square(error).mean(), rel=1e-5)
  np.testing.assert_allclose(
    tuned['params']['bias'], 0.1 + error.mean((0, 2, 3)), atol=1e-5
  )
