"""MACs against the official tables, connections against loops over pixels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.convolution import loops

import fastsnn_jax as fs
from fastsnn_jax.evaluation import operations as counting
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.synapses import Chain, GlobalAveragePool, Residual


@pytest.mark.parametrize(
  ('model', 'bits', 'millions'),
  [
    ('cifar_resnet20', 2, 40.81),
    ('cifar_resnet56', 32, 125.75),
    ('cifar_alexnet', 2, 223.40),
    ('cifar_vgg11', 3, 319.53),
    ('cifar_resnet18', 2, 2216.4),
  ],
)
def test_macs_are_the_specs(model, bits, millions):
  network = fs.build(model, bits)
  images = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  counts = counting.macs(network, shapes, (32, 32, 3))
  assert list(counts) == [layer.name for layer in network.layers]
  digits = 1 if millions > 1000 else 2
  assert round(sum(counts.values()) / 1e6, digits) == millions


def fan_of_conv(size, channels, kernel, stride, padding, features, dilation=1):
  """Connections that leave each pixel, by visiting every one of them."""
  fan = np.zeros((size, size, channels))
  out = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
  for row, column in itertools.product(range(out), repeat=2):
    for i, j in itertools.product(range(kernel), repeat=2):
      y = row * stride + i * dilation - padding
      x = column * stride + j * dilation - padding
      if 0 <= y < size and 0 <= x < size:
        fan[y, x] += features
  return fan


def connections(synapse, *shapes):
  """Those of one synapse, fed by rows of these shapes."""
  rows = []
  for i, shape in enumerate(shapes):
    # A row that makes a map of this shape out of the image.
    rows.append(
      fs.Layer(f'row{i}', Conv(shape[-1], stride=8 // shape[0]), ('image',))
    )
  names = tuple(row.name for row in rows)
  network = fs.Network((*rows, fs.Layer('last', synapse, names)), fs.Relu())
  images = jnp.zeros((1, 8, 8, 1))
  shapes_of = jax.eval_shape(network.init, jax.random.key(0), images)
  return counting.connections(network, shapes_of, (8, 8, 1))['last']


@pytest.mark.parametrize(
  ('kernel', 'stride', 'padding', 'dilation'),
  [
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (1, 2, 0, 1),
    (5, 3, 2, 1),
    (3, 2, 0, 1),
    (3, 1, 2, 2),
    (3, 2, 3, 3),
    (3, 1, 12, 12),
  ],
)
def test_connections_of_a_convolution_are_exact_at_the_borders(
  kernel, stride, padding, dilation
):
  synapse = Conv(
    5, kernel=kernel, stride=stride, padding=padding, dilation=dilation
  )
  (fan,) = connections(synapse, (8, 8, 2))
  np.testing.assert_array_equal(
    fan, fan_of_conv(8, 2, kernel, stride, padding, 5, dilation)
  )


@pytest.mark.parametrize(
  ('sides', 'window', 'settings'),
  [
    ((7, 5), (3, 1), {'stride': (2, 1), 'padding': (1, 0)}),
    ((6, 5), (2, 3), {'padding': ((1, 0), (0, 2)), 'dilation': (1, 2)}),
    ((6, 5), (3, 3), {'stride': 2, 'padding': 'SAME'}),
    ((5, 5), (3, 3), {'padding': 'VALID', 'groups': 2}),
    ((5, 4), (3, 3), {'groups': 4}),
    ((9,), (3,), {'stride': 2}),
    ((4, 3, 3), (2, 1, 3), {'padding': 'VALID'}),
  ],
)
def test_connections_and_macs_of_every_form_are_counted_by_hand(
  sides, window, settings
):
  groups = settings.get('groups', 1)
  synapse = Conv(8, kernel=window, norm=False, **settings)
  row = fs.Layer('last', synapse)
  network = fs.Network((row,), fs.Relu())
  shape = (*sides, 4)
  variables = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, *shape))
  )
  (fan,) = counting.connections(network, variables, shape)['last']
  # One pixel at a time: the outputs that it reaches, by the definition.
  pixels = np.eye(np.prod(shape)).reshape(-1, *shape)
  ones = np.ones((*window, 4 // groups, 8))
  plain = {'stride': 1, 'padding': 1, 'dilation': 1, 'groups': 1, **settings}
  reached = loops(pixels, ones, **plain)
  assert set(np.unique(reached)) <= {0, 1}
  want = reached.reshape(len(pixels), -1).sum(1).reshape(shape)
  np.testing.assert_array_equal(fan, want)
  size = reached[0].size
  taps = np.prod(window) * 4 // groups
  macs = counting.macs(network, variables, shape)
  assert macs == {'last': size * taps}


def test_connections_of_average_pooling_are_its_windows():
  (fan,) = connections(fs.AveragePool(3, 2, 1), (8, 8, 2))
  side = [sum(abs(2 * i - y) <= 1 for i in range(4)) for y in range(8)]
  np.testing.assert_array_equal(fan[..., 0], np.outer(side, side))


def test_connections_of_a_dense_layer_are_its_features():
  (fan,) = connections(Dense(7, norm=False), (4, 4, 3))
  np.testing.assert_array_equal(fan, np.full((4, 4, 3), 7))


def test_an_identity_shortcut_is_one_connection():
  body, skip = connections(Residual(Conv(3)), (8, 8, 3), (8, 8, 3))
  np.testing.assert_array_equal(body, fan_of_conv(8, 3, 3, 1, 1, 3))
  np.testing.assert_array_equal(skip, np.ones((8, 8, 3)))


def test_a_projection_counts_as_the_convolution_that_it_is():
  synapse = Residual(Conv(4), Conv(4, kernel=1, stride=2, padding=0))
  body, skip = connections(synapse, (4, 4, 4), (8, 8, 2))
  np.testing.assert_array_equal(body, fan_of_conv(4, 4, 3, 1, 1, 4))
  np.testing.assert_array_equal(skip, fan_of_conv(8, 2, 1, 2, 0, 4))
  assert skip.min() == 0  # pixels that the stride passes over


def test_a_pooled_read_out_connects_each_pixel_to_every_class():
  synapse = Chain((GlobalAveragePool(), Dense(10, norm=False)))
  (fan,) = connections(synapse, (4, 4, 3))
  np.testing.assert_array_equal(fan, np.full((4, 4, 3), 10))


def test_connections_of_a_whole_network_add_up_to_its_unpadded_macs():
  network = fs.build('small_resnet8', 2)
  shape = (8, 8, 1)
  variables = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, *shape))
  )
  fans = counting.connections(network, variables, shape)
  macs = counting.macs(network, variables, shape)
  # Dense read-out behind the pool: one MAC per channel, but a spike of any
  # pixel reaches it.
  assert macs['layer4'] == 64 * 10
  assert sum(fan.sum() for fan in fans['layer4']) == 2 * 2 * 64 * 10
  name = 'layer1.0.part1'
  (fan,) = fans[name]
  assert fan.sum() < macs[name]  # the padding is in the MACs only
  inner = np.asarray(fan)[1:-1, 1:-1]
  np.testing.assert_array_equal(inner, np.full((6, 6, 16), 9 * 16))


def test_connections_are_counted_by_one_program(caplog):
  network = fs.build('small_resnet8', 2)
  shape = (12, 12, 1)  # that no other test has
  variables = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, *shape))
  )
  with jax.log_compiles():
    counting.connections(network, variables, shape)
  lines = [record.getMessage() for record in caplog.records]
  compiled = [x for x in lines if 'Finished XLA compilation' in x]
  assert len(compiled) == 1, compiled
