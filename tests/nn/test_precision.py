"""Settled equals quantised on devices whose products round their operands."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.precision import bfloat16, rounded, tf32

import fastsnn_jax as fs
from fastsnn_jax.nn.whole import in_pieces

THETA = 1.3
FLOAT = fs.Conv(6), fs.Conv(6, stride=2), fs.Conv(6, kernel=1, padding=0)


def _row(name, synapse, *inputs):
  return fs.Layer(name, synapse, inputs or ('image',))


def _apot(bits=3):
  """Residual blocks of APoT weights, 8-bit ends."""
  ends, conv = fs.EightBit(), fs.Conv(6, weights=fs.Apot(bits))
  head = fs.Dense(4, weights=ends, norm=False)
  return (
    _row('stem', fs.Conv(6, weights=ends)),
    _row('conv', conv, 'stem'),
    _row('sum', fs.Residual(conv), 'conv', 'stem'),
    _row('head', fs.Chain((fs.GlobalAveragePool(), head)), 'sum'),
  )


def _detector():
  """Float weights, a pass-through, a map as the output."""
  plain, strided, _ = FLOAT
  joined = fs.Concat((fs.SpaceToDepth(2), None))
  return (
    _row('stem', plain),
    _row('coarse', strided, 'stem'),
    _row('deep', plain, 'coarse'),
    _row('both', fs.Chain((joined, plain)), 'stem', 'deep'),
    _row('head', fs.Conv(5, kernel=1, padding=0, norm=False), 'both'),
  )


def _segmenter():
  """Float weights, several dilations joined, a pooled shortcut."""
  plain, _, one = FLOAT
  wide = fs.Conv(6, dilation=2, padding=2)
  joined = fs.Chain((fs.Concat((None, None)), one))
  pooled = fs.Chain((fs.AveragePool(3, stride=1, padding=1), one))
  return (
    _row('stem', plain),
    _row('near', one, 'stem'),
    _row('far', wide, 'stem'),
    _row('project', joined, 'near', 'far'),
    _row('sum', fs.Residual(plain, pooled), 'project', 'far'),
    _row('head', fs.Conv(5, kernel=1, padding=0, norm=False), 'sum'),
  )


FAMILIES = {'apot': _apot, 'detector': _detector, 'segmenter': _segmenter}


@functools.cache
def _case(name):
  network = fs.Network(FAMILIES[name](), fs.QuantRelu(3, THETA))
  images = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
  images = jnp.asarray(images, jnp.float32)
  variables = network.init(jax.random.key(1), images)
  train = jax.jit(lambda v: network.apply(v, images, train=True)[2])
  for _ in range(20):
    variables['batch_stats'] = train(variables)
  return network, variables, images


def _both(name, rounding):
  network, variables, images = _case(name)
  settled = fs.to_spiking(network, 'settled', settle=24)
  outputs = [
    rounded(judged.apply, rounding)(variables, images)
    for judged in (network, settled)
  ]
  (want, levels), (found, spikes) = outputs
  for row, level in levels.items():
    assert not (spikes[row][:, -1] != 0).any(), f'{row} is not quiet'
    off = jnp.abs(settled.neuron.decode(spikes[row]) - level)
    np.testing.assert_array_less(off, 1e-3 * THETA, err_msg=row)
  return want, found


@pytest.mark.parametrize('rounding', [bfloat16, tf32], ids=['bfloat16', 'tf32'])
@pytest.mark.parametrize('name', FAMILIES)
def test_settled_equals_quantised_where_products_are_rounded(name, rounding):
  want, found = _both(name, rounding)
  # The scales behind the products are in float32.
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_the_rounding_is_seen_where_operands_are_no_whole_numbers():
  network, variables, images = _case('detector')
  network = dataclasses.replace(network, neuron=fs.Relu())
  exact = jax.jit(network.apply)(variables, images)[0]
  for rounding in (bfloat16, tf32):
    off = rounded(network.apply, rounding)(variables, images)[0] - exact
    assert jnp.abs(off).max() > 1e-4
  highest = dataclasses.replace(network, precision='highest')
  same = rounded(highest.apply, bfloat16)(variables, images)[0]
  np.testing.assert_allclose(same, exact, rtol=1e-5, atol=1e-5)


def test_whole_weights_give_the_answers_of_float32_on_every_device():
  network, variables, images = _case('apot')
  exact, levels = jax.jit(network.apply)(variables, images)
  rough, same = rounded(network.apply, bfloat16)(variables, images)
  np.testing.assert_allclose(rough, exact, rtol=1e-6, atol=1e-6)
  for row, level in levels.items():
    np.testing.assert_array_equal(level, same[row])


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_images_of_half_precision_settle_to_the_same_levels(dtype):
  network, variables, images = _case('segmenter')
  settled = fs.to_spiking(network, 'settled', settle=24)
  images = images.astype(dtype)
  want, levels = jax.jit(network.apply)(variables, images)
  found, spikes = jax.jit(settled.apply)(variables, images)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
  for row, level in levels.items():
    assert level.dtype == spikes[row].dtype == dtype
    rate = settled.neuron.decode(spikes[row].astype('float32'))
    np.testing.assert_allclose(rate, level.astype('float32'), rtol=0.01)


def _operands(network, variables, images, platform, **settings):
  run = jax.jit(lambda v, x: network.apply(v, x, **settings))
  shapes = jax.eval_shape(lambda *a: a, variables, images)
  text = jax.export.export(run, platforms=[platform])(*shapes).mlir_module()
  products = [
    line
    for line in text.splitlines()
    if 'stablehlo.convolution' in line or 'stablehlo.dot_general' in line
  ]
  return [
    tuple(
      part.split('x')[-1].split('>')[0] for part in line.split('tensor<')[1:]
    )
    for line in products
  ]


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
@pytest.mark.parametrize(('name', 'pieces'), [('apot', 1), ('detector', 2)])
def test_accelerators_get_bfloat16_operands_and_float32_sums(
  name, pieces, platform
):
  network, variables, images = _case(name)
  spiking = fs.to_spiking(network)
  found = _operands(spiking, variables, images, platform)
  narrow = ('bf16', 'bf16', 'f32')
  inner = 2 if name == 'apot' else 4  # the read-out of 8 bits is in float32
  assert found.count(narrow) == inner * pieces
  assert set(found) == {narrow, ('f32', 'f32', 'f32')}
  for precision, count in (('default', 1), ('highest', int(name == 'apot'))):
    found = _operands(spiking, variables, images, platform, precision=precision)
    assert found.count(narrow) == inner * count


def test_two_pieces_of_a_kernel_reproduce_float32():
  random = np.random.default_rng(0)
  levels = random.integers(0, 16, (50, 64)).astype(np.float32)
  kernel = random.normal(size=(64, 9)).astype(np.float32)
  multiply = fs.Dense(9)._multiply
  exact = levels.astype(np.float64) @ kernel.astype(np.float64)
  errors = []
  for pieces in (1, 2):
    run = functools.partial(in_pieces, pieces, 'bfloat16', multiply)
    found = jax.jit(run)(levels, kernel)
    assert found.dtype == 'float32'
    errors.append(np.abs(found - exact).max() / np.abs(exact).max())
  one, two = errors
  assert two < 2e-5 < 1e-4 < one


def test_precisions_that_do_not_exist_are_refused():
  network, variables, images = _case('apot')
  for wrong in (
    lambda: dataclasses.replace(network, precision='float32'),
    lambda: network.apply(variables, images, precision='low'),
  ):
    with pytest.raises(fs.UserError, match='one of default, high, highest'):
      wrong()
