"""Folded networks beside those that they were made of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsnn_jax as fs
from fastsnn_jax.nn.folded import fold as folding
from fastsnn_jax.nn.folded import words
from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.folded.together import Packing
from fastsnn_jax.nn.layers import Synapse
from fastsnn_jax.nn.whole import Quantum


class Doubled(Synapse):
  """A synapse of one's own."""

  affine = True

  def __call__(self, x, train=False):
    return 2 * x - 0.1


def table(weights, own=True):
  """Every kind of synapse that a spiking network may have."""
  conv = functools.partial(fs.Conv, 8, weights)
  down = {'kernel': 1, 'stride': 2, 'padding': 0}
  rows = [
    ('stem', fs.Conv(8, fs.EightBit()), ('image',)),
    ('plain', conv(), ('stem',)),
    ('sum', fs.Residual(conv()), ('plain', 'stem')),
    ('down', fs.Residual(conv(stride=2), conv(**down)), ('sum', 'plain')),
    ('mean', fs.Chain((fs.AveragePool(2), conv())), ('sum',)),
    ('groups', conv(groups=2), ('mean',)),
  ]
  joined = fs.Concat((None, fs.SpaceToDepth(2)))
  rows.append(('joined', fs.Chain((joined, conv())), ('groups', 'stem')))
  rows.append(('image too', fs.Residual(conv(stride=2)), ('image', 'down')))
  if own:
    rows.append(('own', Doubled(), ('joined',)))
  rows.append(('dense', fs.Dense(12, weights), (rows[-1][0],)))
  rows.append(('head', fs.Dense(3, fs.EightBit(), norm=False), ('dense',)))
  return [fs.Layer(*row) for row in rows]


@functools.cache
def trained(bits, weights):
  """(network, variables, images), whose batch norms have seen the images."""
  neuron = fs.Relu() if bits == 32 else fs.QuantRelu(bits, 3.0)
  network = fs.Network(table(weights), neuron)
  images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  variables = network.init(jax.random.key(1), images)
  train = jax.jit(functools.partial(network.apply, train=True))
  for _ in range(5):
    *_, variables['batch_stats'] = train(variables, images)
  return network, variables, images


def spiking(network, mode):
  if mode == 'settled 4':
    return fs.to_spiking(network, 'settled', settle=4)
  return network if mode == 'quantised' else fs.to_spiking(network, mode)


MODES = 'quantised', 'signed', 'settled', 'settled 4'


@pytest.mark.parametrize('weights', [fs.Apot(2), None], ids=['whole', 'float'])
@pytest.mark.parametrize('mode', [*MODES, 'float'])
def test_levels_and_spikes_are_those_of_the_network(mode, weights):
  bits = 32 if mode == 'float' else 2
  network, variables, images = trained(bits, weights)
  if bits == 2:
    network = spiking(network, mode)
  folded, ready = fs.fold(network, variables)
  output, expected = jax.jit(network.apply)(variables, images)
  answer, found = jax.jit(folded.apply)(ready, images)
  assert list(found) == list(expected)
  differing = total = 0
  for name, activity in expected.items():
    assert found[name].shape == activity.shape
    theta = ready['params'].get(name, {}).get('theta', 1)
    differing += np.sum(np.abs(found[name] - activity) > 1e-3 * theta)
    total += activity.size
  assert differing <= total / 1000  # near-ties
  if not differing:
    np.testing.assert_allclose(answer, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('weights', [fs.Apot(3), None], ids=['whole', 'float'])
def test_settled_equals_quantised(weights):
  network, variables, images = trained(2, weights)
  ann, ready = fs.fold(network, variables)
  neuron = fs.to_spiking(network, 'settled', settle=25).neuron
  output, levels = jax.jit(ann.apply)(ready, images)
  twin = dataclasses.replace(ann, neuron=neuron)
  answer, spikes = jax.jit(twin.apply)(ready, images)
  for name, level in levels.items():
    counts = np.asarray(neuron.decode(spikes[name]))
    np.testing.assert_allclose(counts, level, atol=1e-5, err_msg=name)
  np.testing.assert_array_equal(answer, output)


def test_steps_in_one_product_are_those_one_by_one():
  network, variables, images = trained(2, fs.Apot(2))
  folded, ready = fs.fold(fs.to_spiking(network), variables)
  (plain,) = (x for x in folded.layers if x.name == 'plain')
  assert plain.synapse.packing.steps_at_once >= 3
  alone, same = folding.ready(fs.to_spiking(network), variables, known=False)
  assert all(
    x.synapse.packing == Packing()
    for x in alone.layers
    if isinstance(x.synapse, Folded)
  )
  a, b = (
    jax.jit(n.apply)(v, images) for n, v in ((folded, ready), (alone, same))
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_network_whose_weights_change_is_compiled_once():
  network = fs.to_spiking(fs.build('small_resnet8', bits=3))
  images = jnp.ones((2, 8, 8, 1))
  runs = []
  for seed in range(2):
    variables = network.init(jax.random.key(seed), images)
    stem = variables['params']['layer0']['synapse']
    stem['kernel'] = stem['kernel'].at[0, 0, 0, 0].set(-10.0 * seed)  # codes
    alone, own = folding.ready(network, variables, known=False)
    runs.append((alone, jax.tree.map(lambda x: (x.shape, x.dtype.name), own)))
  assert runs[0] == runs[1]


@given(
  seed=st.integers(0, 2**32 - 1),
  most=st.integers(1, 127),
  split=st.sampled_from([1, 2, 8]),
  steps=st.integers(2, 17),
)
def test_a_product_of_several_steps_is_exact(seed, most, split, steps):
  random = np.random.default_rng(seed)
  kernel = random.integers(-most, most + 1, (64, 2)).astype(np.int8)
  spikes = random.integers(-1, 2, (3, steps, 64))
  spikes[0] = np.sign(kernel[:, 0])  # the largest sum there is, at every step
  codes = spikes.transpose(1, 0, 2) & 3
  packed = tuple(
    jnp.asarray(
      sum(
        c.astype(np.uint32) << 2 * i for i, c in enumerate(codes[t : t + 16])
      ),
    ).view(jnp.int32)
    for t in range(0, steps, 16)
  )
  groups = np.split(np.abs(kernel.astype(int)), split)
  base = max(Packing.of(group, alone=True).base for group in groups)
  part = Folded(fs.Dense(2), Packing(base, split))
  product = part.products(
    packed, jnp.asarray(kernel), Quantum(jnp.ones(())), steps
  )
  expected = spikes @ kernel.astype(int)
  for t in range(steps):
    np.testing.assert_array_equal(product(t), expected[:, t])


def test_wide_kernels_are_split_until_steps_fit():
  kernel = np.ones((256, 2), np.int8)
  assert Packing.of(kernel) == Packing(256, 4)
  assert Packing.of(kernel.T, -1, -2) == Packing(256, 4)
  assert Packing.of(kernel[:126]) == Packing(256, 1)
  assert folding._packing(fs.Conv(2, groups=2), kernel) == Packing(1024, 1)


def test_how_many_steps_fit():
  fit = {
    base: Packing(base).steps_at_once
    for base in (0, 4, 32, 64, 256, 512, 4096, 8192)
  }
  assert fit == {0: 1, 4: 12, 32: 5, 64: 4, 256: 3, 512: 2, 4096: 2, 8192: 1}
  for base, count in fit.items():
    most = max(base // 2 - 1, 0)
    assert most * sum(base**i for i in range(count)) < 2**24


def test_fold_twice_is_fold_once_and_nobody_trains_it():
  network, variables, images = trained(2, fs.Apot(2))
  folded, ready = fs.fold(network, variables)
  assert fs.fold(folded, ready) == (folded, ready)
  assert hash(folded) == hash(fs.fold(network, variables)[0])
  assert ready['params']['plain']['synapse']['kernel'].dtype == jnp.int8
  with pytest.raises(fs.UserError, match='train=True, but the network is fold'):
    folded.apply(ready, images, train=True)
  wrong = {**variables, 'params': {**variables['params'], 'plain': {}}}
  with pytest.raises(fs.UserError, match="layer 'plain'"):
    fs.fold(network, wrong)


def test_only_activations_that_are_used_become_trains():
  head = fs.Chain((fs.GlobalAveragePool(), fs.Dense(3, norm=False)))
  rows = [*table(fs.Apot(2))[:3], fs.Layer('head', head, ('sum',))]
  network = fs.to_spiking(fs.Network(rows, fs.QuantRelu(2)))
  images = jnp.ones((4, 8, 8, 3))
  variables = network.init(jax.random.key(0), images)
  folded, ready = fs.fold(network, variables)
  train = 'f32[4,3,8,8,8]'  # [B, T, H, W, C] of each row
  for used, shown in ((0, False), (1, True)):
    run = jax.jit(lambda v, x, used=used: folded.apply(v, x)[used])
    text = run.lower(ready, images).compile().as_text()
    assert (train in text) == shown


def test_evaluation_folds_once_for_the_same_arrays():
  network, variables, _ = trained(2, fs.Apot(2))
  first = folding.ready(network, variables)
  assert folding.ready(network, variables) is first
  other = jax.tree.map(lambda x: x + 0, variables)
  assert folding.ready(network, other) is not first
  # Another network's weights need no other program.
  moved = jax.tree.map(lambda x: 1.5 * x, variables)
  assert folding.ready(network, moved)[0] == first[0]


def test_a_network_folds_under_jit():
  network, variables, images = trained(2, fs.Apot(2))
  network = fs.to_spiking(network)

  @jax.jit
  def run(variables, images):
    folded, ready = fs.fold(network, variables)
    return folded.apply(ready, images)[0]

  folded, ready = fs.fold(network, variables)
  expected = jax.jit(folded.apply)(ready, images)[0]
  np.testing.assert_allclose(run(variables, images), expected, atol=1e-5)


def test_long_runs_are_scanned():
  network, variables, images = trained(2, None)
  network = fs.to_spiking(network, 'settled', settle=47)
  folded, ready = fs.fold(network, variables)
  output, _ = jax.jit(network.apply)(variables, images)
  answer, _ = jax.jit(folded.apply)(ready, images)
  np.testing.assert_allclose(answer, output, atol=0.1)
  assert network.neuron.total_steps > words.STEPS_PER_WORD * 3


def chain(depth):
  """(a network of so many equal rows, its variables, images)."""
  rows, before = [], 'image'
  for i in range(depth):
    rows.append(fs.Layer(f'row{i}', fs.Conv(16, weights=fs.Apot(2)), (before,)))
    before = f'row{i}'
  head = fs.Chain((fs.GlobalAveragePool(), fs.Dense(3, norm=False)))
  rows.append(fs.Layer('head', head, (before,)))
  network, images = (
    fs.Network(rows, fs.QuantRelu(2)),
    jnp.zeros((8, 16, 16, 16)),
  )
  return network, network.init(jax.random.key(0), images), images


# Until quiet, a row keeps voltages in four bytes and counts in one.
@pytest.mark.parametrize(('mode', 'most'), [('signed', 0.1), ('settled', 2)])
def test_how_its_memory_grows_with_depth(mode, most):
  taken = []
  for depth in (6, 12):
    network, variables, images = chain(depth)
    snn, ready = fs.fold(fs.to_spiking(network, mode), variables)
    run = jax.jit(lambda tree, x, snn=snn: snn.apply(tree, x)[0])
    compiled = run.lower(ready, images).compile()
    taken.append(compiled.memory_analysis().temp_size_in_bytes)
  assert (taken[1] - taken[0]) / 6 <= most * images.nbytes
