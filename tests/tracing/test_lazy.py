"""Folded functions: spikes in words, and several steps in one product."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.precision import bfloat16, rounded
from support.training import devices

import fastsnn_jax as fs
from fastsnn_jax import distributed
from fastsnn_jax.nn.folded.together import Packing
from fastsnn_jax.tracing import ready


def conv(x, kernel, stride=1):
  return lax.conv_general_dilated(
    x, kernel, (stride,) * 2, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def pooled(x, start, operation):
  window = (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
  return lax.reduce_window(x, start, operation, *window)


def space_to_depth(x):
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // 2, w // 2, 4 * c)


def model(params, x, bits):
  """Whole kernels and float ones; all that moves and joins spikes."""
  whole = {
    name: fs.quantize_weight(params[name], params['alpha'], bits)
    for name in ('body', 'skip', 'wide', 'flat', 'dense')
  }
  act = functools.partial(fs.quantize_activation, bits=bits)
  a, b, c = params['theta']
  x = act(conv(x, params['stem']) + 0.1, a, name='stem')
  y = act(conv(x, whole['body']) * params['scale'] - 0.1, b, name='body')
  x = act(conv(y, whole['skip']) * params['scale'] + x, c, name='sum')
  joined = jnp.concatenate([space_to_depth(x), pooled(y, 0.0, lax.add) / 4], -1)
  most = pooled(x + x, -jnp.inf, lax.max)
  x = act(conv(joined, params['mixed']) + most, a, name='joined')
  most = pooled(x, -jnp.inf, lax.max)
  thetas = b * jnp.linspace(0.8, 1.2, 32)
  x = act(conv(most, whole['wide']) * 0.2, thetas, name='wide')
  x = jnp.pad(x[:, ::-1], ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
  x = act(x.reshape(len(x), -1) @ whole['flat'] * 0.1, b, name='flat')
  x = act(x @ whole['dense'] * 0.1, c, name='dense')
  return {'logits': x @ params['head'], 'last': x}


@functools.cache
def case(bits, dtype='float32'):
  random = np.random.default_rng(bits)
  shapes = {
    'stem': (3, 3, 2, 8),
    'body': (3, 3, 8, 8),
    'skip': (3, 3, 8, 8),
    'mixed': (1, 1, 40, 8),
    'wide': (3, 3, 8, 32),
    'flat': (128, 64),
    'dense': (64, 16),
    'head': (16, 5),
  }
  params = {
    name: random.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(dtype)
    for name, shape in shapes.items()
  }
  params['scale'] = random.uniform(0.2, 0.4, 8).astype(dtype)
  params['alpha'] = np.asarray(2.0, dtype)
  params['theta'] = np.asarray([1.1, 0.9, 1.3], dtype)
  images = jnp.asarray(random.normal(size=(4, 8, 8, 2)).astype(dtype))
  params = jax.tree.map(jnp.asarray, params)
  return *fs.from_function(Bits(bits), params, images), images


@dataclasses.dataclass(frozen=True)
class Bits:
  bits: int

  def __call__(self, params, x):
    return model(params, x, self.bits)


def packings(network):
  return {
    dict(found)[2, 3]
    for found in network.function.packings
    if (2, 3) in dict(found)
  }


@pytest.mark.parametrize(
  ('bits', 'mode', 'settings'),
  [
    (2, 'signed', {}),
    (2, 'unsigned', {}),
    (3, 'settled', {'settle': 12}),
    (3, 'settled', {}),
    (5, 'signed', {}),  # two words
  ],
)
def test_spikes_are_those_of_the_function_as_it_is(bits, mode, settings):
  with jax.enable_x64():
    network, variables, images = case(bits, 'float64')
    snn = fs.to_spiking(network, mode, **settings)
    want, trains = snn.apply(variables, images)
    folded, own = fs.fold(snn, variables)
    assert max(x.steps_at_once for x in packings(folded)) > 1
    found, words = folded.apply(own, images)
    for name, train in trains.items():
      np.testing.assert_allclose(words[name], train, atol=1e-9, err_msg=name)
    for key, value in want.items():
      np.testing.assert_allclose(found[key], value, atol=1e-9)


def test_settled_equals_its_quantised_twin_folded():
  network, variables, images = case(3)
  ann, own = fs.fold(network, variables)
  want, levels = ann.apply(own, images)
  snn, own = fs.fold(fs.to_spiking(network, 'settled'), variables)
  found, spikes = snn.apply(own, images)
  for name, mean in snn.means(spikes).items():
    np.testing.assert_allclose(mean, levels[name], atol=1e-5, err_msg=name)
  np.testing.assert_allclose(found['logits'], want['logits'], atol=1e-5)


def test_steps_in_one_product_are_those_one_by_one():
  network, variables, images = case(3)
  together, own = fs.fold(fs.to_spiking(network), variables)
  assert max(x.steps_at_once for x in packings(together)) > 1
  alone, same = fs.to_spiking(network).fold(variables, packed=False)
  assert packings(alone) == {Packing()}
  jax.tree.map(np.testing.assert_array_equal, own, same)
  jax.tree.map(
    np.testing.assert_array_equal,
    together.apply(own, images),
    alone.apply(same, images),
  )


def test_more_steps_than_are_unrolled_are_scanned():
  network, variables, images = case(2)
  settings = {'mode': 'settled', 'settle': 50}
  folded, own = fs.fold(fs.to_spiking(network, **settings), variables)
  want, _ = fs.fold(network, variables)[0].apply(own, images)
  found, _ = folded.apply(own, images)
  np.testing.assert_allclose(found['logits'], want['logits'], atol=1e-5)


def test_nan_stays_nan():
  network, variables, images = case(2)
  folded, own = fs.fold(fs.to_spiking(network), variables)
  images = images.at[1, 3, 3, 0].set(jnp.nan)
  output, spikes = folded.apply(own, images)
  broken = np.isnan(output['logits']).any(1)
  np.testing.assert_array_equal(broken, [False, True, False, False])
  assert np.isnan(spikes['body'][1]).any()
  params = variables['params']
  odd = {'params': {**params, 'theta': -params['theta']}}
  folded, own = fs.fold(fs.to_spiking(network), odd)
  assert np.isnan(folded.apply(own, images[:1])[0]['logits']).all()


@pytest.mark.parametrize('mode', ['signed', 'settled'])
def test_a_channel_whose_theta_is_not_positive_is_nan_alone(mode):
  thetas = jnp.array([1.0, -1.0, 0.7, 1.3])

  def function(params, x):
    return fs.quantize_activation(x @ params, thetas, 2, name='a')

  images = jax.random.normal(jax.random.key(0), (3, 4))
  network, variables = fs.from_function(function, jnp.eye(4), images)
  spiking = fs.to_spiking(network, mode)
  output, _ = spiking.apply(variables, images)
  assert np.isnan(output).all(0).tolist() == [False, True, False, False]
  folded, own = fs.fold(spiking, variables)
  np.testing.assert_array_equal(folded.apply(own, images)[0], output)


@pytest.mark.parametrize('whole', [1, 5, 127])
def test_whole_kernels_are_found(whole):
  random = np.random.default_rng(whole)
  numbers = random.integers(-whole, whole + 1, (3, 3, 4, 5))
  numbers[0, 0, 0, 0] = whole
  kernel = jnp.asarray(numbers * np.float32(0.0713), jnp.float32)
  found = ready._whole(kernel)
  scale = whole * float(found['step']) / 0.0713
  np.testing.assert_allclose(
    found['numbers'] * found['step'], kernel, rtol=1e-6
  )
  assert scale == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
  'odd',
  [
    np.zeros((3, 3)),
    np.full((3, 3), np.nan),
    np.float32(np.random.default_rng(0).normal(size=(3, 3))),
    np.arange(300.0).reshape(3, 100),
    np.array([[1.0, 1.0001]]),
    np.ones(3),
  ],
)
def test_other_kernels_stay_floats(odd):
  odd = jnp.asarray(odd, jnp.float32)
  assert ready._whole(odd) is odd


def test_settled_equals_quantised_where_products_are_rounded():
  network, variables, images = case(3)
  ann, own = network.fold(variables, packed=False)
  snn, _ = fs.to_spiking(network, 'settled', settle=16).fold(
    variables, packed=False
  )
  want, _ = rounded(ann.apply, bfloat16)(own, images)
  found, _ = rounded(snn.apply, bfloat16)(own, images)
  np.testing.assert_allclose(found['logits'], want['logits'], atol=1e-4)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_accelerators_get_a_product_of_all_steps(platform):
  network, variables, images = case(2)
  folded, own = fs.fold(fs.to_spiking(network), variables)
  run = jax.jit(lambda v, x: folded.apply(v, x)[0])
  text = jax.export.export(run, platforms=[platform])(own, images).mlir_module()
  products = re.findall(
    r'stablehlo\.(?:convolution|dot_general).*: \((.*)\) -> (.*)', text
  )
  stem, *others = products
  assert 'f32' in stem[0]
  # Kernels of body, skip, wide and dense are whole; mixed, head and, behind
  # thetas of channels, flat are floats, of two pieces.
  assert len(others) == 4 + 3 * 2
  assert all(operands.count('xbf16>') == 2 for operands, _ in others)
  assert all('xf32>' in found for _, found in others)


def test_devices_share_a_batch_out_without_talking():
  network, variables, _ = case(2)
  folded, own = fs.fold(fs.to_spiking(network, 'settled', settle=2), variables)
  with devices(4):
    images = distributed.by_row(np.zeros((8, 8, 8, 2), np.float32))
    own = distributed.everywhere(own)
    program = jax.jit(folded.apply).lower(own, images).compile()
  assert not re.search('all-|collective-|reduce-scatter', program.as_text())


@pytest.mark.once
def test_memory_is_that_of_the_table():
  table, shape = fs.build('small_resnet8', bits=3), (8, 16, 16, 3)
  images = jnp.zeros(shape)
  variables = table.init(jax.random.key(0), images)

  def function(variables, images):
    return table.apply(variables, images)[0]

  traced = fs.from_function(function, variables, images)
  needed = []
  for network, own in ((table, variables), traced):
    folded, own = fs.fold(fs.to_spiking(network), own)
    run = jax.jit(lambda v, x, folded=folded: folded.apply(v, x)[0])
    program = run.lower(own, images).compile()
    needed.append(program.memory_analysis().temp_size_in_bytes)
  assert needed[1] <= 1.1 * needed[0]
