"""What hangs on the first arguments alone is computed once."""

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.folded import static


def function(params, x):
  a, b = params
  kernel = jnp.tanh(a) @ a  # of parameters alone
  shift = jnp.broadcast_to(jnp.exp(b), x.shape)  # a copy of what is kept
  return (x @ kernel + shift) * b, jnp.arange(3.0) + a[0, 0]


PARAMS = jnp.arange(9.0).reshape(3, 3) / 9, jnp.ones(3)
X = jnp.linspace(0.0, 1.0, 6).reshape(2, 3)


def test_a_program_is_cut_where_parameters_end():
  closed = jax.make_jaxpr(function)(PARAMS, X)
  cut = static.plan(closed.jaxpr, 2)
  names = [closed.jaxpr.eqns[i].primitive.name for i in cut.rest]
  assert 'tanh' not in names
  assert 'exp' not in names
  assert names.count('dot_general') == 1
  assert cut.leaves == (1,)
  kept = static.before(closed, cut, PARAMS)
  assert sorted(x.shape for x in kept) == [(3,), (3,), (3, 3)]
  found = static.behind(closed, cut, kept, [None, PARAMS[1], X])
  for one, other in zip(found, function(PARAMS, X), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_is_hoisted_runs_for_other_values():
  @jax.jit
  def run(params, x):
    late = static.hoisted(function, params, x)
    return jax.lax.fori_loop(0, 3, lambda _, x: late(x)[0], x)

  want = X
  for _ in range(3):
    want = function(PARAMS, want)[0]
  np.testing.assert_allclose(run(PARAMS, X), want, rtol=1e-5)
  body = str(jax.make_jaxpr(run)(PARAMS, X))
  assert body.index('tanh') < body.index('scan[')
  assert body.count('tanh') == 1
