"""Functions until quiet: the bounded form with enough steps is the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.equations import equations
from support.training import devices

import fastsnn_jax as fs
from fastsnn_jax import distributed

T = 7


def act(x, theta, name):
  return fs.quantize_activation(x, theta, 3, name=name)


def pooled(params, x):
  """Convolutions, max pooling of spikes and of a sum, a skip, a scalar site."""
  conv = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  window = (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
  pool = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)  # noqa: E731
  kernel = fs.quantize_weight(params['body'], params['alpha'], 3)
  x = act(conv(x, params['stem']) + 0.1, params['theta'][0], 'stem')
  y = act(pool(conv(x, kernel) - 0.2), params['theta'][1], 'body')
  x = act(conv(y, kernel) + pool(x), params['theta'][2], 'sum')
  gate = act(x.mean((1, 2, 3)) * 2.9137, 1.0, 'gate')
  return x.mean((1, 2)) @ params['head'] + gate[:, None]


def attention(params, x):
  """Layer norm, softmax, products of two activities, GELU, two outputs."""
  x = act(x @ params['in'], 1.0, 'in')
  y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
    x.var(-1, keepdims=True) + 1e-2
  )
  q, k, v = (act(y @ params[name] + 0.3, 1.5, name) for name in 'qkv')
  scores = jax.nn.softmax(jnp.einsum('bnc,bmc->bnm', q, k) / 2)
  x = act(x + scores @ v + 0.0137 * params['in'][0], 2.0, 'mixed')
  x = act(x + jax.nn.gelu(x @ params['q']), 2.0, 'out')
  return {'logits': jax.nn.log_softmax(x.mean(1) @ params['k']), 'sum': x.sum()}


def draw(key, *shape):
  return jax.random.normal(jax.random.key(key), shape, jnp.float64) * 0.4


@functools.cache
def case(name):
  """(network, variables, images), to be called with float64."""
  if name == 'pooled':
    params = {
      'stem': draw(0, 3, 3, 2, 4),
      'body': draw(1, 3, 3, 4, 4),
      'head': draw(2, 4, 5),
      'alpha': jnp.float64(2.0),
      'theta': jnp.array([1.0, 3.1, 4.07], jnp.float64),
    }
    images = 2 * draw(3, 4, 8, 8, 2)
    return *fs.from_function(pooled, params, images), images
  params = {name: draw(i, 8, 8) for i, name in enumerate(('in', *'qkv'))}
  images = 2 * draw(9, 4, 6, 8)
  return *fs.from_function(attention, params, images), images


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64():
    yield


def apart(found, wanted):
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize('name', ['pooled', 'attention'])
@pytest.mark.parametrize('fold', [False, True])
def test_it_is_the_bounded_form_and_the_function(name, fold):
  network, variables, images = case(name)
  snn, own = fs.to_spiking(network, 'settled'), variables
  assert snn.neuron.settle == 'auto'
  if fold:
    snn, own = fs.fold(snn, variables)
    assert snn.folded
  found = jax.jit(snn.settle)(own, images)
  more = 16
  trains = fs.to_spiking(network, 'settled', settle=more)
  _, trains = trains.apply(variables, images)
  last = np.zeros(len(images), int)
  for site, train in trains.items():
    ours = found.activations[site]
    np.testing.assert_allclose(ours[:, :T], train[:, :T], atol=1e-12)
    np.testing.assert_allclose(ours[:, T], train[:, T:].sum(1), atol=1e-12)
    np.testing.assert_array_equal(found.spikes[site], (train != 0).sum(1))
    busy = np.any((train != 0).reshape(*train.shape[:2], -1), -1)
    last = np.maximum(last, (busy * np.arange(1, T + more + 1)).max(1))
  np.testing.assert_array_equal(found.steps, last)
  assert T < last.max() < T + more  # or there was nothing to settle
  assert found.quiet.all()
  assert apart(found.output, network.function(variables['params'], images)) < (
    1e-9
  )
  over_time = snn.output_over_time(own, found.activations)
  final = jax.tree.map(lambda x: x[:, -1] if x.ndim > 1 else x[-1], over_time)
  assert apart(final, found.output) < 1e-9


def test_its_gradient_is_that_of_the_function():
  network, variables, images = case('pooled')

  def loss(variables, images, network):
    output, activations = network.apply(variables, images)
    if network.spiking:
      activations = network.means(activations)
    return jnp.square(output).sum() + sum(
      x.mean() for x in activations.values()
    )

  wanted, found = (
    jax.grad(loss, (0, 1))(variables, images, net)
    for net in (network, fs.to_spiking(network, 'settled'))
  )
  assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(wanted))
  assert apart(found, wanted) < 1e-9


def test_one_loop_has_no_quantisation_of_kernels_inside():
  network, variables, images = case('pooled')
  snn = fs.to_spiking(network, 'settled')
  jaxpr = jax.make_jaxpr(snn.settle)(variables, images).jaxpr
  loops = list(equations(jaxpr, 'while'))
  assert len(loops) == 1
  body = loops[0].params['body_jaxpr'].jaxpr
  shape = variables['params']['body'].shape
  assert list(equations(jaxpr, 'sign'))  # of the quantiser
  assert not [
    x for x in equations(body, 'sign') if x.outvars[0].aval.shape == shape
  ]


@pytest.mark.parametrize('fold', [False, True])
def test_devices_do_not_wait_for_one_another(fold):
  network, variables, images = case('pooled')
  snn = fs.to_spiking(network, 'settled')
  if fold:
    snn, variables = fs.fold(snn, variables)
  wanted = jax.jit(snn.settle)(variables, images)
  with devices(4):
    run = jax.jit(distributed.each_alone(snn.settle))
    given = distributed.everywhere(variables), distributed.by_row(images)
    program = run.lower(*given).compile()
    found = program(*given)
  text = program.as_text()
  assert not any(x in text for x in ('all-', 'collective-', 'reduce-scatter'))
  np.testing.assert_array_equal(found.steps, wanted.steps)
  assert apart(found.output, wanted.output) < 1e-9


def test_sums_inside_of_a_branch_are_refused():
  def branched(params, x):
    x = act(x @ params, 1.0, 'in')
    x = jax.lax.cond(params[0, 0] > 0, jnp.tanh, lambda x: x, x)
    return act(x @ params, 1.0, 'out')

  params, images = draw(0, 3, 3), draw(1, 2, 3)
  network, variables = fs.from_function(branched, params, images)
  bounded = fs.to_spiking(network, 'settled', settle=24)
  output, _ = bounded.apply(variables, images)
  assert apart(output, branched(params, images)) < 1e-9
  with pytest.raises(fs.UserError, match=r'settling\.py:\d+: cond: sums'):
    fs.to_spiking(network, 'settled').apply(variables, images)
