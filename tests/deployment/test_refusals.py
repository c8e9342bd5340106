"""What no file can say is one line, before anything is written."""

import sys

import flax.linen as nn
import jax
import pytest
from support.deployment import drawn, images_of

import fastsnn_jax as fs
from fastsnn_jax.nn.layers import Synapse

SHAPE = 4, 4, 2


class Dropped(Synapse):
  """What only training needs."""

  affine = True

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dropout(0.5, deterministic=not train)(x)

  def connect(self, x):
    return x


def network_of(stem, neuron=None):
  head = fs.Dense(3, norm=False)
  rows = fs.Layer('stem', stem), fs.Layer('head', head, ('stem',))
  return fs.Network(rows, neuron or fs.QuantRelu(2))


@pytest.fixture(scope='module')
def plain():
  network = network_of(fs.Conv(3))
  return network, drawn(network, images_of(1, *SHAPE))


def refused(network, variables, path, message, format='onnx', **settings):
  settings = {'image_shape': SHAPE, **settings}
  with pytest.raises(fs.UserError, match=message) as told:
    fs.export(network, variables, path, format=format, **settings)
  assert '\n' not in str(told.value)
  assert not path.exists() or path.is_dir()


def test_formats_shapes_and_paths(plain, tmp_path):
  path = tmp_path / 'net'
  refused(*plain, path, "format='pb': the formats are onnx", format='pb')
  refused(*plain, path, 'whole numbers, .H, W, C', image_shape=(4, 4.5))
  refused(*plain, path, r'images of shape', image_shape=(4, 2))
  refused(*plain, path, 'kernel of shape', image_shape=(6, 6, 2))
  refused(*plain, tmp_path, 'it is a directory')
  refused(*plain, tmp_path / 'no' / 'net', 'there is no directory')
  refused('net', {}, path, 'it must be a Network')


def test_networks_that_a_format_cannot_say(plain, tmp_path):
  network, variables = plain
  path = tmp_path / 'net'
  signed, real = fs.to_spiking(network), network_of(fs.Conv(3), fs.Relu())
  refused(signed, variables, path, 'the network is signed', format='qonnx')
  refused(real, variables, path, 'the network is float', format='qonnx')
  refused(signed, variables, path, 'take no spike back', format='nir')
  settled = fs.to_spiking(network, 'settled')
  refused(settled, variables, path, 'network is settled', format='nir')
  refused(network, variables, path, 'is quantised', format='nir')


def test_synapses_that_a_format_has_not(tmp_path):
  path = tmp_path / 'net'
  network = network_of(Dropped())
  variables = drawn(network, images_of(1, *SHAPE))
  refused(network, variables, path, "layer 'stem': Dropped is no synapse")
  network = network_of(fs.MaxPool())
  variables = drawn(network, images_of(1, *SHAPE))
  refused(fs.to_spiking(network), variables, path, 'MaxPool needs the sums')
  network = network_of(fs.SpaceToDepth())
  variables = drawn(network, images_of(1, *SHAPE))
  unsigned = fs.to_spiking(network, 'unsigned')
  refused(unsigned, variables, path, 'NIR has no node', format='nir')


@pytest.mark.parametrize('mode', ['quantised', 'unsigned', 'signed'])
@pytest.mark.parametrize('format', ['onnx', 'qonnx', 'nir'])
def test_functions_have_no_table(format, mode, tmp_path):
  network, variables = function_of(lambda x: x)
  if mode != 'quantised':
    network = fs.to_spiking(network, mode)
  refused(
    *(network, variables, tmp_path / 'net', "format='stablehlo'", format),
    **{'image_shape': (4,)},
  )


def function_of(before):
  def model(params, x):
    return fs.quantize_activation(before(x), params['a'], 2, name='hidden')

  return fs.from_function(model, {'a': 1.0}, images_of(2, 4))


def test_functions_that_no_program_says(tmp_path):
  def judged(before, message, shape=(4,)):
    function = function_of(before)
    settings = {'format': 'stablehlo', 'image_shape': shape}
    refused(*function, tmp_path / 'net', message, **settings)

  norm = nn.BatchNorm(use_running_average=False)
  stats = norm.init(jax.random.key(0), images_of(2, 4))
  judged(
    lambda x: norm.apply(stats, x, mutable=['batch_stats'])[0],
    'depends on the other images of the batch',
  )
  judged(lambda x: x.reshape(len(x), 2, 2), 'for batches of any size')
  judged(lambda x: x + jax.numpy.ones(4), 'does not run on such', (5,))


def test_a_package_that_is_missing(plain, tmp_path, monkeypatch):
  for package, format in (('onnx', 'onnx'), ('nir', 'nir')):
    monkeypatch.setitem(sys.modules, package, None)
    network = plain[0]
    if format == 'nir':
      network = fs.to_spiking(network, 'unsigned')
    message = rf"needs the package {package} .*pip install 'fastsnn_jax\[export"
    refused(network, plain[1], tmp_path / 'net', message, format=format)


def test_names_that_are_taken(tmp_path):
  for name in ('output', '/3'):
    rows = (
      fs.Layer(name, fs.Conv(3)),
      fs.Layer('head', fs.Dense(3, norm=False), (name,)),
    )
    network = fs.Network(rows, fs.QuantRelu(2))
    variables = drawn(network, images_of(1, *SHAPE))
    refused(network, variables, tmp_path / 'net', 'are taken', sites=True)
