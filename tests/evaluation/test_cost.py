"""Costs against loops over every connection, in NumPy."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.convolution import loops

import fastsnn_jax as fs
from fastsnn_jax.evaluation.costs.cost import neurobench

DEFAULT = {'stride': 1, 'padding': 1, 'dilation': 1, 'groups': 1}
SETTINGS = {  # of the convolutions of `table`
  'stem': {'stride': 2},
  'dilated': {'dilation': 2, 'padding': 2, 'groups': 2},
  'body': {'padding': 'VALID'},
  'shortcut': {'kernel': 1, 'padding': 0, 'stride': 2},
}
STEPS = 3


def conv(name, features, weights=None, **more):
  return fs.Conv(features, weights=weights, **SETTINGS.get(name, {}), **more)


def table():
  """Strides, padding, dilation, groups, a residual, a concat, dense rows."""
  ternary = fs.Apot(2)
  rows = (
    fs.Layer('stem', conv('stem', 4, fs.EightBit())),
    fs.Layer('dilated', conv('dilated', 4, ternary), ('stem',)),
    fs.Layer(
      'sum',
      fs.Residual(conv('body', 4, ternary), conv('shortcut', 4, ternary)),
      ('dilated', 'stem'),
    ),
    fs.Layer('cat', fs.Concat((None, fs.SpaceToDepth(2))), ('sum', 'stem')),
    fs.Layer('dense', fs.Dense(5, weights=ternary, norm=False), ('cat',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('dense',)),
  )
  return fs.Network(rows, fs.QuantRelu(2, 2.0), bits=2)


IMAGES = np.asarray(jax.random.normal(jax.random.key(0), (3, 8, 8, 2)))


@functools.cache
def variables():
  tree = table().init(jax.random.key(1), IMAGES)
  return jax.tree.map(lambda x: x, tree)


def settings(name):
  mine = {**DEFAULT, **SETTINGS.get(name, {})}
  return {k: v for k, v in mine.items() if k != 'kernel'}


def kernels():
  params = variables()['params']

  def ternary(own):
    return np.asarray(fs.quantize_weight(own['kernel'], own['weight_alpha'], 2))

  both = params['sum']['synapse']
  return {
    'stem': np.asarray(
      fs.quantize_weight_8bit(params['stem']['synapse']['kernel'])
    ),
    'dilated': ternary(params['dilated']['synapse']),
    'body': ternary(both['body']),
    'shortcut': ternary(both['shortcut']),
    'dense': ternary(params['dense']['synapse']),
    'head': np.asarray(params['head']['synapse']['kernel']),
  }


def by_loops(name, x, kernel):
  """(without zeros, with them) of one call, each connection visited."""
  real, weights = (x != 0).astype(float), (kernel != 0).astype(float)
  pairs = (real, weights), (np.ones_like(real), np.ones_like(weights))
  if kernel.ndim == 2:
    return [float(np.sum(a.reshape(len(a), -1) @ b)) for a, b in pairs]
  return [float(loops(a, b, **settings(name)).sum()) for a, b in pairs]


def wanted(trains, image_calls=1):
  """{row: [MACs, ACs, dense]} of all images; trains are [B, T, …] or [B, …]."""
  mine = kernels()
  inputs = {
    'stem': ('stem', None),
    'dilated': ('dilated', 'stem'),
    'body': ('sum', 'dilated'),
    'shortcut': ('sum', 'stem'),
    'dense': ('dense', 'cat'),
    'head': ('head', 'dense'),
  }
  found = {}
  for part, (row, source) in inputs.items():
    total = found.setdefault(row, np.zeros(3))
    calls = [IMAGES] if source is None else trains[source]
    for x in calls:
      for one in x:
        adds = bool(np.isin(one, (-1, 0, 1)).all())
        effective, dense = by_loops(part, one[None], mine[part])
        total += [effective * (not adds), effective * adds, dense]
  return {row: total / len(IMAGES) for row, total in found.items()}


def check(found, want):
  for row, counts in want.items():
    mine = found['sites'][row]['SynapticOperations']
    keys = 'Effective_MACs', 'Effective_ACs', 'Dense'
    assert [mine[k] for k in keys] == pytest.approx(list(counts)), row
  total = sum(want.values())
  mine = found['SynapticOperations']
  assert list(mine.values()) == pytest.approx(list(total))


def test_a_spiking_network_costs_what_loops_over_its_connections_count():
  settled = fs.to_spiking(table(), 'settled', settle=2)
  found = fs.cost(settled, variables(), IMAGES)
  _, spikes = settled.apply(variables(), jnp.asarray(IMAGES))
  trains = {
    name: np.moveaxis(np.sign(np.asarray(x)), 1, 0)
    for name, x in spikes.items()
  }
  check(found, wanted(trains))
  assert found['sites']['cat']['SynapticOperations']['Dense'] == 0
  fired = sum(np.count_nonzero(x) for x in trains.values())
  slots = sum(x.size for x in trains.values())
  assert found['spikes'] == pytest.approx(fired / len(IMAGES))
  assert found['neuron_updates'] == slots / len(IMAGES)
  assert found['ActivationSparsity'] == pytest.approx(1 - fired / slots)
  assert found['steps'] == 5
  json.dumps(found)


def test_quantised_and_float_networks_multiply():
  ann = table()
  found = fs.cost(ann, variables(), IMAGES)
  _, levels = ann.apply(variables(), jnp.asarray(IMAGES))
  check(found, wanted({name: [np.asarray(x)] for name, x in levels.items()}))
  assert found['SynapticOperations']['Effective_ACs'] == 0
  zeros = [x for name, x in kernels().items() if name != 'cat']
  share = sum((x == 0).sum() for x in zeros) / sum(x.size for x in zeros)
  assert found['ConnectionSparsity'] == pytest.approx(share)
  leaves = jax.tree.leaves(variables())
  assert found['Footprint'] == 4 * sum(x.size for x in leaves)
  params = jax.tree.leaves(variables()['params'])
  assert found['ParameterCount'] == sum(x.size for x in params)
  bits = {'stem': 8, 'head': 32}
  saved = sum(x.size * (32 - bits.get(k, 2)) / 8 for k, x in kernels().items())
  assert found['packed_footprint'] == found['Footprint'] - saved
  own = found['sites']['dilated']
  assert own['Footprint'] == 4 * (9 * 2 * 4 + 1 + 1 + 4 * 4)
  assert (
    sum(x['Footprint'] for x in found['sites'].values()) == (found['Footprint'])
  )
  assert set(neurobench(found)['sites']['stem']) == {
    *('Footprint', 'ParameterCount', 'ConnectionSparsity'),
    *('ActivationSparsity', 'SynapticOperations'),
  }


@functools.cache
def small():
  """(quantised network, variables): quick to compile."""
  rows = (
    fs.Layer('stem', fs.Conv(4, stride=2)),
    fs.Layer('dense', fs.Dense(5, weights=fs.Apot(2), norm=False), ('stem',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('dense',)),
  )
  fields = {'mean': (0.5, 0.5), 'std': (0.25, 0.25), 'classes': tuple('abc')}
  ann = fs.Network(rows, fs.QuantRelu(2, 2.0), bits=2, **fields)
  return ann, ann.init(jax.random.key(1), IMAGES)


MODEL = fs.EnergyModel('unit', multiply=0.0, add=32.0, move=0.0)


@functools.cache
def long():
  """(a network of more steps than needed, its cost)."""
  ann, own = small()
  spiking = fs.to_spiking(ann, 'settled', settle=16)
  return spiking, fs.cost(spiking, own, IMAGES, energy=MODEL)


@pytest.mark.slow
def test_until_quiet_costs_what_its_own_steps_cost():
  """The steps that one image needs, whatever the others need."""
  ann, own = small()
  settled = fs.to_spiking(ann, 'settled')
  auto = fs.cost(settled, own, IMAGES)
  alone = [fs.cost(settled, own, IMAGES[i : i + 1]) for i in range(3)]
  for key in ('spikes', 'SynOps', 'neuron_updates', 'bits_moved', 'steps'):
    mean = sum(x[key] for x in alone) / len(alone)
    assert auto[key] == pytest.approx(mean), key
  ops = [x['SynapticOperations'] for x in (auto, long()[1])]
  assert ops[0]['Effective_ACs'] == pytest.approx(ops[1]['Effective_ACs'])
  assert ops[0]['Dense'] < ops[1]['Dense']


def model(params, x):
  x = fs.quantize_activation(x @ params['a'], 1.5, 2, name='a')
  skip = fs.quantize_activation(x @ params['b'], 1.5, 2, name='b')
  return (x + skip) @ params['c']


def test_a_function_costs_what_its_products_do():
  keys = jax.random.split(jax.random.key(3), 4)
  params = {
    name: jnp.round(jax.random.normal(key, (4, 4)))  # some are 0
    for name, key in zip('abc', keys, strict=False)
  }
  x = np.asarray(jax.random.normal(keys[3], (5, 4)))
  ann, own = fs.from_function(model, params, x)
  spiking = fs.to_spiking(ann, 'signed')
  found = fs.cost(spiking, own, x, batch=2)
  _, spikes = spiking.apply(own, jnp.asarray(x))
  a, b = (np.sign(np.asarray(spikes[name])) for name in 'ab')
  weights = {k: np.asarray(v) != 0 for k, v in params.items()}

  def operations(x, name):
    return ((x != 0).reshape(-1, 4) @ weights[name].astype(float)).sum() / 5

  sites = {k: v['SynapticOperations'] for k, v in found['sites'].items()}
  assert sites['a']['Effective_MACs'] == pytest.approx(operations(x, 'a'))
  assert sites['b']['Effective_ACs'] == pytest.approx(operations(a, 'b'))
  assert sites['b']['Dense'] == 16 * STEPS
  both = a + b
  top = np.abs(both).max(-1, keepdims=True)
  adds = np.isin(np.abs(both), (0,)) | (np.abs(both) == top)
  adds = adds.all(-1)
  end = sites['output']
  assert end['Effective_ACs'] == pytest.approx(operations(both[adds], 'c'))
  assert end['Effective_MACs'] == pytest.approx(operations(both[~adds], 'c'))
  ann_found = fs.cost(ann, own, x)
  assert ann_found['SynapticOperations']['Dense'] == 48
  assert (
    found['quantised']['SynapticOperations']
    == (ann_found['SynapticOperations'])
  )


@pytest.mark.once
def test_max_pooling_sends_spikes_that_are_counted_at_each_step():
  rows = (
    fs.Layer('stem', fs.Conv(3)),
    fs.Layer('conv', fs.Chain((fs.MaxPool(), fs.Conv(2))), ('stem',)),
    fs.Layer('head', fs.Dense(2, norm=False), ('conv',)),
  )
  ann = fs.Network(rows, fs.QuantRelu(2, 2.0))
  images = IMAGES[..., :1]
  own = ann.init(jax.random.key(2), images)
  spiking = fs.to_spiking(ann, 'settled', settle=4)
  found = fs.cost(spiking, own, images)
  _, spikes = spiking.apply(own, jnp.asarray(images))
  counts = np.cumsum(np.round(np.sign(np.asarray(spikes['stem']))), 1)
  b, t = counts.shape[:2]
  pooled = counts.reshape(b, t, 4, 2, 4, 2, 3).max((3, 5))
  sent = np.diff(pooled, axis=1, prepend=0)
  kernel = np.asarray(own['params']['conv']['synapse']['parts_1']['kernel'])
  want = by_loops('conv', sent.reshape(-1, 4, 4, 3), kernel)
  mine = found['sites']['conv']['SynapticOperations']
  assert mine['Effective_ACs'] * b == pytest.approx(want[0])
  assert mine['Dense'] * b == pytest.approx(want[1])


def test_energy_is_the_models_and_its_balance_the_equations():
  _, found = long()
  dense = found['sites']['dense']
  adds = dense['SynapticOperations']['Effective_ACs']
  width = 2 + 1 + 6  # bits of a weight, of a spike and of 4 x 4 x 4 inputs
  assert dense['energy']['operations'] == pytest.approx(adds * width / 1e3)
  assert found['energy']['memory'] == 0
  assert 'unit' in found['words']
  twin, ours = found['quantised']['energy'], found['energy']
  fixed = ours['operations'] - ours['by_spikes'] + ours['neurons']
  share = found['break_even_rate'] / found['firing_rate']
  balance = fixed + share * ours['by_spikes']
  goal = twin['operations'] + twin['neurons']
  assert balance == pytest.approx(goal) or found['break_even_rate'] == 0


def test_synops_are_those_of_compare():
  ann, own = small()
  raw = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 2)).astype('uint8')
  data = {'image': raw, 'label': np.zeros(3, int)}
  settled, _ = long()
  rows = fs.compare(ann, own, {'s': (settled, own)}, data)
  shown = ((raw / 255.0 - 0.5) / 0.25).astype('float32')
  found = fs.cost(settled, own, shown)
  assert found['SynOps'] == pytest.approx(rows['s']['synops_per_image'])
  assert found['spikes'] == pytest.approx(rows['s']['spikes_per_image'])


def test_no_images_are_refused():
  with pytest.raises(fs.UserError, match='0 images'):
    fs.cost(*small(), IMAGES[:0])
