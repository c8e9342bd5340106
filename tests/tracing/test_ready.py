"""A folded function: what hangs on parameters alone is computed once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax.evaluation.evaluate import evaluate
from fastsnn_jax.nn.folded import fold as folding


def model(params, x):
  """Quantised kernels, batch norm, a layer called twice under `jit`."""

  @jax.jit
  def layer(params, x):
    x = x @ fs.quantize_weight(params['w'], params['alpha'], 3)
    factor = params['scale'] / jnp.sqrt(params['var'] + 1e-5)
    x = (x - params['mean']) * factor + params['bias']
    return fs.quantize_activation(x, jnp.exp(params['theta']), 3)

  x = x.reshape(len(x), -1)
  x = layer(params['one'], x) + 0.0 * params['unused'].sum()
  return layer(params['two'], x) @ params['head']


def drawn():
  keys = iter(jax.random.split(jax.random.key(0), 9))

  def layer(inputs):
    return {
      'w': jax.random.normal(next(keys), (inputs, 8)),
      'alpha': jnp.float32(2.0),
      'scale': jnp.linspace(0.3, 0.6, 8),
      'var': jnp.linspace(1.0, 2.0, 8),
      'mean': jax.random.normal(next(keys), (8,)),
      'bias': jnp.linspace(-0.2, 0.3, 8),
      'theta': jnp.float32(0.2),
    }

  head = jax.random.normal(next(keys), (8, 3))
  return {'one': layer(4), 'two': layer(8), 'head': head, 'unused': head}


PARAMS = drawn()
IMAGES = jax.random.normal(jax.random.key(9), (5, 2, 2, 1))
NETWORK, VARIABLES = fs.from_function(
  model, PARAMS, IMAGES, mean=(0.5,), std=(0.25,)
)


@pytest.mark.parametrize('mode', [None, 'settled'])
def test_it_answers_as_before(mode):
  network = NETWORK if mode is None else fs.to_spiking(NETWORK, mode)
  folded, own = fs.fold(network, VARIABLES)
  assert folded.folded
  assert folded.firing == network.firing
  for images in (IMAGES, IMAGES[:1]) if mode is None else (IMAGES,):
    want, activations = network.apply(VARIABLES, images)
    found, same = folded.apply(own, images)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    for name, activity in activations.items():
      np.testing.assert_allclose(same[name], activity, rtol=1e-5, atol=1e-6)
  thetas = folded.thetas(own)
  np.testing.assert_allclose(thetas['site_2'], np.exp(0.2), rtol=1e-6)
  assert fs.fold(folded, own)[0] is folded


def _primitives(jaxpr):
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(part, 'jaxpr', part)
        if hasattr(inner, 'eqns'):
          yield from _primitives(inner)


def test_nothing_of_parameters_alone_is_left():
  folded, own = fs.fold(NETWORK, VARIABLES)
  before, after = (
    set(_primitives(jax.make_jaxpr(net.apply)(tree, IMAGES).jaxpr))
    for net, tree in ((NETWORK, VARIABLES), (folded, own))
  )
  gone = {'sqrt', 'exp', 'sign', 'rsqrt'} & before
  assert {'sqrt', 'exp', 'sign'} <= gone
  assert not gone & after
  shapes = {x.shape for x in jax.tree.leaves(own)}
  assert (4, 8) in shapes  # the quantised kernel
  kept = sum(x.size for x in jax.tree.leaves(own))
  assert kept < sum(x.size for x in jax.tree.leaves(PARAMS))


def test_evaluation_folds_by_itself(monkeypatch):
  folded = []
  fold = type(NETWORK).fold
  monkeypatch.setattr(
    type(NETWORK), 'fold', lambda *x: folded.append(x) or fold(*x)
  )
  pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1), np.uint8)
  labels = fs.classify(NETWORK, VARIABLES, pixels)
  found = evaluate(NETWORK, VARIABLES, {'image': pixels, 'label': labels})
  assert found['accuracy'] == 1
  settled = fs.to_spiking(NETWORK, 'settled')  # each device by itself
  data = {'image': pixels, 'label': labels}
  assert evaluate(settled, VARIABLES, data)['accuracy'] == 1
  assert len(folded) == 2  # kept for the same arrays
  first = folding.ready(NETWORK, VARIABLES)
  assert folding.ready(NETWORK, VARIABLES) is first
  moved = jax.tree.map(lambda x: 1.1 * x, VARIABLES)
  again, own = folding.ready(NETWORK, moved)
  assert again == first[0]  # one program for all weights
  mine, others = (x['params']['kept'][0] for x in (own, first[1]))
  assert mine['step'] != others['step']


def test_under_jit_it_is_folded_too():
  def run(variables, images):
    return jnp.asarray(
      fs.fold(NETWORK, variables)[0].apply(
        fs.fold(NETWORK, variables)[1], images
      )[0]
    )

  want, _ = NETWORK.apply(VARIABLES, IMAGES)
  np.testing.assert_allclose(
    jax.jit(run)(VARIABLES, IMAGES), want, rtol=1e-5, atol=1e-6
  )


def test_a_function_whose_constants_follow_the_batch_stays():
  def tiled(params, x):
    x = x.reshape(len(x), -1)
    shift = jnp.tile(params, (len(x), 1)) * 2
    return fs.quantize_activation(x + shift, 1.0, 2) @ params

  params = jnp.linspace(-1.0, 1.0, 4)
  network, variables = fs.from_function(tiled, params, IMAGES)
  same, own = fs.fold(network, variables)
  assert same is network
  assert own is variables


def test_a_folded_function_is_not_saved(tmp_path):
  with pytest.raises(fs.UserError, match='save: a folded network'):
    fs.save(tmp_path, *fs.fold(NETWORK, VARIABLES))
  assert dataclasses.replace(NETWORK) == NETWORK
