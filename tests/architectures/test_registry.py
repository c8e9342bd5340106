"""Models of one's own under a name."""

import jax
import jax.numpy as jnp
import pytest
from support.models import registered

import fastsnn_jax as fs
from fastsnn_jax.architectures import model, register
from fastsnn_jax.nn.layers import Conv, Dense


def table(bits, classes, anchors=()):
  del bits
  features = len(anchors) * (5 + classes) if anchors else classes
  return [
    fs.Layer('stem', Conv(4, stride=4)),
    fs.Layer('head', Conv(features, norm=False), ('stem',)),
  ]


def flat(bits, classes):
  del bits
  return [
    fs.Layer('stem', Conv(4)),
    fs.Layer('head', Dense(classes, norm=False), ('stem',)),
  ]


def test_a_registered_classifier_is_built_saved_and_loaded(tmp_path):
  with registered('mine', flat, theta=2.0, size=8):
    assert 'mine' in fs.models()
    network = fs.build('mine', 2, ['a', 'b', 'c'])
    assert network.neuron == fs.QuantRelu(2, 2.0)
    assert model('mine')[1:3] == (2.0, 8)
    variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    fs.save(tmp_path / 'net', network, variables)
    again, _ = fs.load(tmp_path / 'net')
    assert again == network
  assert 'mine' not in fs.models()


def test_a_registered_detector_and_segmenter_bring_their_static_fields():
  settings = {'task': 'detection', 'stride': 4, 'anchors': [(1, 2)]}
  with registered('boxes', table, size=32, **settings):
    network = fs.build('boxes', 2, 1)
    assert network.anchors == ((1.0, 2.0),)
    assert (network.task, network.stride, network.size) == ('detection', 4, 32)
    assert network.layers[-1].synapse.features == 6
    assert fs.build('boxes', 2, 1, size=64).size == 64
  settings = {'task': 'maps', 'stride': 4, 'remainder': 1, 'most_classes': 255}
  with registered('maps', table, size=33, **settings):
    found = model('maps')
    assert (found.task, found.stride, found.remainder) == ('maps', 4, 1)
    network = fs.build('maps', 2, 255)
    image = jax.ShapeDtypeStruct((1, 9, 13, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    output, _ = jax.eval_shape(network.apply, variables, image)
    assert output.shape == (1, 3, 4, 255)
    with pytest.raises(fs.UserError, match='256 are more than the 255'):
      fs.build('maps', 2, 256)


def test_a_name_is_another_model_s_only_when_it_is_said():
  with registered('mine', flat):
    register('mine', flat)  # a module that is run twice does no harm
    for other in ({'table': table}, {'table': flat, 'theta': 3.0}):
      with pytest.raises(fs.UserError, match=r"'mine': another .*replace=True"):
        register('mine', **other)
    assert fs.build('mine', 2).neuron.initial_theta == 6.0
    register('mine', flat, theta=3.0, replace=True)
    assert fs.build('mine', 2).neuron.initial_theta == 3.0


@pytest.mark.parametrize('setting', ['strides', 'layers', 'bits'])
def test_a_setting_that_no_network_has_is_refused(setting):
  with pytest.raises(fs.UserError, match=f'{setting!r} is no setting'):
    register('mine', flat, **{setting: 1})
  assert 'mine' not in fs.models()


def test_an_unknown_model_is_refused_with_those_there_are():
  for look in (model, fs.build):
    with pytest.raises(fs.UserError, match=r"model='resnet': .*small_yolo"):
      look('resnet')
