"""Products of whole numbers: settled equals quantised where products round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.precision import bfloat16, rounded, tf32

import fastsnn_jax as fs

LEVELS = 7


def act(x, theta, name):
  return fs.quantize_activation(x, theta, 3, name=name)


def conv(x, kernel, groups=1):
  return jax.lax.conv_general_dilated(
    *(x, kernel, (1, 1), 'SAME'),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def pool(x, start, operation):
  window = (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
  return jax.lax.reduce_window(x, start, operation, *window)


def plain(params, x):
  """A skip, average pooling, a flattened map, two units side by side."""
  a, b, c = params['thetas']
  x = act(conv(x, params['stem']), a, 'stem')
  y = act(conv(x, params['body']) + params['bias'], b, 'body')
  both = jnp.concatenate([x, y], -1)
  x = act(conv(both, params['wide']) + x, c, 'sum')
  x = pool(x, 0.0, jax.lax.add) / 4
  x = act(x.reshape(len(x), -1) @ params['flat'], b, 'flat')
  return x @ params['head']


def maximal(params, x):
  """Max pooling, a depthwise convolution, thetas of channels."""
  a, b, c = params['thetas'][:, None] * jnp.linspace(0.7, 1.3, 6)
  x = act(conv(x, params['stem']), a, 'stem')
  x = act(conv(pool(x, -jnp.inf, jax.lax.max), params['body']), b, 'body')
  x = act(conv(x, params['depth'], groups=6), c, 'depth')
  return x.mean((1, 2)) @ params['tail']


@functools.cache
def case(function):
  shapes = {
    'stem': (3, 3, 3, 6),
    'body': (3, 3, 6, 6),
    'wide': (3, 3, 12, 6),
    'depth': (3, 3, 1, 12) if function is None else (3, 3, 1, 6),
    'flat': (96, 16),
    'head': (16, 5),
    'tail': (6, 5),
    'bias': (6,),
  }
  random = np.random.default_rng(0)
  params = {
    name: jnp.float32(random.normal(0, np.prod(shape[:-1]) ** -0.5, shape))
    for name, shape in shapes.items()
  }
  params['thetas'] = jnp.float32([1.9, 1.3, 1.7])
  images = jnp.float32(random.normal(size=(8, 8, 8, 3)))
  return *fs.from_function(function, params, images), images


@pytest.mark.parametrize('rounding', [bfloat16, tf32], ids=['bfloat16', 'tf32'])
@pytest.mark.parametrize('function', [plain, maximal])
def test_settled_equals_quantised_where_products_are_rounded(
  function, rounding
):
  network, variables, images = case(function)
  snn = fs.to_spiking(network, 'settled', settle=24)
  want, levels = rounded(network.apply, rounding)(variables, images)
  found, spikes = rounded(snn.apply, rounding)(variables, images)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
  rates = snn.means(spikes)
  for name, level in levels.items():
    np.testing.assert_allclose(rates[name], level, rtol=0, atol=1e-4)


def test_the_function_itself_is_rounded_there():
  """Or the test above would show nothing."""
  network, variables, images = case(plain)
  exact, _ = network.apply(variables, images)
  own = rounded(plain, bfloat16)(variables['params'], images)
  assert jnp.abs(own - exact).max() > 1e-2
  np.testing.assert_allclose(
    plain(variables['params'], images), exact, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  ('precision', 'pieces'), [('high', 2), ('default', 1), ('highest', 0)]
)
def test_accelerators_get_bfloat16_operands_and_float32_sums(precision, pieces):
  network, variables, images = case(plain)
  snn = fs.to_spiking(network)
  run = jax.jit(lambda v, x: snn.apply(v, x, precision=precision)[0])
  text = jax.export.export(run, platforms=['tpu'])(variables, images)
  products = [
    [part.split('x')[-1].split('>')[0] for part in line.split('tensor<')[1:]]
    for line in text.mlir_module().splitlines()
    if 'stablehlo.convolution' in line or 'stablehlo.dot_general' in line
  ]
  narrow = products.count(['bf16', 'bf16', 'f32'])
  assert narrow == 4 * pieces  # body, wide, flat and head
  assert all(x in (['bf16', 'bf16', 'f32'], ['f32'] * 3) for x in products)


def test_a_transformer_is_not_worse_where_products_are_rounded():
  """Attention is of no whole numbers: full float32 there."""

  def attend(params, x):
    q = act(x @ params, 1.5, 'q')
    k = act(q @ params, 1.5, 'k')
    scores = jax.nn.softmax(jnp.einsum('bnc,bmc->bnm', q, k))
    return act(scores @ (k + 0.1) + 0.013, 1.0, 'out') @ params

  params = jax.random.normal(jax.random.key(0), (8, 8)) * 0.5
  images = jax.random.normal(jax.random.key(1), (4, 5, 8))
  network, variables = fs.from_function(attend, params, images)
  snn = fs.to_spiking(network, 'settled', settle=20)
  want, _ = rounded(network.apply, bfloat16)(variables, images)
  found, _ = rounded(snn.apply, bfloat16)(variables, images)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
