"""Every form of a synapse: converted without loss; misuse is told at once."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax.nn.layers import BatchNorm

# Form: (sides of the image, the synapse in the middle).
FORMS = {
  'rectangle': ((6, 6), fs.Conv(4, kernel=(3, 1), padding=(1, 0))),
  'strides': ((6, 6), fs.Conv(4, stride=(2, 1))),
  'pairs': ((6, 5), fs.Conv(4, padding=((2, 0), (0, 1)))),
  'same': ((5, 6), fs.Conv(4, kernel=4, stride=2, padding='SAME')),
  'valid': ((5, 6), fs.Conv(4, kernel=(2, 3), padding='VALID')),
  'dilation': ((6, 6), fs.Conv(4, dilation=(2, 1), padding=(2, 1))),
  'groups': ((5, 5), fs.Conv(6, groups=2, weights=fs.Apot(3))),
  'depthwise': ((5, 5), fs.Conv(8, groups=4, weights=fs.EightBit())),
  'one axis': ((9,), fs.Conv(4, kernel=(5,), stride=2, padding=2)),
  'one axis by input': ((9,), fs.Conv(4, weights=fs.Apot(4))),
  'three axes': ((4, 3, 3), fs.Conv(4, kernel=(1, 3, 2), padding='SAME')),
  # Means of an odd number: of an even one, levels lie half-way.
  'pool': ((6, 6), fs.AveragePool(3)),
  'pool and weights': ((4, 6), fs.Chain((fs.AveragePool(2), fs.Conv(4)))),
  'pool overlapping': ((5, 6), fs.AveragePool(3, 2, 1)),
  'pool of one axis': ((7,), fs.AveragePool((3,), 2, 'SAME')),
  'features': ((), fs.Dense(6, weights=fs.Apot(3))),
}


def table(sides, middle):
  first = fs.Conv(4) if sides else fs.Dense(4)
  pool = fs.GlobalAveragePool()
  head = fs.Dense(3, norm=False)
  rows = (
    fs.Layer('stem', first),
    fs.Layer('mid', middle, 'stem'),
    fs.Layer('head', fs.Chain((pool, head)) if sides else head, 'mid'),
  )
  return fs.Network(rows, fs.QuantRelu(2, 2.5))


@pytest.mark.once
@pytest.mark.parametrize('form', FORMS)
def test_settled_is_quantised_in_every_form(form):
  sides, middle = FORMS[form]
  ann = table(sides, middle)
  with jax.enable_x64(True):
    draw = np.random.default_rng(0)
    images = draw.normal(size=(4, *sides, 2))
    shapes = jax.eval_shape(ann.init, jax.random.key(0), images)

    def leaf(path, like):
      fixed = {'theta': 2.5, 'weight_alpha': 3.0, 'scale': 1, 'var': 1}
      if (name := path[-1].key) in fixed:
        return np.full(like.shape, fixed[name], 'float64')
      return draw.normal(size=like.shape) * 0.5

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    settled = fs.to_spiking(ann, 'settled', settle=16)

    @jax.jit
    def both(variables, images):
      return [net.apply(variables, images) for net in (ann, settled)]

    (want, levels), (output, spikes) = both(variables, images)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    close(output, want)
    close(settled.neuron.decode(spikes['mid']), levels['mid'])
    assert len(np.unique(np.round(levels['mid'], 6))) > 2


def test_average_pooling_counts_the_padding():
  x = np.arange(12.0, dtype=np.float32).reshape(1, 3, 4, 1)
  padded = np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
  want = padded.reshape(1, 2, 2, 2, 2, 1).mean((2, 4))
  pool = fs.AveragePool(2, padding=((1, 0), (0, 0)))
  np.testing.assert_allclose(pool.apply({}, x), want)
  half = pool.apply({}, jnp.bfloat16(x))
  np.testing.assert_array_equal(half, jnp.bfloat16(want))


def test_same_leaves_a_share_of_the_pixels():
  for side in (5, 6, 7):
    x = jnp.ones((1, side, side, 1))
    conv = fs.Conv(1, kernel=3, stride=2, padding='same')
    shape = jax.eval_shape(conv.init_with_output, jax.random.key(0), x)[0].shape
    assert shape == (1, -(-side // 2), -(-side // 2), 1)


def test_a_text_is_one_input():
  assert fs.Layer('b', fs.Conv(4), 'conv1').inputs == ('conv1',)
  assert fs.Layer('b', fs.Conv(4), ['conv1']).inputs == ('conv1',)
  with pytest.raises(fs.UserError, match="'conv1' is no row"):
    fs.Network((fs.Layer('b', fs.Conv(4), inputs='conv1'),), fs.Relu())


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (
      lambda: fs.Layer('a', fs.Conv(4), ('image', 'image')),
      "'a': Conv.*Concat",
    ),
    (lambda: fs.Layer('a', fs.Dense(4), ()), "'a': Dense does not take 0"),
    (lambda: fs.Layer('a', fs.Residual(fs.Conv(4))), "'a': Residual.*1 input"),
    (lambda: fs.Layer('a', fs.Concat((None,)), ('b', 'c')), 'Concat.*2 inputs'),
    (lambda: fs.Layer('a', nn.Conv(4, (3, 3))), r"'a': Conv \(flax.*fs.Conv"),
    (lambda: fs.Layer('a', BatchNorm()), "'a': BatchNorm .*is no synapse"),
    (lambda: fs.Layer('a', fs.Conv), "'a': .*is no synapse"),
    (lambda: fs.Network((BatchNorm(),), fs.Relu()), 'BatchNorm.*fs.Layer'),
    (lambda: fs.Network(('conv',), fs.Relu()), 'str.*fs.Layer'),
  ],
)
def test_a_row_of_another_kind_is_refused(row, message):
  with pytest.raises(fs.UserError, match=message):
    row()


@pytest.mark.parametrize(
  'settings',
  [
    {'kernel': 0},
    {'kernel': '3'},
    {'kernel': 3.0},
    {'kernel': ()},
    {'kernel': (3, (1, 1))},
    {'stride': (2, 0)},
    {'stride': None},
    {'dilation': True},
    {'padding': -1},
    {'padding': 'CIRCULAR'},
    {'padding': ((1, 2, 3), 1)},
    {'groups': 3},
    {'groups': 0},
    {'groups': 2.0},
    {'kernel': (3, 3), 'stride': (1,)},
  ],
)
def test_a_convolution_of_another_kind_is_refused_by_name(settings):
  name = next(iter(settings))
  with pytest.raises(fs.UserError, match=name):
    fs.Conv(4, **settings)


@pytest.mark.parametrize(
  ('synapse', 'shape', 'message'),
  [
    (fs.Conv(4), (2, 5), r'\(2, 5\).*use Dense'),
    (fs.Conv(4, kernel=(3,)), (2, 5, 5, 1), '1 axes'),
    (fs.Conv(4, groups=2), (2, 5, 5, 3), 'groups=2.*3 channels'),
    (fs.Conv(4, kernel=7, padding=0), (2, 5, 5, 3), 'window of 7'),
    (fs.AveragePool(7), (2, 5, 5, 3), 'window of 7'),
    (fs.GlobalAveragePool(), (2, 5), 'GlobalAveragePool'),
    (fs.SpaceToDepth(2), (2, 4, 1), 'SpaceToDepth'),
    (fs.Conv(4, weights='apot'), (2, 5, 5, 1), "weights='apot'"),
  ],
)
def test_an_input_of_another_kind_is_refused(synapse, shape, message):
  x = jnp.ones(shape)
  with pytest.raises(fs.UserError, match=message):
    jax.eval_shape(synapse.init, jax.random.key(0), x)


def test_images_of_other_axes_than_the_kernels_are_refused():
  ann = table((5, 5), fs.Conv(4))
  images = jnp.ones((2, 5, 5, 2))
  variables = jax.eval_shape(ann.init, jax.random.key(0), images)
  with pytest.raises(fs.UserError, match=r'\(5, 5, 2\).*\[B, H, W, C\]'):
    jax.eval_shape(ann.apply, variables, images[0])
  with pytest.raises(fs.UserError, match=r'\(3, 3, 2, 4\).*\(3, 3, 3, 4\)'):
    jax.eval_shape(ann.apply, variables, jnp.ones((2, 5, 5, 3)))
