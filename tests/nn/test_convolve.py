"""`convolve` is the library's convolution, with tangents written by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P
from support.convolution import loops

from fastsnn_jax.nn.convolve import convolve


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


FORMS = {
  'one axis': ((9,), (3,), 2, 1, 1, 1),
  'three axes': ((4, 3, 5), (2, 3, 1), (1, 2, 1), 'SAME', 1, 1),
  'rectangle': ((7, 6), (3, 1), (2, 1), ((0, 2), (1, 0)), 1, 1),
  'dilated by axis': ((7, 8), (2, 3), 1, (1, 2), (3, 2), 1),
  'two groups': ((5, 5), (3, 3), 2, 'VALID', 1, 2),
  'depthwise': ((6, 5), (3, 2), (2, 3), 'SAME', (1, 2), 4),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_its_definition_and_so_are_both_modes(form):
  sides, window, *rest, groups = FORMS[form]
  with jax.enable_x64(True):
    x, kernel, dx, dkernel = drawn(
      *(0, (2, *sides, 4), (*window, 4 // groups, 8)),
      *((2, *sides, 4), (*window, 4 // groups, 8)),
    )

    def function(x, kernel):
      return convolve(x, kernel, *rest, groups)

    value, tangent = jax.jvp(function, (x, kernel), (dx, dkernel))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-11)
    close(value, loops(np.asarray(x), np.asarray(kernel), *rest, groups))
    # Bilinear: the product rule.
    close(tangent, function(dx, kernel) + function(x, dkernel))
    (g,) = drawn(1, value.shape)
    back = jax.vjp(function, x, kernel)[1](g)
    turned = sum(
      np.vdot(*pair) for pair in zip(back, (dx, dkernel), strict=True)
    )
    close(turned, np.vdot(g, tangent))


def test_derivatives_of_every_order_and_mode():
  with jax.enable_x64(True):
    x, kernel, dx, dkernel = drawn(0, *((1, 4, 4, 1), (3, 3, 1, 2)) * 2)
    window = 2, 1, 1

    def loss(function, x, kernel):
      return jnp.sum(function(x, kernel, *window) ** 3)

    def all_of(function):
      f = functools.partial(loss, function)
      forward = jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (dx, dkernel))[1]
      _, linear = jax.linearize(f, x, kernel)
      third = jax.jacfwd(jax.hessian(lambda s: f(s * x, s * s * kernel)))(1.0)
      return (
        *(forward, linear(dx, dkernel), third),
        *(jax.jacfwd(f, 1)(x, kernel), jax.hessian(f, 1)(x, kernel)),
      )

    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
      jax.jit(lambda: all_of(convolve))(),
      jax.jit(lambda: all_of(reference))(),
    )


def test_gradients_are_convolutions_in_the_forward_s_layout():
  # Those that JAX derives by itself are not, and are slow in a scan on a CPU.
  def loss(x, kernel):
    return jnp.sum(convolve(x, kernel, 1, 1) ** 2)

  x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
  text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
  specs = re.findall(
    r'lhs_spec=(.*?), rhs_spec=(.*?), out_spec=(.*?)\)\n', text
  )
  plain = '(0, 3, 1, 2)', '(3, 2, 0, 1)', '(0, 3, 1, 2)'
  assert specs == [plain] * 3


@pytest.mark.parametrize('axis', ['Auto', 'Explicit'])
def test_gradients_on_a_mesh_are_those_of_one_device(axis):
  x, kernel = drawn(0, (4, 5, 5, 2), (3, 3, 2, 3))

  def grads(x, kernel):
    def loss(x, kernel):
      return jnp.sum(jnp.sin(convolve(x, kernel, 2, 1)))

    return jax.grad(loss, (0, 1))(x, kernel)

  want = grads(x, kernel)
  mesh = jax.make_mesh((4,), ('d',), (getattr(jax.sharding.AxisType, axis),))
  with jax.set_mesh(mesh):
    if axis == 'Auto':
      specs = P('d'), P()
      grads = jax.shard_map(grads, mesh=mesh, in_specs=specs, out_specs=specs)
    rows, whole = (jax.NamedSharding(mesh, P(*axes)) for axes in ('d', ''))
    shared = jax.device_put(x, rows), jax.device_put(kernel, whole)
    got = jax.jit(grads)(*shared)
  for mine, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
