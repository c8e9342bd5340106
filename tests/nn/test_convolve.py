"""`convolve` is the library's convolution, with gradients written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fastsnn_jax.nn.layers import convolve


def reference(x, kernel, stride, padding, dilation=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((padding, padding),) * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def drawn(seed, *shapes):
  random = np.random.default_rng(seed)
  return [jnp.asarray(random.normal(size=shape)) for shape in shapes]


def assert_equals_reference(x, kernel, *window):
  """Value and both gradients, in float64 where rounding cannot hide a slip."""
  want, pull_reference = jax.vjp(lambda *a: reference(*a, *window), x, kernel)
  got, pull = jax.vjp(lambda *a: convolve(*a, *window), x, kernel)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
  (cotangent,) = drawn(1, want.shape)
  for mine, theirs in zip(
    pull(cotangent), pull_reference(cotangent), strict=True
  ):
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-11)


@settings(max_examples=6)
@given(st.data())
def test_value_and_gradients_are_those_of_lax(data):
  draw = data.draw
  kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
  padding = draw(st.integers(0, 3))
  dilation = draw(st.integers(1, 3))
  windows = [(k - 1) * dilation + 1 for k in kernel]
  sizes = [draw(st.integers(max(1, w - 2 * padding), 10)) for w in windows]
  stride = draw(st.integers(1, 4))
  batch, features, out = (draw(st.integers(1, 3)) for _ in range(3))
  with jax.enable_x64(True):
    x, weights = drawn(0, (batch, *sizes, features), (*kernel, features, out))
    assert_equals_reference(x, weights, stride, padding, dilation)


@pytest.mark.parametrize(
  ('size', 'kernel', 'stride', 'padding', 'dilation'),
  [
    (8, 3, 1, 1, 1),
    (8, 3, 2, 1, 1),  # the window does not reach the last row
    (7, 3, 2, 1, 1),
    (8, 1, 2, 0, 1),  # a projection: every other pixel unseen
    (23, 11, 4, 2, 1),  # AlexNet's first
    (5, 5, 1, 2, 1),
    (6, 3, 2, 0, 1),
    (1, 3, 1, 1, 1),  # a map of one pixel
    (9, 3, 1, 2, 2),
    (9, 3, 1, 12, 12),  # DeepLab's: of nine, only the middle sees the map
    (8, 3, 2, 3, 3),
  ],
)
def test_the_networks_shapes_have_the_gradients_of_lax(
  size, kernel, stride, padding, dilation
):
  with jax.enable_x64(True):
    x, weights = drawn(0, (2, size, size, 3), (kernel, kernel, 3, 4))
    assert_equals_reference(x, weights, stride, padding, dilation)


def test_vmap_of_grad_is_a_loop_of_grads():
  x, kernels = drawn(0, (2, 6, 6, 2), (3, 3, 3, 2, 3))
  x, kernels = x.astype(jnp.float32), kernels.astype(jnp.float32)

  def loss(kernel, x):
    return jnp.sum(jnp.sin(convolve(x, kernel, 2, 1)))

  grads = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(kernels, x)
  each = [jax.grad(loss, (0, 1))(kernel, x) for kernel in kernels]
  for i in range(2):
    want = np.stack([pair[i] for pair in each])
    np.testing.assert_allclose(grads[i], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_dtypes_stay(dtype):
  x, kernel = jnp.ones((1, 4, 4, 2), dtype), jnp.ones((3, 3, 2, 3), dtype)
  value, pull = jax.vjp(lambda *a: convolve(*a, 1, 1), x, kernel)
  assert value.dtype == dtype
  assert [g.dtype for g in pull(value)] == [dtype, dtype]


def test_forward_mode_is_refused_as_documented():
  x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
  with pytest.raises(TypeError, match='custom_vjp'):
    jax.jvp(lambda x: convolve(x, kernel, 1, 1), (x,), (x,))
