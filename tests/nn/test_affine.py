"""Synapses of one's own: not affine unless declared, or shown at conversion."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax.nn.layers import Synapse
from fastsnn_jax.nn.tables.affine import shown

MAPS = ((4, 4, 6),)


class LayerNorm(Synapse):
  @nn.compact
  def __call__(self, x, train=False):
    return nn.LayerNorm()(x)


class Gelu(Synapse):
  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(6)(nn.gelu(nn.Dense(6)(x)))


class Attention(Synapse):
  @nn.compact
  def __call__(self, x, train=False):
    q, k, v = jnp.split(nn.Dense(18)(x), 3, -1)
    weights = jax.nn.softmax(jnp.einsum('nhwc,nijc->nhwij', q, k), (-2, -1))
    return jnp.einsum('nhwij,nijc->nhwc', weights, v)


class Gated(Synapse):
  """Starts as the identity: its gate is 0 at first."""

  @nn.compact
  def __call__(self, x, train=False):
    return x + self.param('gate', nn.initializers.zeros, ()) * nn.gelu(x)


class Inherits(fs.Conv):
  """What its base declares is not true of it."""

  def __call__(self, x, train=False, quanta=()):
    return nn.relu(super().__call__(x, train))


class Map(Synapse):
  function: str

  @nn.compact
  def __call__(self, x, train=False):
    return {
      'square': lambda: x * x,
      'abs': lambda: jnp.abs(x),
      'clip': lambda: jnp.clip(x, -20, 20),
      'softmax': lambda: jax.nn.softmax(x),
      'normed': lambda: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
      'dense': lambda: nn.Dense(6)(x),
      'einsum': lambda: jnp.einsum('nhwc,cd->nhwd', x, jnp.ones((6, 6))),
      'roll': lambda: jnp.roll(x, 1, 2),
      'mean': lambda: x - jnp.mean(x, (1, 2), keepdims=True),
      'scale and bias': lambda: (
        x * self.param('scale', nn.initializers.zeros, (6,))
        + self.param('bias', nn.initializers.ones, (6,))
      ),
      'batch norm': lambda: nn.BatchNorm(not train)(x),
    }[self.function]()


class Declared(LayerNorm):
  affine = True


class Refused(Synapse):
  affine = False

  def __call__(self, x, train=False):
    return x


def table(synapse, **fields):
  rows = (
    fs.Layer('stem', fs.Conv(6)),
    fs.Layer('own', synapse, ('stem',)),
    fs.Layer('head', fs.Dense(3, norm=False), ('own',)),
  )
  return fs.Network(rows, fs.QuantRelu(2), **fields)


NOT = {
  'layer norm': LayerNorm(),
  'gelu inside': Gelu(),
  'attention': Attention(),
  'gelu behind a gate of 0': Gated(),
  'a subclass of Conv': Inherits(6),
  'in a chain': fs.Chain((fs.Conv(6), LayerNorm())),
  **{k: Map(k) for k in ('square', 'abs', 'clip', 'softmax', 'normed')},
}
AFFINE = ('dense', 'einsum', 'roll', 'mean', 'scale and bias', 'batch norm')


@pytest.mark.parametrize('name', NOT)
def test_a_synapse_that_is_not_affine_is_refused_by_its_row(name):
  with pytest.raises(
    fs.UserError, match=r"'own' \(\w+\).*not affine.*affine = True"
  ):
    fs.to_spiking(table(NOT[name]))


@pytest.mark.parametrize('name', AFFINE)
def test_a_synapse_that_is_affine_is_taken(name):
  assert fs.to_spiking(table(Map(name))).spiking
  assert shown(Map(name), MAPS)


def joined(synapse):
  rows = (
    fs.Layer('stem', fs.Conv(6)),
    fs.Layer('own', synapse, ('stem', 'stem')),
    fs.Layer('head', fs.Dense(3, norm=False), ('own',)),
  )
  return fs.Network(rows, fs.QuantRelu(2))


@pytest.mark.parametrize(
  'make',
  [
    lambda part: fs.Residual(fs.Conv(6), part),
    lambda part: fs.Residual(part),
    lambda part: fs.Concat((None, part)),
  ],
  ids=['shortcut', 'body', 'concat'],
)
def test_a_part_of_two_inputs_is_tried_with_both(make):
  assert fs.to_spiking(joined(make(Map('roll')))).spiking
  for name in ('square', 'abs'):
    with pytest.raises(fs.UserError, match=r"'own' .*not affine"):
      fs.to_spiking(joined(make(Map(name))))


def test_a_declared_one_is_not_tried(monkeypatch):
  monkeypatch.setattr('fastsnn_jax.nn.tables.affine.shown', None)
  assert fs.to_spiking(table(Declared())).spiking
  assert fs.to_spiking(table(fs.Chain((fs.Conv(6), Declared())))).spiking
  with pytest.raises(fs.UserError, match='not affine'):
    fs.to_spiking(table(Refused()))


def test_one_that_no_usual_image_fits_is_tried_at_the_first_images():
  class Fixed(Synapse):
    @nn.compact
    def __call__(self, x, train=False):
      return jnp.abs(x.reshape(-1, 5, 7, 6))

  spiking = fs.to_spiking(table(Fixed()))
  images = jax.ShapeDtypeStruct((2, 5, 7, 3), np.float32)
  ann = dataclasses.replace(spiking, neuron=fs.QuantRelu(2))
  variables = jax.eval_shape(ann.init, jax.random.key(0), images)
  with pytest.raises(fs.UserError, match=r"'own'.*not affine"):
    jax.eval_shape(spiking.apply, variables, images)


def test_it_is_tried_under_transformations_too():
  network = table(Map('einsum'))
  images = jnp.ones((1, 5, 7, 3))  # of a size that was not tried before
  variables = network.init(jax.random.key(0), images)
  spiking = dataclasses.replace(network, neuron=fs.IntegrateAndFire(3))

  @jax.jit
  def gradient(images):
    return jax.grad(lambda x: spiking.apply(variables, x)[0].sum())(images)

  shown.cache_clear()
  assert gradient(images).shape == images.shape
  assert shown.cache_info().misses == 1
