"""ImageNet weights of torchvision's ResNet-34 in a detector's trunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax.errors import UserError
from fastsnn_jax.torch_interop.imagenet_trunk import with_trunk

pytestmark = pytest.mark.once

MODEL = 'yolov2_resnet34'


ANCHORS = ((1.0, 1.0), (2.0, 2.0), (4.0, 3.0))
# Of one's own: quantised from the start, with other anchors.
NETWORK = fs.build(MODEL, 4, 2, anchors=ANCHORS)


@pytest.fixture(scope='module')
def fresh():
  shapes = jax.eval_shape(
    NETWORK.init, jax.random.key(0), jnp.ones((1, 32, 32, 3))
  )
  return jax.tree.map(lambda x: np.full(x.shape, 0.25, x.dtype), shapes)


def exported(variables):
  return fs.save_torch(variables, MODEL, 4, anchors=ANCHORS)


def torchvision():
  """Its keys and shapes, with a number of its own in each array."""
  shapes = {'conv1.weight': (64, 3, 7, 7), 'fc.weight': (1000, 512)}

  def norm(name, channels):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{name}.{leaf}'] = (channels,)
    shapes[f'{name}.num_batches_tracked'] = ()

  norm('bn1', 64)
  width = 64
  for i, (blocks, channels) in enumerate(
    zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1
  ):
    for j in range(blocks):
      block = f'layer{i}.{j}'
      shapes[f'{block}.conv1.weight'] = (channels, width, 3, 3)
      shapes[f'{block}.conv2.weight'] = (channels, channels, 3, 3)
      norm(f'{block}.bn1', channels)
      norm(f'{block}.bn2', channels)
      if width != channels:
        shapes[f'{block}.downsample.0.weight'] = (channels, width, 1, 1)
        norm(f'{block}.downsample.1', channels)
      width = channels
  return {
    key: np.full(shape, 1 + i, np.float32)
    for i, (key, shape) in enumerate(shapes.items())
  }


def test_every_array_of_the_trunk_is_replaced_and_nothing_else(fresh):
  source = torchvision()
  before = exported(fresh)
  after = exported(with_trunk(fresh, NETWORK, source))
  moved = {
    float(after[key].ravel()[0]): key
    for key in after
    if not key.endswith('tracked') and np.any(after[key] != before[key])
  }
  wanted = {
    float(value.ravel()[0])
    for key, value in source.items()
    if not key.startswith('fc.') and not key.endswith('tracked')
  }
  assert set(moved) == wanted

  def place(key):
    return moved[float(source[key].ravel()[0])]

  assert place('conv1.weight') == 'backbone.layer0.block.0.weight'
  assert place('bn1.bias') == 'backbone.layer0.block.1.bias'
  assert (
    place('layer3.5.conv2.weight') == 'backbone.layer3.5.part2.block.0.weight'
  )
  assert (
    place('layer4.0.downsample.1.running_var')
    == 'backbone.layer4.0.downsample.block.1.running_var'
  )


def test_what_is_no_resnet34_is_refused(fresh):
  source = torchvision()
  with pytest.raises(UserError, match='no key of torchvision'):
    with_trunk(fresh, NETWORK, {'features.0.weight': np.zeros(3)})
  with pytest.raises(UserError, match='the file has no ResNet-34'):
    with_trunk(fresh, NETWORK, {'conv1.weight': source['conv1.weight']})
  wide = {**source, 'conv1.weight': np.zeros((64, 1, 7, 7), np.float32)}
  with pytest.raises(UserError, match='are the images RGB'):
    with_trunk(fresh, NETWORK, wide)
