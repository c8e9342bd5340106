"""torchvision's networks, as the examples write them down."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs

SHARED = pathlib.Path(__file__).parent.parent / 'examples' / 'shared'


@pytest.fixture(scope='module')
def recipes():
  """The module that the examples share; its folder is no package."""
  spec = importlib.util.spec_from_file_location(
    'recipes', SHARED / 'torchvision.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# Of torchvision's documentation, and of the file of EfficientNet-Lite0.
@pytest.mark.parametrize(
  ('name', 'parameters', 'some'),
  [
    (
      'resnet18',
      11_689_512,
      {
        'layer2.0.downsample.0.weight': (128, 64, 1, 1),
        'layer4.1.bn2.running_var': (512,),
        'fc.bias': (1000,),
      },
    ),
    (
      'vgg16_bn',
      138_365_992,
      {
        'features.0.bias': (64,),
        'features.41.running_mean': (512,),
        'classifier.0.weight': (4096, 25088),
        'classifier.6.weight': (1000, 4096),
      },
    ),
    (
      'mobilenet_v2',
      3_504_872,
      {
        'features.1.conv.0.0.weight': (32, 1, 3, 3),
        'features.2.conv.0.0.weight': (96, 16, 1, 1),
        'features.17.conv.3.bias': (320,),
        'features.18.1.weight': (1280,),
        'classifier.1.weight': (1000, 1280),
      },
    ),
    (
      'efficientnet_lite0',
      4_652_008,
      {
        '_blocks.0._bn2.running_var': (16,),
        '_blocks.14._depthwise_conv.weight': (1152, 1, 5, 5),
        '_fc.bias': (1000,),
      },
    ),
  ],
)
def test_keys_and_shapes_are_torchvision_s(recipes, name, parameters, some):
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32')
  found = recipes.shapes(getattr(recipes, name), images)
  assert found.items() >= some.items()
  trained = {k: x for k, x in found.items() if 'running' not in k}
  assert sum(int(np.prod(x)) for x in trained.values()) == parameters


def test_pooling_to_seven_places_is_adaptive(recipes):
  random = np.random.default_rng(0)
  for size in (1, 5, 7, 10, 14):
    x = random.normal(size=(2, size, 3)).astype(np.float32)
    wanted = [
      x[:, i * size // 7 : int(np.ceil((i + 1) * size / 7))].mean(1)
      for i in range(7)
    ]
    found = recipes.to_seven(jnp.asarray(x), 1)
    np.testing.assert_allclose(found, np.stack(wanted, 1), atol=1e-6)


@pytest.mark.once
def test_a_small_one_is_calibrated(recipes):
  images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  settings = {'width': 1 / 32, 'classes': 5}
  state = recipes.drawn(recipes.resnet18, images, **settings)
  state['bn1.num_batches_tracked'] = np.int64(3)
  params = recipes.read(state)
  function = functools.partial(recipes.resnet18, **settings)
  network, variables = fs.calibrate(function, params, images, bits=8)
  assert len(network.firing) == 17
  wanted = jax.jit(function)(params, images)
  output, _ = jax.jit(network.apply)(variables, images)
  assert float(jnp.abs(output - wanted).max() / jnp.abs(wanted).max()) < 0.1
  fs.to_spiking(network, 'settled', allow_differences=False)
  with pytest.raises(AssertionError, match='bias is'):
    recipes.resnet18({**params, 'fc.bias': jnp.ones(4)}, images, **settings)
