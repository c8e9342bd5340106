"""Planted faults are found, at the site where they were planted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax.errors import DivergesWarning
from fastsnn_jax.tracing.walk import Site


def table(weights=None):
  rows = (
    fs.Layer('stem', fs.Conv(4)),
    fs.Layer('conv', fs.Conv(4, weights=weights), ('stem',)),
    fs.Layer('sum', fs.Residual(fs.Conv(4)), ('conv', 'stem')),
    fs.Layer('dense', fs.Dense(6, norm=False), ('sum',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('dense',)),
  )
  return fs.Network(rows, fs.QuantRelu(2))


IMAGES = np.asarray(jax.random.normal(jax.random.key(0), (12, 6, 6, 1)))
VECTORS = np.asarray(jax.random.normal(jax.random.key(3), (24, 5)))


@functools.cache
def table_variables():
  """With biases, shifts and thetas that matter."""
  variables = table().init(jax.random.key(1), IMAGES)
  keys = iter(jax.random.split(jax.random.key(2), 99))

  def drawn(path, leaf):
    if path[-1].key in ('bias', 'mean'):
      return leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)
    return jnp.float32(1.7) if path[-1].key == 'theta' else leaf

  return jax.tree_util.tree_map_with_path(drawn, variables)


def model(params, x, bits=(2, 2, 2)):
  for name, b in zip(('a', 'b', 'c'), bits, strict=True):
    own = params[name]
    x = x @ own['kernel'] + own['bias']
    x = fs.quantize_activation(x, own['theta'], b, name=name)
  return x @ params['out']


other_bits = functools.partial(model, bits=(2, 3, 2))


@functools.cache
def function():
  keys = jax.random.split(jax.random.key(4), 8)

  def own(i):
    return {
      'kernel': jax.random.normal(keys[i], (5, 5)) / 2,
      'bias': jax.random.normal(keys[i + 3], (5,)) / 2,
      'theta': jnp.array(1.5),
    }

  params = {name: own(i) for i, name in enumerate('abc')}
  params['out'] = jax.random.normal(keys[7], (5, 3))
  return fs.from_function(model, params, VECTORS)


def changed(tree, path, change):
  """A tree with one leaf changed."""
  name, *rest = path
  part = tree[name]
  part = changed(part, rest, change) if rest else change(part)
  return {**tree, name: part}


def turned(kernel):
  return jnp.swapaxes(kernel, -1, -2)


TABLE_FAULTS = [
  ('stem', ('params', 'stem', 'theta'), lambda x: 1.5 * x),
  ('sum', ('params', 'sum', 'theta'), lambda x: 1.5 * x),
  ('dense', ('params', 'dense', 'synapse', 'bias'), jnp.zeros_like),
  (
    'conv',
    ('batch_stats', 'conv', 'synapse', 'norm', 'mean'),
    lambda x: x + 0.5,
  ),
  ('conv', ('params', 'conv', 'synapse', 'kernel'), turned),
  ('head', ('params', 'head', 'synapse', 'bias'), jnp.zeros_like),
]
FUNCTION_FAULTS = [
  ('b', ('params', 'b', 'theta'), lambda x: 1.5 * x),
  ('c', ('params', 'c', 'bias'), jnp.zeros_like),
  ('a', ('params', 'a', 'kernel'), turned),
  ('output', ('params', 'out'), lambda x: x[::-1]),
]


@pytest.mark.parametrize('mode', ['settled', 'signed'])
def test_a_table_names_the_row_of_each_planted_fault(mode):
  ann, variables = table(), table_variables()
  spiking = fs.to_spiking(ann, mode)
  diagnose = functools.partial(fs.diagnose, ann, variables, spiking)
  for name, path, change in TABLE_FAULTS:
    found = diagnose(changed(variables, path, change), IMAGES)
    assert found.first == name, path
    leaf = 'theta' if path[-1] == 'theta' else '/'.join(path[2:])
    assert leaf in ' '.join(found.words)
  sound = diagnose(variables, IMAGES)
  assert [site['own_differing'] for site in sound.sites] == [0] * 4
  if mode == 'settled':
    assert sound.first is None
    assert max(site['error'] for site in sound.sites) < 1e-5


@pytest.mark.parametrize('mode', ['settled', 'signed'])
def test_a_function_names_the_site_of_each_planted_fault(mode):
  ann, variables = function()
  spiking = fs.to_spiking(ann, mode)
  for name, path, change in FUNCTION_FAULTS:
    wrong = changed(variables, path, change)
    found = fs.diagnose(ann, variables, spiking, wrong, VECTORS)
    assert found.first == name, path
    leaf = 'theta' if path[-1] == 'theta' else '/'.join(path[1:])
    assert leaf in ' '.join(found.words)
  if mode == 'settled':
    sound = fs.diagnose(ann, variables, spiking, variables, VECTORS)
    assert sound.first is None


def test_levels_of_another_bit_width_are_found_in_both_kinds():
  ann, variables = function()
  layers = [Site(x.name, 7 if x.name == 'b' else 3) for x in ann.layers]
  twin = dataclasses.replace(ann, function=other_bits, layers=tuple(layers))
  spiking = fs.to_spiking(ann, 'settled')
  found = fs.diagnose(twin, variables, spiking, variables, VECTORS)
  assert found.first == 'b'
  assert '7 levels' in ' '.join(found.words)
  ann = table(fs.Apot(2))
  variables = ann.init(jax.random.key(1), IMAGES)
  spiking = fs.to_spiking(table(fs.Apot(3)), 'settled')
  found = fs.diagnose(ann, variables, spiking, variables, IMAGES)
  assert found.first == 'conv'
  assert 'operations are others' in ' '.join(found.words)


def test_a_steady_order_error_is_sequential_and_has_its_remedy():
  ann, variables = table(), table_variables()
  spiking = fs.to_spiking(ann, 'unsigned')
  found = fs.diagnose(ann, variables, spiking, variables, IMAGES)
  site = next(x for x in found.sites if x['name'] == found.first)
  assert site['own'] < 1e-5 < site['sequential']
  assert site['too_early'] > 0
  assert found.sites[0]['error'] < 1e-5  # the image comes evenly
  assert "'settled'" in str(found)
  short = fs.to_spiking(ann, 'settled', settle=1)
  late = fs.diagnose(ann, variables, short, variables, IMAGES)
  assert 'settling steps' in str(late)


def test_the_parts_are_those_of_the_equations():
  """One site behind another, by hand in NumPy."""
  ann, variables = function()
  spiking = fs.to_spiking(ann, 'unsigned')
  wrong = changed(variables, ('params', 'a', 'theta'), lambda x: 1.5 * x)
  found = fs.diagnose(ann, variables, spiking, wrong, VECTORS, batch=7)
  T, params = 3, jax.tree.map(np.asarray, variables['params'])

  def level(z, theta):
    return np.clip(np.floor(T * z / theta + 0.5), 0, T)

  def current(name, x):
    return x @ params[name]['kernel'] + params[name]['bias']

  def fire(currents, theta):
    voltage, spikes = theta / 2, []
    for z in currents:
      voltage = voltage + z
      spike = voltage >= theta
      voltage = voltage - theta * spike
      spikes.append(spike)
    return np.array(spikes)

  a, b = 1.5, 1.5
  right = level(current('a', VECTORS), a) / T * a
  train = fire([current('a', VECTORS)] * T, 1.5 * a) * 1.5 * a
  want = level(current('b', right), b)
  got = level(current('b', train.mean(0)), b)
  fired = fire([current('b', x) for x in train], b).sum(0)
  first, second, _ = found.sites
  off = np.abs(train.mean(0) - right) / a
  assert first['own'] == pytest.approx(off.mean(), rel=1e-5)
  assert first['largest'] == pytest.approx(off.max(), rel=1e-5)
  assert second['own'] == pytest.approx(0, abs=1e-6)
  assert second['inherited'] == pytest.approx(np.abs(got - want).mean() / T)
  assert second['sequential'] == pytest.approx(np.abs(fired - got).mean() / T)
  assert second['too_early'] == pytest.approx((fired > got).mean())
  assert second['too_late'] == pytest.approx((fired < got).mean())
  assert second['differing'] == pytest.approx((fired != want).mean())
  low = current('b', right) < 0
  assert second['clipped_low'] == pytest.approx(low.mean())


def test_what_are_no_twins_is_refused():
  ann, variables = table(), table_variables()
  with pytest.raises(fs.UserError, match='spiking twin'):
    fs.diagnose(ann, variables, ann, variables, IMAGES)
  spiking = fs.to_spiking(ann)
  with pytest.raises(fs.UserError, match='ann is spiking'):
    fs.diagnose(spiking, variables, spiking, variables, IMAGES)
  with pytest.raises(fs.UserError, match='0 images'):
    fs.diagnose(ann, variables, spiking, variables, IMAGES[:0])


def test_compare_warns_of_a_quiet_network_that_is_no_twin():
  rows = (
    fs.Layer('one', fs.Dense(8)),
    fs.Layer('two', fs.Dense(8), ('one',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('two',)),
  )
  fields = {'classes': tuple('abc'), 'mean': (0.5,), 'std': (0.25,)}
  ann = fs.Network(rows, fs.QuantRelu(2, 1.5), **fields)
  variables = ann.init(jax.random.key(0), IMAGES)
  raw = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 1))
  data = {'image': raw.astype(np.uint8), 'label': np.arange(9) % 3}
  settled = fs.to_spiking(ann, 'settled')
  path = ('batch_stats', 'two', 'synapse', 'norm', 'mean')
  wrong = changed(variables, path, lambda x: x + 0.5)
  compare = functools.partial(fs.compare, ann, variables, data=data, batch=9)
  with pytest.warns(DivergesWarning, match='wrong: .* two: fed with'):
    found = compare({'right': (settled, variables), 'wrong': (settled, wrong)})
  assert found['wrong']['diverges_at'] == 'two'
  assert 'norm/mean' in found['wrong']['warning']
  assert 'warning' not in found['right']
  other = dataclasses.replace(settled, mean=(0.4,))
  with pytest.warns(DivergesWarning, match='normalised by'):
    found = compare({'other': (other, variables)})
  assert found['other']['diverges_at'] == 'image'
