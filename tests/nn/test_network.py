"""Networks: tables, conversion, settled equality, derivatives, cost."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from support import oracle

import fastsnn_jax as fs
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.synapses import (
  Chain,
  Concat,
  GlobalAveragePool,
  MaxPool,
  Residual,
)
from fastsnn_jax.nn.weights import Apot, EightBit
from fastsnn_jax.nn.whole import Quantum

THETA = 2.5  # of currents with unit variance: lively, seldom saturated
MODES = ('unsigned', 'signed', 'settled')
IMAGES = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))


def table(middle=None):
  """Three firing rows, one of them residual, and a read-out."""
  if middle is None:
    middle = Conv(4, stride=2, weights=Apot(2, 'full'))
  shortcut = Conv(6, kernel=1, stride=2, padding=0, weights=Apot(4, 'full'))
  body = Conv(6, weights=Apot(3, 'detached'))
  head = Dense(3, weights=EightBit(), norm=False)
  return fs.Network(
    (
      fs.Layer('stem', Conv(4, weights=EightBit())),
      fs.Layer('deep', middle, ('stem',)),
      fs.Layer('sum', Residual(body, shortcut), ('deep', 'stem')),
      fs.Layer('head', Chain((GlobalAveragePool(), head)), ('sum',)),
    ),
    fs.QuantRelu(2, THETA),
  )


def fresh(network, dtype='float32'):
  """Variables as `init` draws them, without compiling it."""
  random = np.random.default_rng(0)
  constants = {'weight_alpha': 3, 'theta': THETA, 'scale': 1, 'var': 1}

  def leaf(path, like):
    name = path[-1].key
    if name == 'kernel':
      deviation = np.sqrt(2 / math.prod(like.shape[:-1]))
      return random.normal(0, deviation, like.shape).astype(dtype)
    return np.full(like.shape, constants.get(name, 0), dtype)

  shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
  return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def calibrated(network, dtype='float32'):
  """(variables with batch statistics of the images, images).

  To be called within `jax.enable_x64` for float64.
  """
  variables, images = fresh(network, dtype), np.asarray(IMAGES, dtype)
  update = jax.jit(lambda v: network.apply(v, images, train=True)[2])
  for _ in range(40):
    variables['batch_stats'] = update(variables)
  return variables, images


# --- tables -----------------------------------------------------------------


def test_a_name_taken_twice_is_refused():
  rows = (fs.Layer('a', Conv(4)), fs.Layer('a', Dense(2), ('a',)))
  with pytest.raises(fs.UserError, match="'a': the name is taken"):
    fs.Network(rows, fs.Relu())
  with pytest.raises(fs.UserError, match="'image': the name is taken"):
    fs.Network((fs.Layer('image', Conv(4)),), fs.Relu())


def test_an_input_that_is_no_row_further_up_is_refused():
  rows = (fs.Layer('a', Conv(4)), fs.Layer('b', Dense(2), ('b',)))
  with pytest.raises(fs.UserError, match="'b': its input 'b' is no row"):
    fs.Network(rows, fs.Relu())


def test_an_empty_table_is_refused():
  with pytest.raises(fs.UserError, match='0 layers'):
    fs.Network((), fs.Relu())


@pytest.mark.parametrize('model', fs.models())
def test_equal_builds_are_equal_and_hash_alike(model):
  one, other = fs.build(model, bits=3), fs.build(model, bits=3)
  assert one == other
  assert hash(one) == hash(other)
  assert one != fs.build(model, bits=2)
  assert one != fs.build(model, bits=3, classes=11)
  assert fs.to_spiking(one) == fs.to_spiking(other)
  assert fs.to_spiking(one) != fs.to_spiking(one, 'unsigned')


def test_an_equal_network_is_not_compiled_again():
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def run(network, variables):
    traces.append(network)
    return network.apply(variables, IMAGES)[0]

  variables = fresh(table())
  run(table(), variables)
  run(table(), variables)
  assert len(traces) == 1


# --- bad input --------------------------------------------------------------


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'model': 'resnet'}, "model='resnet'"),
    ({'bits': 8}, 'bits=8'),
    ({'classes': 1}, 'at least two classes'),
    ({'classes': ['cat']}, 'at least two classes'),
  ],
)
def test_a_build_out_of_range_is_refused(arguments, message):
  with pytest.raises(fs.UserError, match=message):
    fs.build(**{'model': 'small_resnet8', **arguments})


@pytest.mark.parametrize(
  'images', [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_images_that_are_not_a_batch_of_floats_are_refused(images):
  with pytest.raises(fs.UserError, match='B, H, W, C'):
    table().apply({}, images)


def test_training_a_network_that_settles_is_refused():
  with pytest.raises(fs.UserError, match='train=True with settle=8'):
    fs.to_spiking(table(), 'settled', settle=8).apply({}, IMAGES, train=True)


@pytest.mark.parametrize('wrap', ['bare', 'front', 'behind', 'residual'])
def test_max_pooling_is_exact_once_it_settled(wrap):
  middle = {
    'bare': MaxPool(),
    'front': Chain((MaxPool(3, padding=1), Conv(4))),
    'behind': Chain((Conv(4, norm=False), MaxPool())),
    'residual': Residual(Conv(4, stride=2), MaxPool()),
  }[wrap]
  inputs = ('stem', 'stem') if wrap == 'residual' else ('stem',)
  rows = (
    fs.Layer('stem', Conv(4)),
    fs.Layer('pooled', middle, inputs),
    fs.Layer('head', Dense(3, norm=False), ('pooled',)),
  )
  network = fs.Network(rows, fs.QuantRelu(2, initial_theta=1.0))
  with jax.enable_x64():
    images = jnp.asarray(IMAGES, jnp.float64)
    variables = jax.tree.map(jnp.float64, fresh(network))
    if wrap == 'behind':  # a bias in front of the maximum
      bias = jnp.linspace(-0.2, 0.3, 4)
      variables['params']['pooled']['bias'] = bias
    expected, _ = network.apply(variables, images)
    bounded = fs.to_spiking(network, 'settled', settle=12)
    output, trains = bounded.apply(variables, images)
    np.testing.assert_allclose(output, expected, atol=1e-9)
    settled = fs.to_spiking(network, 'settled')
    found = jax.jit(settled.settle)(variables, images)
    np.testing.assert_allclose(found.output, expected, atol=1e-9)
    assert found.quiet.all()
    # Or there is nothing to settle.
    assert (found.steps.max() > 3) == (wrap != 'bare')
    for name, train in trains.items():
      spikes = (train != 0).sum(1)
      np.testing.assert_array_equal(found.spikes[name], spikes)
    for net in (network, settled):
      folded, own = fs.fold(net, variables)
      output, _ = jax.jit(folded.apply)(own, images)
      np.testing.assert_allclose(output, expected, atol=1e-9)


@pytest.mark.parametrize('signed', [True, False])
def test_max_pooling_of_spikes_gives_spikes(signed):
  random, theta = np.random.default_rng(0), 0.1
  fire = functools.partial(fs.integrate_and_fire, signed=signed)
  neuron = fs.IntegrateAndFire(15, signed=signed, settle=0)
  for window, stride, padding in ((2, 2, 0), (3, 1, 1), (3, 2, 'SAME')):
    currents = random.normal(0.02, 0.15, (15, 2, 7, 7, 3)).astype(np.float32)
    spikes = np.moveaxis(np.asarray(fire(currents, theta)) * theta, 0, 1)
    pool = MaxPool(window, stride, padding)
    seen = []

    def synapse(x, pool=pool, seen=seen):
      seen.append(
        pool.apply({}, x, quanta=(Quantum(jnp.float32(theta), 1, 1),))
      )
      return seen[-1]

    neuron.respond(synapse, (jnp.asarray(spikes, jnp.float32),), theta)
    found = np.asarray(seen[0]).reshape(2, 15, *seen[0].shape[1:])
    height = np.float32(theta)
    assert set(np.unique(found)) <= {-height, 0, height}
    assert signed or found.min() == 0
    largest = pool.apply({}, jnp.asarray(spikes.sum(1)))
    np.testing.assert_allclose(found.sum(1), largest, atol=1e-5)


def test_max_pooling_runs_in_an_ann():
  network = table(MaxPool())
  variables = fresh(network)
  _, activations = jax.jit(network.apply)(variables, IMAGES)
  stem = np.asarray(activations['stem'])
  windows = stem.reshape(16, 4, 2, 4, 2, 4).max((2, 4))
  np.testing.assert_allclose(activations['deep'], windows, rtol=1e-6)


def test_only_a_quantised_network_is_converted():
  quantised = fs.build('small_resnet8', bits=2)
  for network in (fs.build('small_resnet8'), fs.to_spiking(quantised)):
    with pytest.raises(fs.UserError, match='only a network with QuantRelu'):
      fs.to_spiking(network)


@pytest.mark.parametrize(
  ('mode', 'settings', 'message'),
  [
    ('Signed', {}, "mode='Signed'.*unsigned, signed, settled"),
    ('signed', {'tau': 2.0}, "'tau' is no setting"),
    ('signed', {'steps': 0}, 'steps=0'),
  ],
)
def test_an_unknown_mode_or_setting_is_refused(mode, settings, message):
  with pytest.raises(fs.UserError, match=message):
    fs.to_spiking(fs.build('small_resnet8', bits=2), mode, **settings)


@pytest.mark.parametrize('bits', [2, 3, 4, 5])
def test_presets_are_those_of_the_design(bits):
  network, steps = fs.build('small_resnet8', bits=bits), 2**bits - 1
  neurons = {mode: fs.to_spiking(network, mode).neuron for mode in MODES}
  assert neurons == {
    'unsigned': fs.IntegrateAndFire(steps, signed=False),
    'signed': fs.IntegrateAndFire(
      steps, signed=True, negative_threshold=-1e-3, max_count=None, settle=0
    ),
    'settled': fs.IntegrateAndFire(
      steps, negative_threshold=0.0, max_count=steps, settle='auto'
    ),
  }


# --- shapes and counts ------------------------------------------------------


@pytest.mark.parametrize('channels', [1, 3])
def test_activations_have_a_time_axis_only_in_a_spiking_network(channels):
  network = fs.build('small_resnet14', bits=3, classes=7)
  images = jnp.zeros((2, 12, 10, channels))
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  for neuron, time in (
    (fs.Relu(), ()),
    (network.neuron, ()),
    (fs.IntegrateAndFire(7), (7,)),
    (fs.IntegrateAndFire(7, settle=2), (9,)),
    (fs.IntegrateAndFire(7, settle='auto'), (8,)),
  ):
    other = dataclasses.replace(network, neuron=neuron)
    output, activations = jax.eval_shape(other.apply, variables, images)
    assert output.shape == (2, 7)
    assert list(activations) == [layer.name for layer in network.firing]
    assert activations['layer0'].shape == (2, *time, 6, 5, 16)
    assert activations['layer3.1.part2'].shape == (2, *time, 2, 2, 64)


# Reference behaviour C2.8, less the biases in front of batch norm, which our
# trees leave out.
COUNTS = {
  'cifar_alexnet': (11_739_722 - 1_376 - 2_048, 11_738_357 - 2_048),
  'cifar_vgg11': (34_457_354 - 2_752 - 8_192, 34_454_621 - 8_192),
  'cifar_resnet20': (272_474, 272_513),
  'cifar_resnet32': (466_906, 466_969),
  'cifar_resnet44': (661_338, 661_425),
  'cifar_resnet56': (855_770, 855_881),
  'cifar_resnet110': (1_730_714, 1_730_933),
  'cifar_resnet18': (12_502_090, 12_502_107),
}


@pytest.mark.once
@pytest.mark.parametrize('model', COUNTS)
def test_parameters_are_as_many_as_counted_by_hand(model):
  for bits, expected in zip((32, 2), COUNTS[model], strict=True):
    variables = jax.eval_shape(
      fs.build(model, bits=bits).init,
      jax.random.key(0),
      jnp.zeros((1, 32, 32, 3)),
    )
    leaves = jax.tree.leaves(variables['params'])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == expected


# --- batch norm -------------------------------------------------------------


def test_batch_norm_learns_unbiased_statistics_at_a_momentum_of_a_tenth():
  rows = (
    fs.Layer('a', Conv(5, kernel=1, padding=0)),
    fs.Layer('head', Dense(2, norm=False), ('a',)),
  )
  network = fs.Network(rows, fs.Relu())
  variables = fresh(network)
  _, activations, statistics = jax.jit(
    functools.partial(network.apply, train=True)
  )(variables, IMAGES)
  kernel = np.asarray(variables['params']['a']['synapse']['kernel'])[0, 0]
  y = (np.asarray(IMAGES) @ kernel).reshape(-1, 5).astype(np.float64)
  norm = statistics['a']['synapse']['norm']
  np.testing.assert_allclose(norm['mean'], 0.1 * y.mean(0), rtol=1e-4)
  np.testing.assert_allclose(
    norm['var'], 0.9 + 0.1 * y.var(0, ddof=1), rtol=1e-5
  )
  expected = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
  np.testing.assert_allclose(
    activations['a'].reshape(-1, 5), np.maximum(expected, 0), atol=1e-4
  )
  # And at inference from what was learned.
  learned = {**variables, 'batch_stats': statistics}
  _, activations = network.apply(learned, IMAGES)
  expected = (y - norm['mean']) / np.sqrt(np.asarray(norm['var']) + 1e-5)
  np.testing.assert_allclose(
    activations['a'].reshape(-1, 5), np.maximum(expected, 0), atol=1e-4
  )


# --- spiking against quantised ----------------------------------------------


def test_the_first_layer_s_rates_are_the_ann_s_activations():
  with jax.enable_x64(True):
    network = table()
    variables, images = calibrated(network, 'float64')
    expected = jax.jit(network.apply)(variables, images)[1]['stem']
    assert len(np.unique(expected)) == 4
    for mode in ('signed', 'unsigned'):
      spiking = fs.to_spiking(network, mode)
      first = jax.jit(lambda v, x, net=spiking: net.apply(v, x)[1]['stem'])
      spikes = first(variables, images)
      assert set(np.unique(spikes)) == {0.0, THETA}
      np.testing.assert_allclose(
        spiking.neuron.decode(spikes), expected, rtol=0, atol=1e-12
      )


@pytest.mark.parametrize(
  'bits', [2, *(pytest.param(b, marks=pytest.mark.once) for b in (3, 4))]
)
def test_settled_equals_the_ann_in_float64(bits):
  with jax.enable_x64(True):
    network = fs.build('small_resnet8', bits=bits)
    variables, images = calibrated(network, 'float64')
    # Long enough for these random weights.
    settled = fs.to_spiking(network, 'settled', settle=16)

    @jax.jit
    def both(variables, images):
      return [net.apply(variables, images) for net in (network, settled)]

    (expected, levels), (output, spikes) = both(variables, images)
    assert output.dtype == np.float64
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-9)
    for name, level in levels.items():
      np.testing.assert_allclose(
        settled.neuron.decode(spikes[name]), level, rtol=0, atol=1e-9
      )
    taken_back = [np.mean(np.asarray(train) < 0) for train in spikes.values()]
    assert max(taken_back) > 0.01
    assert len(np.unique(levels['layer3.0.part2'])) == 2**bits


@pytest.mark.once
@pytest.mark.parametrize('mode', MODES)
def test_the_answer_over_time_ends_on_the_output(mode):
  network = table()
  variables, images = calibrated(network)
  spiking = fs.to_spiking(network, mode)

  @jax.jit
  def run(variables, images):
    output, activations = spiking.apply(variables, images)
    over_time = spiking.output_over_time(variables, activations)
    return output, over_time, activations['sum']

  output, over_time, spikes = run(variables, images)
  assert over_time.shape == (16, spiking.neuron.total_steps, 3)
  np.testing.assert_allclose(over_time[:, -1], output, rtol=1e-4, atol=1e-5)
  # After two steps: the read-out of the mean over those two.
  rates = np.asarray(spikes[:, :2]).mean(1)
  unit = network.unit(network.layers[-1])
  early = unit.apply({'params': variables['params']['head']}, rates)
  np.testing.assert_allclose(over_time[:, 1], early, rtol=1e-4, atol=1e-5)
  assert np.abs(over_time[:, 1] - output).max() > 1e-2


# --- whole-number products in parts of parts --------------------------------


@dataclasses.dataclass(frozen=True)
class Shown(fs.QuantRelu):
  """Quantises the rows on the image; all others show their current."""

  def respond(self, synapse, inputs, theta, *, static=()):
    if all(static):
      return super().respond(synapse, inputs, theta, static=static)
    return synapse(*inputs)


PART = Conv(8, weights=Apot(4, 'full'))
WRAPPED = {  # name: (synapse, how many inputs, paths of PART in its tree)
  'chain': (Chain((PART,)), 1, ('parts_0',)),
  'chain in chain': (Chain((Chain((PART,)),)), 1, ('parts_0/parts_0',)),
  'concat': (Concat((PART, PART.clone())), 2, ('parts_0', 'parts_1')),
  'residual': (Residual(PART, PART.clone()), 2, ('body', 'shortcut')),
  'chain in residual': (
    Residual(Chain((PART,)), Chain((PART.clone(),))),
    2,
    ('body/parts_0', 'shortcut/parts_0'),
  ),
  'concat in chain': (
    Chain((Concat((PART, PART.clone())),)),
    2,
    ('parts_0/parts_0', 'parts_0/parts_1'),
  ),
}


@pytest.mark.once
@pytest.mark.parametrize('name', WRAPPED)
def test_products_are_as_exact_inside_other_synapses(name):
  synapse, inputs, paths = WRAPPED[name]
  stems = tuple(f'stem{i}' for i in range(inputs))
  rows = [fs.Layer(stem, Conv(5)) for stem in stems]
  bare = [fs.Layer(f'bare{i}', PART, (stem,)) for i, stem in enumerate(stems)]
  wrapped = fs.Layer('wrapped', synapse, stems)
  head = fs.Layer('head', Dense(2, norm=False), ('wrapped',))
  network = fs.Network((*rows, *bare, wrapped, head), Shown(2, 0.7))
  variables = fresh(network)
  for i, stem in enumerate(stems):  # each input has a quantum of its own
    variables['params'][stem]['theta'] = np.float32(0.7 + i / 3)
  leaves = {
    collection: traverse_util.flatten_dict(tree, sep='/')
    for collection, tree in variables.items()
  }
  for tree in leaves.values():
    for key in tree:
      for i, path in enumerate(paths):
        tree[key] = tree.get(
          key.replace(f'wrapped/synapse/{path}', f'bare{i}/synapse'), tree[key]
        )
  variables = {
    collection: traverse_util.unflatten_dict(tree, sep='/')
    for collection, tree in leaves.items()
  }
  activations = network.apply(variables, IMAGES)[1]
  currents = [activations[f'bare{i}'] for i in range(inputs)]
  expected = currents[0]
  if 'residual' in name:
    expected = currents[0] + currents[1]
  elif 'concat' in name:
    expected = jnp.concatenate(currents, -1)
  np.testing.assert_array_equal(activations['wrapped'], expected)
  # The sums in floating point have other last bits.
  floats = network.unit(wrapped).apply(
    {key: tree['wrapped'] for key, tree in variables.items()},
    *(activations[stem] for stem in stems),
  )
  assert np.any(np.asarray(floats) != expected)


# --- derivatives ------------------------------------------------------------


def loss(params, network, variables, images):
  output = network.apply({**variables, 'params': params}, images)[0]
  return jnp.sum(jnp.sin(output))


@pytest.mark.once
@pytest.mark.parametrize('mode', ['signed', 'settled'])
def test_gradients_reach_every_parameter_of_a_spiking_network(mode):
  network = table()
  variables, images = calibrated(network)
  gradient = jax.jit(jax.grad(loss), static_argnums=1)(
    variables['params'], fs.to_spiking(network, mode), variables, images
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all(), path
    assert np.linalg.norm(leaf) > 1e-6, path


@pytest.mark.once
def test_a_settled_network_has_the_ann_s_gradient():
  # Equal mean currents, so equal derivatives in every layer.
  with jax.enable_x64(True):
    network = table()
    variables, images = calibrated(network, 'float64')
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    ann, snn = (
      gradient(variables['params'], net, variables, images)
      for net in (network, fs.to_spiking(network, 'settled', settle=16))
    )
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(lambda a, b: compare(b, a, atol=1e-8), ann, snn)


# --- transformations --------------------------------------------------------


@pytest.mark.once
def test_vmap_over_seeds_equals_a_loop():
  rows = (
    fs.Layer('a', Conv(4, weights=Apot(2))),
    fs.Layer('head', Dense(3, norm=False), ('a',)),
  )
  network = fs.Network(rows, fs.QuantRelu(2, THETA))
  keys = jax.random.split(jax.random.key(3), 3)

  def run(key):
    variables = network.init(key, IMAGES)
    return [
      net.apply(variables, IMAGES)[0]
      for net in (network, fs.to_spiking(network, 'settled'))
    ]

  one = jax.jit(run)
  each = [one(key) for key in keys]
  together = jax.jit(jax.vmap(run))(keys)
  for outputs, alone in zip(together, zip(*each, strict=True), strict=True):
    assert outputs.shape == (3, 16, 3)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    np.testing.assert_allclose(outputs, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize('mode', [None, 'signed'])
def test_images_do_not_see_each_other_at_inference(mode):
  network = table()
  variables = fresh(network)
  network = network if mode is None else fs.to_spiking(network, mode)
  apply = jax.jit(network.apply)
  np.testing.assert_allclose(
    apply(variables, IMAGES[3:5])[0],
    apply(variables, IMAGES)[0][3:5],
    rtol=1e-4,
    atol=1e-5,
  )


# --- what is compiled -------------------------------------------------------


def flops(function, *arguments):
  cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
  return cost['flops']


@pytest.mark.once
@pytest.mark.parametrize('mode', [None, 'settled'])
def test_an_early_activation_costs_only_its_prefix(mode):
  network = table()
  variables = fresh(network)
  prefix = fs.Network(network.layers[:3], network.neuron)  # 'sum' reads out
  if mode is not None:
    # Until quiet, all rows run in one loop.
    convert = functools.partial(fs.to_spiking, mode=mode, settle=8)
    network, prefix = map(convert, (network, prefix))

  def early(net):
    return flops(lambda v, x: net.apply(v, x)[1]['deep'], variables, IMAGES)

  assert early(network) == early(prefix)
  assert early(network) < 0.8 * flops(
    lambda v, x: network.apply(v, x)[0], variables, IMAGES
  )


@pytest.mark.once
@pytest.mark.parametrize('mode', [None, 'signed', 'settled'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_convolutions_run_in_the_images_precision(dtype, mode):
  network = table()
  variables = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
  network = network if mode is None else fs.to_spiking(network, mode)
  images = jax.ShapeDtypeStruct(IMAGES.shape, dtype)
  lowered = jax.jit(network.apply).lower(variables, images)
  short = {'bfloat16': 'bf16', 'float32': 'f32'}[dtype]
  found = [
    re.findall(r'tensor<[\dx]*x(\w+)>', line)
    for line in lowered.as_text().splitlines()
    if 'stablehlo.convolution' in line
  ]
  assert len(found) >= 4
  assert {tuple(types) for types in found} == {(short, short, 'f32')}
  activations = lowered.out_info[1]
  assert {leaf.dtype.name for leaf in activations.values()} == {dtype}


def test_bfloat16_images_give_nearly_the_float32_answer():
  network = table()
  variables, images = calibrated(network)
  apply = jax.jit(network.apply)
  exact, rough = (
    apply(variables, x)[0] for x in (images, images.astype(jnp.bfloat16))
  )
  assert rough.dtype == jnp.float32  # of the read-out's bias
  error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
  assert 0 < error < 0.3


def test_the_whole_quantised_table_agrees_with_numpy_layer_by_layer():
  # Every synapse by its own unit, every neuron by the oracle.
  network = table()
  variables = fresh(network)
  _, activations = jax.jit(network.apply)(variables, IMAGES)
  linear = dataclasses.replace(network, neuron=Identity())
  inputs = {'image': IMAGES, **activations}
  for layer in network.firing:
    mine = {key: tree[layer.name] for key, tree in variables.items()}
    current = jax.jit(linear.unit(layer).apply)(
      {**mine, 'params': {'synapse': mine['params']['synapse']}},
      *(inputs[name] for name in layer.inputs),
    )
    np.testing.assert_allclose(
      activations[layer.name],
      oracle.quantize_activation(np.asarray(current), THETA, 3),
      atol=1e-6,
    )


@dataclasses.dataclass(frozen=True)
class Identity:
  """A neuron of one's own: shows the current."""

  initial_theta = None

  def respond(self, synapse, inputs, theta=None, *, static=()):
    return synapse(*inputs)
