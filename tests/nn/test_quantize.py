"""Quantisers against tables by hand, the official vectors and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import oracle
from support.derivatives import every_order

import fastsnn_jax as fs
from fastsnn_jax.nn import quantizers as quantize

FAMILY = {'A': 'detached', 'B': 'full'}  # names in the golden files


# Compiled once for each setting, however many arrays hypothesis draws.
@functools.cache
def weight_function(bits, gradient='detached'):
  def run(w, alpha, g):
    value, vjp = jax.vjp(
      lambda w, alpha: fs.quantize_weight(w, alpha, bits, gradient), w, alpha
    )
    return value, *vjp(g)

  return jax.jit(run)


@functools.cache
def activation_function(levels):
  def run(x, alpha, g):
    value, vjp = jax.vjp(
      lambda x, alpha: quantize.quantize_uniform(x, alpha, levels), x, alpha
    )
    return value, *vjp(g)

  return jax.jit(run)


def assert_gradient(actual, expected, scale=None, rtol=1e-6):
  """Equal within `rtol` of the largest magnitude, or of `scale`."""
  scale = np.max(np.abs(expected)) if scale is None else scale
  np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)


# --- levels -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('bits', 'patterns'),
  [
    (
      4,
      '00000000 3dcccccd 3e4ccccd 3e99999a 3ecccccd 3f19999a 3f4ccccd 3f800000',
    ),
    (
      5,
      '00000000 3caaaaab 3d2aaaab 3d800000 3daaaaab 3e000000 3e2aaaab 3e400000 '
      '3e800000 3eaaaaab 3ec00000 3f000000 3f2aaaab 3f300000 3f400000 3f800000',
    ),
  ],
)
def test_levels_have_the_official_bit_patterns(bits, patterns):
  levels = fs.apot_levels(bits)
  assert levels.dtype == np.float32
  found = ' '.join(f'{pattern:08x}' for pattern in levels.view(np.uint32))
  assert found == patterns


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('bits', [2, 3, 4, 5, 6, 7])
def test_levels_are_the_sums_of_the_base_sets(bits, dtype):
  levels = fs.apot_levels(bits, dtype)
  assert levels.dtype == dtype
  assert len(levels) == 2 ** (bits - 1)
  expected = [0, 1] if bits == 2 else np.sort(oracle.apot_levels(bits, dtype))
  np.testing.assert_array_equal(levels, expected)


# --- tables by hand (reference behaviour C1.7) ------------------------------

W = jnp.array([-0.30, -0.12, -0.05, 0, 0.03, 0.08, 0.15, 0.40])
G = jnp.array([1.0, -2, 3, -4, 5, -6, 7, -8])
WEIGHTS = {
  2: ([-1.2, -1.2, 0, 0, 0, 0, 1.2, 1.2], -3.01324),
  3: ([-1.2, -0.6, -0.3, 0, 0, 0.3, 0.6, 1.2], -9.76324),
  4: ([-1.2, -0.72, -0.36, -0.12, 0, 0.24, 0.72, 1.2], -8.31324),
  5: ([-1.2, -0.8, -0.4, -0.1, 0.025, 0.3, 0.6, 1.2], -9.24241),
}
# fmt: off
DETACHED = [4.89461, -9.78922, 14.6838, -19.5784,
            24.4731, -29.3677, 34.2623, -39.1569]
FULL_TERNARY = [-6.73164, -13.5908, 13.9252, -18.1636,
                27.1921, -24.4752, 42.1977, -20.3538]
FULL = [2.17101, -9.84576, 13.761, -21.12,
        22.5602, -31.8993, 30.8644, -6.49167]
# fmt: on


@pytest.mark.parametrize('gradient', ['detached', 'full'])
@pytest.mark.parametrize('bits', WEIGHTS)
def test_weights_follow_the_documented_table(bits, gradient):
  value, dw, dalpha = weight_function(bits, gradient)(W, jnp.float32(1.2), G)
  expected, expected_dalpha = WEIGHTS[bits]
  np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(dalpha, expected_dalpha, rtol=2e-6)
  full = FULL_TERNARY if bits == 2 else FULL
  np.testing.assert_allclose(
    dw, DETACHED if gradient == 'detached' else full, rtol=5e-6
  )


@pytest.mark.parametrize(
  ('bits', 'expected', 'expected_dalpha'),
  [
    (2, [0, 0, 0, 0, 0.666667, 1.33333, 1.33333, 2, 2, 2], 19.4233),
    (3, [0, 0, 0, 0.285714, 0.285714, 1.14286, 1.42857, 2, 2, 2], 18.8043),
  ],
)
def test_activations_follow_the_documented_table(
  bits, expected, expected_dalpha
):
  z = jnp.array([-1, 0, 0.1, 0.33, 0.34, 1, 1.5, 2, 2.5, 3])
  y, vjp = jax.vjp(lambda z, a: fs.quantize_activation(z, a, bits), z, 2.0)
  dz, dalpha = vjp(jnp.arange(1.0, 11))
  np.testing.assert_allclose(y, expected, rtol=5e-6)
  np.testing.assert_array_equal(dz, [0, 0, 3, 4, 5, 6, 7, 8, 0, 0])
  np.testing.assert_allclose(dalpha, expected_dalpha, rtol=5e-6)


def test_eight_bit_weights_follow_the_documented_table():
  w = jnp.array([-0.5, -0.2, -0.001, 0.0013, 0.1, 0.37])
  expected = [-0.501102, -0.201024, 0, 0, 0.0990551, 0.37]
  np.testing.assert_allclose(fs.quantize_weight_8bit(w), expected, rtol=2e-6)


# --- vectors of the official code -------------------------------------------

how = pytest.mark.parametrize('how', ['eager', 'jit'])


def compiled(how, function):
  return jax.jit(function) if how == 'jit' else function


@pytest.mark.parametrize('family', FAMILY)
@pytest.mark.parametrize('bits', [2, 3, 4, 5])
def test_weights_equal_the_official_code_s(shared, bits, family):
  golden = np.load(shared('golden', 'quant_weights.npz'))
  for tensor in ('conv3', 'conv1', 'fc'):
    w, g = golden[f'{tensor}/w'], golden[f'{tensor}/g']
    for i, alpha in enumerate(golden['alphas']):
      key = f'{family}/b{bits}/{tensor}/a{i}'
      expected = golden[f'{key}/wq']
      eager = fs.quantize_weight(w, alpha, bits, FAMILY[family])
      np.testing.assert_array_equal(eager, expected, key)
      value, dw, dalpha = weight_function(bits, FAMILY[family])(w, alpha, g)
      np.testing.assert_array_equal(value, expected, key)
      assert_gradient(dw, golden[f'{key}/grad_w'])
      # A sum of terms of either sign: judged by what was summed.
      terms = oracle.quantize_weight_gradient(w, alpha, bits, g, 'full')[2]
      assert_gradient(dalpha, golden[f'{key}/grad_alpha'], terms)


@pytest.mark.parametrize('bits', [3, 4, 5])
def test_levels_equal_the_official_code_s(shared, bits):
  golden = np.load(shared('golden', 'quant_weights.npz'))[f'grid/wbit{bits}']
  np.testing.assert_array_equal(fs.apot_levels(bits), np.sort(golden))
  np.testing.assert_array_equal(oracle.apot_levels(bits), golden)  # in order


@how
@pytest.mark.parametrize('bits', [2, 3, 4, 5])
def test_ties_between_levels_go_where_the_official_code_s_go(shared, bits, how):
  golden = np.load(shared('golden', 'quant_weights.npz'))
  for family in FAMILY:
    project = compiled(how, lambda x: quantize._project(x, 1.0, bits, False))
    np.testing.assert_array_equal(
      project(golden[f'ties/b{bits}/x']), golden[f'ties/b{bits}/{family}']
    )


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_activations_equal_the_official_code_s(shared, bits):
  golden = np.load(shared('golden', 'quant_acts.npz'))
  levels = 2**bits - 1
  for i, alpha in enumerate(golden['alphas']):
    x, g = golden[f'b{bits}/a{i}/x'], golden[f'b{bits}/a{i}/g']
    eager = fs.quantize_activation(x, alpha, bits)
    value, dx, dalpha = activation_function(levels)(x, alpha, g)
    terms = oracle.quantize_activation_gradient(x, alpha, levels, g)[1]
    for family in FAMILY:
      key = f'b{bits}/a{i}/{family}'
      np.testing.assert_array_equal(eager, golden[f'{key}/y'], key)
      np.testing.assert_array_equal(value, golden[f'{key}/y'], key)
      np.testing.assert_allclose(dx, golden[f'{key}/grad_x'], rtol=1e-6)
      assert_gradient(dalpha, golden[f'{key}/grad_alpha'], np.abs(terms).sum())


@how
@pytest.mark.parametrize(
  'layer', ['conv_s1', 'conv_s4k11', 'conv_negmax', 'fc']
)
def test_eight_bit_weights_equal_the_official_code_s(shared, layer, how):
  golden = np.load(shared('golden', 'first_last_layers.npz'))
  w = golden[f'{layer}/weight']
  value = compiled(how, fs.quantize_weight_8bit)(w)
  np.testing.assert_array_equal(value, golden[f'{layer}/wq'])
  if layer == 'conv_negmax':
    assert np.round(np.min(value) / np.max(w) * 127) < -127


@functools.cache
def layer_function(quantizer, stride, padding):
  """Answer and gradients of a layer, in PyTorch's layout."""

  def layer(weight, alpha, x, bias, offset):
    kernel = quantizer(weight, alpha) + offset
    if weight.ndim == 2:
      return x @ kernel.T + bias
    y = jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(padding, padding)] * 2
    )
    return y + bias[:, None, None]

  def run(g, *arguments):
    y, vjp = jax.vjp(layer, *arguments)
    return y, *vjp(g)

  return jax.jit(run)


@functools.cache
def quantizer_of(key):
  if not key.startswith('layer'):
    return lambda w, alpha: fs.quantize_weight_8bit(w)
  family, bits = FAMILY[key[5]], int(key[8])
  return lambda w, alpha: fs.quantize_weight(w, alpha, bits, family)


LAYERS = [
  *('conv_s1', 'conv_s4k11', 'conv_negmax', 'fc'),
  *(
    f'layer{family}/b{bits}/{kind}'
    for family in FAMILY
    for bits in (2, 3, 4)
    for kind in ('conv', 'fc')
  ),
]


@pytest.mark.parametrize('key', LAYERS)
def test_whole_layers_and_gradients_equal_the_official_code_s(shared, key):
  golden = np.load(shared('golden', 'first_last_layers.npz'))
  case = {
    name.rpartition('/')[2]: golden[name]
    for name in golden.files
    if name.startswith(f'{key}/')
  }
  weight, g = case['weight'], case['g']
  alpha = case.get('alpha', np.float32(1))
  bias = case.get('bias', np.zeros(len(weight), np.float32))
  function = layer_function(
    quantizer_of(key), int(case.get('stride', 2)), int(case.get('padding', 1))
  )
  y, dw, dalpha, dx, dbias, cotangent = function(
    g, weight, alpha, case['x'], bias, np.zeros_like(weight)
  )
  assert_gradient(y, case['y'])
  assert_gradient(dw, case['grad_w'])
  assert_gradient(dx, case['grad_x'])
  if 'grad_b' in case:
    assert_gradient(dbias, case['grad_b'])
  if 'alpha' in case:
    terms = oracle.quantize_weight_gradient(
      weight, alpha, int(key[8]), np.asarray(cotangent), 'full'
    )[2]
    assert_gradient(dalpha, case['grad_alpha'], terms)


# --- NumPy ------------------------------------------------------------------


def arrays(dtype, bound=3.0, size=24):
  """Arrays of one size: another would compile again."""
  width = 8 * np.dtype(dtype).itemsize
  elements = st.floats(-bound, bound, width=width, allow_subnormal=False)
  return hnp.arrays(dtype, size, elements=elements)


def clear_of_midpoints(x, bits):
  """Where rounding of mean and deviation cannot decide."""
  levels = fs.apot_levels(bits, np.float64)
  edges = np.append((levels[1:] + levels[:-1]) / 2, 1.0)
  distance = np.abs(np.abs(x.astype(np.float64))[:, None] - edges)
  return np.min(distance, -1) > 64 * np.finfo(x.dtype).eps


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('gradient', ['detached', 'full'])
@given(
  data=st.data(),
  bits=st.integers(2, 7),
  alpha=st.sampled_from([0.4, 1.2, 3.0, -1.4]),
)
def test_weights_agree_with_numpy(dtype, gradient, data, bits, alpha):
  w = data.draw(arrays(dtype))
  g = data.draw(arrays(dtype))
  assume(np.std(w) > 1e-2)
  alpha = dtype(alpha)
  assume(clear_of_midpoints(oracle.normalize(w) / alpha, bits).all())
  with jax.enable_x64(dtype == np.float64):
    value, dw, dalpha = weight_function(bits, gradient)(w, alpha, g)
  assert value.dtype == dtype
  np.testing.assert_array_equal(value, oracle.quantize_weight(w, alpha, bits))
  expected, expected_dalpha, terms = oracle.quantize_weight_gradient(
    w, alpha, bits, g, gradient
  )
  eps = np.finfo(dtype).eps
  # Far from zero, w - mean(w) has lost as many digits as |w| / std counts.
  lost = max(1, np.max(np.abs(w)) / np.std(w))
  scale = np.max(np.abs(g)) / np.std(w) * lost + 1e-30
  np.testing.assert_allclose(dw, expected, rtol=0, atol=100 * eps * scale)
  # Each term holds the weight's own rounding, so the cotangents count too.
  slack = terms + np.sum(np.abs(g)) * max(1, np.max(np.abs(w / alpha)))
  np.testing.assert_allclose(
    dalpha, expected_dalpha, rtol=0, atol=100 * eps * slack + 1e-30
  )


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@given(
  data=st.data(),
  levels=st.sampled_from([1, 3, 5, 7, 15, 31, 255]),
  alpha=st.sampled_from([0.4, 1.0, 1.37, 6.0]),
)
def test_activations_agree_with_numpy(dtype, data, levels, alpha):
  x, g = data.draw(arrays(dtype, 10.0)), data.draw(arrays(dtype))
  alpha = dtype(alpha)
  with jax.enable_x64(dtype == np.float64):
    value, dx, dalpha = activation_function(levels)(x, alpha, g)
    if levels + 1 == 2 ** int(np.log2(levels + 1)):
      bits = int(np.log2(levels + 1))
      public = fs.quantize_activation(x, alpha, bits)
      np.testing.assert_array_equal(public, value)
  assert value.dtype == dtype
  np.testing.assert_array_equal(
    value, oracle.quantize_activation(x, alpha, levels)
  )
  expected, terms = oracle.quantize_activation_gradient(x, alpha, levels, g)
  np.testing.assert_array_equal(dx, expected)
  # A term is a difference of two numbers up to 1, times its cotangent.
  slack = np.abs(terms).sum() + np.abs(g).sum()
  np.testing.assert_allclose(
    dalpha,
    terms.sum(),
    rtol=0,
    atol=30 * np.finfo(dtype).eps * slack + 1e-30,
  )


@given(w=arrays(np.float32))
@example(w=np.linspace(-1, 0.2, 24, dtype=np.float32))
def test_eight_bit_weights_agree_with_numpy(w):
  assume(abs(np.max(w)) > 1e-3)
  value, vjp = jax.vjp(jax.jit(fs.quantize_weight_8bit), w)
  np.testing.assert_array_equal(value, oracle.quantize_weight_8bit(w))
  g = np.arange(24, dtype=np.float32)
  np.testing.assert_array_equal(vjp(g)[0], g)


# --- derivatives and transformations ----------------------------------------

RANDOM = np.random.default_rng(0)
X, TANGENT, COTANGENT = RANDOM.normal(size=(3, 50)).astype(np.float32)
FUNCTIONS = {
  'activation': lambda x, alpha: fs.quantize_activation(x, alpha, 3),
  'detached': lambda x, alpha: fs.quantize_weight(x, alpha, 3, 'detached'),
  'full': lambda x, alpha: fs.quantize_weight(x, alpha, 3, 'full'),
  'ternary': lambda x, alpha: fs.quantize_weight(x, alpha, 2, 'full'),
  '8bit': lambda x, alpha: fs.quantize_weight_8bit(x) + 0 * alpha,
}
all_functions = pytest.mark.parametrize('name', FUNCTIONS)


@all_functions
def test_forward_and_reverse_derivatives_are_transposes(name):
  function, alpha = FUNCTIONS[name], jnp.float32(1.2)

  @jax.jit
  def both(x, alpha):
    forward = jax.jvp(function, (x, alpha), (TANGENT, jnp.float32(0.7)))
    again, vjp = jax.vjp(function, x, alpha)
    return *forward, again, *vjp(COTANGENT)

  value, tangent, again, dx, dalpha = both(X, alpha)
  np.testing.assert_array_equal(value, again)
  assert np.linalg.norm(dx) > 1
  forward = np.vdot(COTANGENT, tangent)
  reverse = np.vdot(dx, TANGENT) + 0.7 * dalpha
  np.testing.assert_allclose(forward, reverse, rtol=1e-4)


@all_functions
def test_vmap_quantises_each_tensor_alone(name):
  tensors = RANDOM.normal(size=(3, 5, 4)).astype(np.float32)
  alphas = np.array([0.5, 1.0, 2.0], np.float32)
  batch = jax.vmap(FUNCTIONS[name])(tensors, alphas)
  for tensor, alpha, value in zip(tensors, alphas, batch, strict=True):
    np.testing.assert_allclose(
      value, FUNCTIONS[name](tensor, alpha), rtol=1e-6, atol=1e-7
    )


@all_functions
def test_half_precision_is_computed_in_float32_and_returned(name):
  dtype = jnp.bfloat16
  x, alpha = jnp.asarray(X, dtype), jnp.float32(1.2)
  value, vjp = jax.vjp(FUNCTIONS[name], x, alpha)
  wide = FUNCTIONS[name](x.astype(jnp.float32), alpha)
  if name == '8bit':  # the test's own `+ 0 * alpha` widens it
    value = fs.quantize_weight_8bit(x)
  assert value.dtype == dtype
  np.testing.assert_array_equal(value, wide.astype(dtype))
  dx, dalpha = vjp(jnp.ones_like(FUNCTIONS[name](x, alpha)))
  assert (dx.dtype, dalpha.dtype) == (dtype, jnp.float32)
  assert np.isfinite(dx.astype(jnp.float32)).all()


def test_straight_through_keeps_every_bit_of_the_value():
  q = jax.jit(lambda x: quantize.straight_through(x * 0.1, x))
  np.testing.assert_array_equal(q(X), X * np.float32(0.1))
  np.testing.assert_array_equal(jax.grad(lambda x: q(x).sum())(X), 1)


def test_division_by_a_scalar_is_ieee_division_under_jit():
  divisor = np.float32(0.73)
  x = RANDOM.normal(size=10_000).astype(np.float32)
  np.testing.assert_array_equal(
    jax.jit(quantize.divide)(x, divisor), x / divisor
  )


# --- derivatives of higher order --------------------------------------------


def surrogate(name):
  """The rule written out: what is rounded moves as what it stands for."""
  stop = jax.lax.stop_gradient

  def activation(x, alpha):
    ratio = jnp.maximum(x, 0) / alpha
    share = jnp.round(jnp.clip(ratio, 0, 1) * 7) / 7
    inside = ratio + stop(share - ratio)
    return alpha * jnp.where(ratio > 1, 1, jnp.where(x > 0, inside, 0))

  def weight(bits, full):
    def function(w, alpha):
      mean, std = jnp.mean(w), jnp.std(w, ddof=1)
      n = (w - mean) / std if full else (w - stop(mean)) / stop(std)
      x = stop(n / alpha)
      level = stop(fs.quantize_weight(w, alpha, bits) / alpha)
      outside = jnp.abs(x) > 1
      through = jnp.where(outside & full & (bits > 2), stop(n), n)
      slope = jnp.where(outside, jnp.sign(x), level - x)
      value = stop(level * alpha)
      return value + through - stop(through) + slope * (alpha - stop(alpha))

    return function

  def eight_bit(w, alpha):
    return w + stop(fs.quantize_weight_8bit(w) - w) + 0 * alpha

  return {
    'activation': activation,
    'detached': weight(3, False),
    'full': weight(3, True),
    'ternary': weight(2, True),
    '8bit': eight_bit,
  }[name]


@all_functions
def test_derivatives_of_every_order_follow_the_rule(name):
  with jax.enable_x64(True):
    x, alpha = jnp.asarray(X[:8], 'float64'), jnp.float64(1.2)
    mix = jnp.asarray(RANDOM.normal(size=8))

    def orders(function):
      def loss(x, alpha):
        return jnp.sum(mix * function(x, alpha) ** 3)

      return (
        *every_order(loss, x, alpha, mix),
        jax.vmap(jax.hessian(loss), (0, None))(jnp.stack([x, -x]), alpha),
      )

    got = jax.jit(lambda: orders(FUNCTIONS[name]))()
    want = jax.jit(lambda: orders(surrogate(name)))()
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(want)) > 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    jax.tree.map(close, got, want)


def test_the_second_derivative_of_an_activation_by_hand():
  cube = jax.hessian(lambda x: fs.quantize_activation(x, 2.0, 3) ** 3)
  np.testing.assert_allclose(cube(0.9), 6 * 6 / 7, rtol=1e-6)
  assert cube(2.5) == cube(-1.0) == 0
  third = jax.grad(jax.grad(jax.grad(lambda x: straight(x, x) ** 3)))
  assert third(1.25) == 6


def straight(value, proxy):
  return quantize.straight_through(jnp.round(value), proxy)


# --- bad input --------------------------------------------------------------


@pytest.mark.parametrize('bits', [-1, 0, 1, 8, 32, 2.0, '2', None])
def test_weights_of_a_wrong_bit_width_are_refused(bits):
  with pytest.raises(fs.UserError, match=r'from 2 to 7'):
    fs.quantize_weight(W, 1.0, bits)
  with pytest.raises(fs.UserError, match=r'from 2 to 7'):
    fs.apot_levels(bits)


@pytest.mark.parametrize('bits', [-1, 0, 17, 32, 2.0, '2', None])
def test_activations_of_a_wrong_bit_width_are_refused(bits):
  with pytest.raises(fs.UserError, match=r'from 1 to 16'):
    fs.quantize_activation(W, 1.0, bits)


def test_an_unknown_gradient_family_is_refused():
  with pytest.raises(fs.UserError, match='clipped'):
    fs.quantize_weight(W, 1.0, 2, gradient='clipped')


@how
@all_functions
def test_not_a_number_stays_one(name, how):
  x = X.copy()
  x[7] = np.nan
  value = compiled(how, FUNCTIONS[name])(x, jnp.float32(1.2))
  assert np.isnan(value[7])


@how
@pytest.mark.parametrize('alpha', [0.0, -1.0, np.nan, -np.inf])
def test_a_clip_without_meaning_gives_not_a_number(alpha, how):
  value = compiled(how, FUNCTIONS['activation'])(X, jnp.float32(alpha))
  assert np.isnan(value).all()
  if not alpha < 0:  # of weights, either sign is right
    value = compiled(how, FUNCTIONS['full'])(X, jnp.float32(alpha))
    assert np.isnan(value).all()


@pytest.mark.parametrize(
  'function', [fs.quantize_weight_8bit, lambda x: fs.quantize_weight(x, 1.0, 3)]
)
def test_tensors_without_a_scale_give_not_a_number(function):
  assert np.isnan(function(jnp.zeros(5))).all()


@all_functions
@pytest.mark.parametrize('dtype', [np.int32, np.uint8, bool, np.complex64])
def test_arrays_that_are_not_floats_are_refused(name, dtype):
  with pytest.raises(fs.UserError, match='floating point'):
    FUNCTIONS[name](np.ones(3, dtype), 1.0)


def test_ranks_are_promoted_explicitly():
  x, alpha = np.ones((2, 3, 4), np.float32), np.linspace(1, 2, 4)
  want = fs.quantize_activation(x, alpha, 3)
  with jax.numpy_rank_promotion('raise'):
    np.testing.assert_array_equal(fs.quantize_activation(x, alpha, 3), want)
    jax.grad(lambda a: fs.quantize_activation(x, a, 3).sum())(alpha)
    one = fs.quantize_activation(np.float32(1), alpha, 3)
  np.testing.assert_array_equal(one, want[0, 0])
