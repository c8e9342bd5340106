"""Settling until quiet: the bounded form with enough steps is the oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.equations import equations

import fastsnn_jax as fs

T = 3
IMAGES = jax.random.normal(jax.random.key(0), (12, 8, 8, 2))


def table(seed):
  """Rows with a shortcut, pooling, a concatenation and a look at the image."""
  random = np.random.default_rng(seed)
  wide = int(random.integers(3, 7))
  weights = [None, fs.Apot(2)][seed % 2]
  conv = functools.partial(fs.Conv, wide, weights=weights)
  pooled = fs.Chain((fs.AveragePool(2), fs.Conv(wide, kernel=1, padding=0)))
  head = fs.Chain((fs.GlobalAveragePool(), fs.Dense(3, norm=False)))
  return fs.Network(
    (
      fs.Layer('stem', fs.Conv(wide)),
      fs.Layer('body', conv(), ('stem',)),
      fs.Layer('sum', fs.Residual(conv()), ('body', 'stem')),
      fs.Layer('again', fs.Residual(conv(), fs.Conv(wide)), ('sum', 'image')),
      fs.Layer('pooled', pooled, ('again',)),
      fs.Layer('small', conv(stride=2), ('sum',)),
      fs.Layer(
        'join',
        fs.Chain((fs.Concat((None, None)), conv())),
        ('pooled', 'small'),
      ),
      fs.Layer('head', head, ('join',)),
    ),
    fs.QuantRelu(2, initial_theta=1.0),
    bits=2,
  )


@functools.cache
def case(seed=0):
  network = table(seed)
  return network, network.init(jax.random.key(seed), IMAGES)


def bounded(network, late, **rule):
  return fs.to_spiking(network, 'settled', settle=late, **rule)


@functools.cache
def settled(seed=0):
  network, variables = case(seed)
  return jax.jit(fs.to_spiking(network, 'settled').settle)(variables, IMAGES)


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_is_the_bounded_form_with_enough_steps(seed):
  network, variables = case(seed)
  snn = bounded(network, 40)
  output, trains = jax.jit(snn.apply)(variables, IMAGES)
  found = settled(seed)
  last = np.zeros(len(IMAGES), int)
  for name, train in trains.items():
    theta = np.float32(variables['params'][name]['theta'])
    counts, ours = np.asarray(train) / theta, found.activations[name] / theta
    np.testing.assert_array_equal(ours[:, :T], counts[:, :T])
    np.testing.assert_array_equal(ours[:, T], counts[:, T:].sum(1))
    np.testing.assert_array_equal(found.spikes[name], (counts != 0).sum(1))
    busy = (counts != 0).reshape(*counts.shape[:2], -1).any(-1)
    last = np.maximum(last, (busy * np.arange(1, T + 41)).max(1))
  np.testing.assert_array_equal(found.steps, last)
  assert T < last.max() < T + 40  # or there was nothing to settle
  assert found.quiet.all()
  np.testing.assert_allclose(found.output, output, rtol=1e-5, atol=1e-6)


class Doubled(fs.Conv):
  """A synapse that `fs.fold` leaves as it is, and that goes step by step."""

  def __call__(self, x, train=False, quanta=(None,)):
    return 2 * super().__call__(x, train, quanta)


@pytest.mark.parametrize(
  'own', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_folded_it_takes_the_same_steps(own):
  """Several at a time, in words, by the same rule."""
  network, variables = case(1)
  images = IMAGES.at[0].set(jnp.nan)
  if own:
    rows = list(network.layers)
    wide = rows[-2].synapse.parts[-1].features
    synapse = fs.Chain((fs.Concat((None, None)), Doubled(wide)))
    rows[-2] = fs.Layer('join', synapse, ('pooled', 'small'))
    both = fs.Residual(Doubled(wide), fs.Conv(wide))
    rows[3] = fs.Layer('again', both, ('sum', 'image'))
    network = dataclasses.replace(network, layers=tuple(rows))
    variables = network.init(jax.random.key(0), images)
  snn = fs.to_spiking(network, 'settled')
  want = jax.jit(snn.settle)(variables, images)
  folded, ready = fs.fold(snn, variables)
  got = jax.jit(folded.settle)(ready, images)
  assert T + 1 < int(want.steps.max()) < snn.most_steps
  same = np.testing.assert_array_equal
  for name, spikes in want.spikes.items():
    # Of what is no number there is no count.
    same(got.spikes[name][1:], spikes[1:])
    np.testing.assert_allclose(
      got.activations[name], want.activations[name], rtol=1e-6, atol=1e-6
    )
  same(got.steps, want.steps)
  same(got.quiet, want.quiet)
  np.testing.assert_allclose(got.output, want.output, rtol=1e-5, atol=1e-6)


def test_it_is_the_quantised_network():
  network, variables = case()
  output, levels = jax.jit(network.apply)(variables, IMAGES)
  snn, found = fs.to_spiking(network, 'settled'), settled()
  np.testing.assert_allclose(found.output, output, rtol=1e-5, atol=1e-6)
  for name, level in levels.items():
    rate = snn.neuron.decode(found.activations[name])
    np.testing.assert_allclose(rate, level, rtol=0, atol=1e-6)
  again, activations = snn.apply(variables, IMAGES)
  np.testing.assert_array_equal(again, found.output)
  over_time = snn.output_over_time(variables, activations)
  assert over_time.shape == (len(IMAGES), T + 1, 3)
  np.testing.assert_allclose(over_time[:, -1], output, rtol=1e-5, atol=1e-6)


def test_the_number_of_steps_is_no_matter_of_the_shape():
  network, variables = case()
  snn = fs.to_spiking(network, 'settled')
  text = jax.jit(snn.apply).lower(variables, IMAGES).as_text()
  whole = IMAGES.shape[0] * (T + 2)
  assert f'tensor<{whole}x' not in text
  assert 'stablehlo.while' in text


def test_a_chain_is_quiet_within_its_depth_times_t():
  network, _ = case()
  snn = fs.to_spiking(network, 'settled')
  assert snn.bound == 6 * T  # stem, body, sum, again, pooled, join
  assert snn.most_steps == 7 * T
  alone = fs.Network(network.layers[:2], snn.neuron)
  assert alone.bound == T
  assert fs.to_spiking(network, 'settled', max_count=9).bound == 6 * 9


def test_what_is_not_quiet_at_the_bound_says_so():
  """Without a cap a neuron may have charge for more spikes than T."""
  network, variables = case()
  loud = jax.tree.map(lambda x: x, variables)
  loud['params']['join']['theta'] = jnp.float32(1e-3)
  snn = fs.to_spiking(network, 'signed', settle='auto')
  found = jax.jit(snn.settle)(loud, IMAGES)
  assert not found.quiet.any()
  np.testing.assert_array_equal(found.steps, snn.most_steps)


def test_no_more_steps_are_run_than_there_are_spikes():
  """A loop of host calls counts the steps of the compiled one."""
  network, variables = case()
  calls = []

  class Counted(fs.Conv):
    def __call__(self, x, train=False, quanta=(None,)):
      jax.debug.callback(lambda n: calls.append(int(n)), len(x), ordered=False)
      return super().__call__(x, train, quanta)

  rows = list(network.layers)
  # A row that all rows before it make silent only after they are quiet.
  synapse = fs.Chain((fs.Concat((None, None)), Counted(5, weights=None)))
  rows[-2] = fs.Layer('join', synapse, ('pooled', 'small'))
  ann = dataclasses.replace(network, layers=tuple(rows))
  variables = ann.init(jax.random.key(0), IMAGES)
  snn = fs.to_spiking(ann, 'settled')
  calls.clear()
  found = jax.jit(snn.settle)(variables, IMAGES)
  jax.block_until_ready(found)
  jax.effects_barrier()
  late = int(found.steps.max()) - T
  assert calls.count(len(IMAGES) * T) == 1
  assert 0 < calls.count(len(IMAGES)) <= late


def test_a_silent_network_takes_no_step():
  network, variables = case()
  silent = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.full_like(x, 1e9) if path[-1].key == 'theta' else x,
    variables,
  )
  found = jax.jit(fs.to_spiking(network, 'settled').settle)(silent, IMAGES)
  assert not found.steps.any()
  assert found.quiet.all()
  assert all(not x.any() for x in found.spikes.values())


def test_nan_comes_out():
  network, variables = case()
  images = IMAGES.at[0].set(jnp.nan)
  found = jax.jit(fs.to_spiking(network, 'settled').settle)(variables, images)
  assert np.isnan(found.output[0]).all()
  np.testing.assert_array_equal(found.output[1:], settled().output[1:])
  assert all(np.isnan(x[0, -1]).any() for x in found.activations.values())


def test_its_gradient_is_that_of_the_quantised_network():
  network, variables = case(1)  # of APoT weights

  def loss(variables, images, network):
    output, activations = network.apply(variables, images)
    means = [network.neuron.decode(x).mean() for x in activations.values()]
    return jnp.sum(jnp.square(output)) + sum(means)

  grads = [
    jax.jit(jax.grad(functools.partial(loss, network=net), (0, 1)))(
      variables, IMAGES
    )
    for net in (network, fs.to_spiking(network, 'settled'))
  ]
  wanted = jax.tree.leaves(grads[0])
  # A row whose neurons are all saturated or silent has none.
  assert np.mean([np.any(want) for want in wanted]) > 0.5
  for want, got in zip(wanted, jax.tree.leaves(grads[1]), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_it_can_be_mapped():
  network, variables = case()
  snn = fs.to_spiking(network, 'settled')
  one = jax.vmap(lambda image: snn.settle(variables, image[None]))
  found, want = jax.jit(one)(IMAGES), settled()
  np.testing.assert_array_equal(found.steps[:, 0], want.steps)
  np.testing.assert_allclose(
    found.output[:, 0], want.output, rtol=1e-5, atol=1e-6
  )


def test_only_a_network_settles_until_quiet():
  network, variables = case()
  snn = fs.to_spiking(network, 'settled')
  with pytest.raises(fs.UserError, match=r'network\.apply, or a number'):
    snn.neuron.respond(lambda x: x, (IMAGES,), 1.0, static=(True,))
  for other in (network, bounded(network, 4)):
    with pytest.raises(fs.UserError, match="settle='auto'"):
      other.settle(variables, IMAGES)
  with pytest.raises(fs.UserError, match="a whole number from 0 up, or 'auto'"):
    fs.IntegrateAndFire(3, settle='later')
  with pytest.raises(fs.UserError, match="train=True with settle='auto'"):
    snn.apply(variables, IMAGES, train=True)


def test_kernels_are_quantised_before_the_loop():
  network, variables = case(1)  # of APoT weights
  snn = fs.to_spiking(network, 'settled')
  jaxpr = jax.make_jaxpr(snn.settle)(variables, IMAGES).jaxpr
  (loop,) = equations(jaxpr, 'while')
  shapes = {
    x.outvars[0].aval.shape
    for x in equations(loop.params['body_jaxpr'].jaxpr, 'sign')
  }
  kernel = variables['params']['body']['synapse']['kernel'].shape
  assert (
    kernel
    in {x.outvars[0].aval.shape for x in equations(jaxpr, 'sign')} - shapes
  )
