"""QDQ graphs give our levels, in any onnxruntime."""

import math

import jax
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.deployment import (
  agrees,
  answers,
  drawn,
  images_of,
  reference,
  session,
)
from support.models import tiny_resnet

import fastsnn_jax as fs

SHAPE = 8, 6, 3


def everything(bits):
  """A table with each kind of synapse, and weights of each kind."""
  apot = fs.Apot(bits)
  pooled = fs.Chain((fs.AveragePool(2, padding=((0, 0), (0, 1))), fs.Conv(6)))
  joined = fs.Concat((fs.SpaceToDepth(2), None))
  passed = fs.Chain((joined, fs.Conv(8, apot, kernel=1, padding=0)))
  both = fs.Residual(fs.Dense(8, apot), fs.Dense(8, apot))
  shape = {'stride': (1, 2), 'padding': 'SAME', 'groups': 2, 'dilation': (2, 1)}
  return (
    fs.Layer('stem', fs.Conv(8, fs.EightBit())),
    fs.Layer('deep', fs.Conv(8, apot, groups=8), ('stem',)),
    fs.Layer('sum', fs.Residual(fs.Conv(8, apot)), ('deep', 'stem')),
    fs.Layer('large', fs.MaxPool(3, 2, 1), ('sum',)),
    fs.Layer('passed', passed, ('sum', 'large')),
    fs.Layer('wide', fs.Conv(4, apot, **shape), ('passed',)),
    fs.Layer('pooled', pooled, ('sum',)),
    fs.Layer('flat', fs.Dense(12, apot), ('pooled',)),
    fs.Layer('more', fs.Dense(12, None), ('wide',)),
    fs.Layer('both', both, ('flat', 'more')),
    fs.Layer('head', fs.Dense(5, fs.EightBit(), norm=False), ('both',)),
  )


def test_every_kind_of_synapse_gives_our_levels(tmp_path):
  bits = 3
  network = fs.Network(everything(bits), fs.QuantRelu(bits))
  images = images_of(24, *SHAPE)
  variables = drawn(network, images)
  about = fs.export(
    *(network, variables, tmp_path / 'net.onnx'),
    **{'format': 'onnx', 'image_shape': SHAPE, 'sites': True},
  )
  got = answers(session(tmp_path / 'net.onnx'), images=images)
  agrees(network, variables, images, got)
  kinds = {
    x.data_type for x in onnx.load(tmp_path / 'net.onnx').graph.initializer
  }
  assert onnx.TensorProto.INT4 in kinds
  for layer in network.firing:
    level = got[layer.name]
    assert level.dtype == np.uint8
    assert level.shape[1:] == tuple(about['sites'][layer.name]['shape'])
    assert level.max() == 2**bits - 1, layer.name


@pytest.mark.parametrize('bits', [2, 5])
def test_kernels_are_the_smallest_whole_numbers(bits, tmp_path):
  network = fs.Network(tuple(tiny_resnet(bits, 4)), fs.QuantRelu(bits))
  images = images_of(9, 8, 8, 3)
  variables = drawn(network, images)
  path = tmp_path / 'net.onnx'
  about = fs.export(
    network, variables, path, format='onnx', image_shape=(8, 8, 3)
  )
  agrees_without_sites(network, variables, images, path)
  kinds = {
    onnx.TensorProto.DataType.Name(x.data_type)
    for x in onnx.load(path).graph.initializer
    if len(x.dims) == 4 and x.data_type != onnx.TensorProto.FLOAT
  }
  middle = {2: 'INT2', 5: 'INT8'}[bits]
  assert middle in kinds
  assert kinds <= {middle, 'INT8', 'INT16'}
  assert about['opset'] == (25 if bits == 2 else 21)
  assert [x['name'] for x in about['outputs']] == ['output']


def agrees_without_sites(network, variables, images, path):
  output = np.asarray(reference(network, variables, images)[0])
  got = answers(session(path), images=images)['output']
  close = np.abs(got - output).max(1) < 1e-5 * np.abs(output).max()
  assert close.mean() > 0.75
  return close


def test_a_float_network(tmp_path):
  network = fs.Network(tuple(tiny_resnet(32, 4)), fs.Relu())
  images = images_of(4, 8, 8, 3)
  variables = drawn(network, images)
  about = fs.export(
    *(network, variables, tmp_path / 'net.onnx'),
    **{'format': 'onnx', 'image_shape': (8, 8, 3), 'sites': True},
  )
  got = answers(session(tmp_path / 'net.onnx'), images=images)
  output, activations = network.apply(variables, images)
  for name, ours in {**activations, 'output': output}.items():
    scale = float(np.abs(ours).max())
    np.testing.assert_allclose(got[name], ours, rtol=0, atol=1e-5 * scale)
  assert about['mode'] == 'float'
  assert 'T' not in about


def test_eight_bit_codes_beyond_a_byte(tmp_path):
  """The scale is the signed maximum, so codes may pass -128."""
  rows = (
    fs.Layer('stem', fs.Conv(3, fs.EightBit(), norm=False)),
    fs.Layer('head', fs.Dense(2, norm=False), ('stem',)),
  )
  network = fs.Network(rows, fs.QuantRelu(2))
  images = images_of(5, 4, 4, 2)
  variables = drawn(network, images)
  synapse = variables['params']['stem']['synapse']
  synapse['kernel'] = synapse['kernel'].at[0, 0, 0, 0].set(-3.0)
  path = tmp_path / 'net.onnx'
  fs.export(
    *(network, variables, path),
    **{'format': 'onnx', 'image_shape': (4, 4, 2), 'sites': True},
  )
  agrees(network, variables, images, answers(session(path), images=images))
  (codes,) = (
    numpy_helper.to_array(x)
    for x in onnx.load(path).graph.initializer
    if x.data_type == onnx.TensorProto.INT16
  )
  assert codes.min() < -128


def test_a_folded_network_gives_the_same_file(tmp_path):
  network = fs.Network(tuple(tiny_resnet(2, 4)), fs.QuantRelu(2))
  images = images_of(1, 8, 8, 1)
  variables = drawn(network, images)
  for name, pair in (
    ('plain', (network, variables)),
    ('folded', fs.fold(network, variables)),
  ):
    path = tmp_path / name
    fs.export(*pair, path, format='onnx', image_shape=(8, 8, 1))
  plain = (tmp_path / 'plain').read_bytes()
  assert (tmp_path / 'folded').read_bytes() == plain


def test_two_bit_weights_take_two_bits(tmp_path):
  """ResNet-20: the file, within 1.3 times of two bits a parameter."""
  network, random = fs.build('cifar_resnet20', bits=2), np.random.default_rng(0)
  shape = jax.ShapeDtypeStruct((1, 8, 8, 3), 'float32')
  variables = jax.tree.map(
    lambda x: np.asarray(random.normal(1, 0.1, x.shape), 'f4'),
    jax.eval_shape(network.init, jax.random.key(0), shape),
  )
  path = tmp_path / 'net.onnx'
  about = fs.export(
    network, variables, path, format='onnx', image_shape=(8, 8, 3)
  )
  kernels = [
    x
    for x in onnx.load(path).graph.initializer
    if len(x.dims) > 1 and x.data_type != onnx.TensorProto.FLOAT
  ]
  weights = sum(math.prod(x.dims) for x in kernels)
  leaves = jax.tree_util.tree_leaves_with_path(variables['params'])
  assert weights == sum(x.size for p, x in leaves if p[-1].key == 'kernel')
  packed = sum(len(x.raw_data) for x in kernels)
  parameters = sum(x.size for _, x in leaves)
  print(
    f'{parameters} parameters in {about["bytes"]} bytes, of which {weights} '
    f'weights in {packed}'
  )
  assert packed <= 1.02 * 2 * weights / 8
  assert about['bytes'] <= 1.3 * 2 * parameters / 8
