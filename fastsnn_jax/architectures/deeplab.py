"""Tables of the DeepLab segmenters (reference behaviour S1).

Activations only are quantised, at every bit width. The read-out is a map of
logits, one row of classes for each cell; the task brings it to the image's size
by the network's `stride`: cell i lies on pixel i stride, so each side of an
image has a multiple of `stride` and one more pixels.
"""

from fastsnn_jax.architectures.resnet import row, trunk
from fastsnn_jax.nn.layers import Conv
from fastsnn_jax.nn.network import IMAGE, Layer
from fastsnn_jax.nn.synapses import Chain, Concat
from fastsnn_jax.nn.weights import kaiming, torch_bias, torch_uniform, zero_bias


def _pyramid(features, inputs, dilations, **settings):
  """Parallel branches over one map (ASPP), and what sums them up.

  Each is a 3 x 3 convolution of its dilation, or 1 x 1 for a dilation of 0; the
  sum is a 1 x 1 convolution over the channels of all. All have their neurons.
  There is no branch with the mean over the image.
  """
  branches = []
  for i, dilation in enumerate(dilations, 1):
    window = {'dilation': dilation} if dilation else {'kernel': 1}
    branches.append(row(f'aspp{i}', features, inputs, **window, **settings))
  names = tuple(branch.name for branch in branches)
  summed = Conv(features, kernel=1, padding=0, **settings)
  joined = Chain((Concat((None,) * len(names)), summed))
  return [*branches, Layer('project', joined, names)]


def _prediction(name, classes, inputs, **settings):
  return row(name, classes, inputs, kernel=1, norm=False, **settings)


def deeplabv1_vgg9(bits, classes):
  """Eight 3 x 3 convolutions, the last three dilated; cells of 8 pixels."""
  del bits
  layers, last = [], IMAGE
  for features, stride, dilation in (
    (64, 1, 1),
    (64, 2, 1),
    (128, 1, 1),
    (128, 2, 1),
    (256, 2, 1),
    (256, 1, 2),
    (256, 1, 2),
    (1024, 1, 12),
  ):
    name = f'layer{len(layers) + 1}'
    layers.append(row(name, features, last, stride=stride, dilation=dilation))
    last = name
  weights = {'kernel_init': kaiming, 'bias_init': zero_bias}
  return [*layers, _prediction('layer9', classes, last, **weights)]


def deeplabv3_resnet34(bits, classes):
  """ResNet-34 with a stem of stride 4, and ASPP; cells of 16 pixels."""
  del bits
  rows = trunk(
    Conv(64, kernel=7, stride=4, padding=3),
    channels=(64, 128, 256, 512),
    blocks=(3, 4, 6, 3),
    strides=(1, 2, 2, 1),
  )
  new = {'kernel_init': torch_uniform}  # what stands on the trunk
  return [
    *rows,
    *_pyramid(256, rows[-1].name, (0, 6, 12, 18, 24), **new),
    row('head0', 256, 'project', **new),
    _prediction('head1', classes, 'head0', bias_init=torch_bias, **new),
  ]


def small_deeplab(bits, classes):
  """Ours, for small images: four convolutions, and ASPP; cells of 4 pixels."""
  del bits
  return [
    row('layer1', 24, IMAGE, stride=2),
    row('layer2', 48, 'layer1', stride=2),
    row('layer3', 64, 'layer2'),
    row('layer4', 64, 'layer3'),
    *_pyramid(64, 'layer4', (0, 3, 6)),
    _prediction('head', classes, 'project', bias_init=torch_bias),
  ]


def medium_deeplab(bits, classes):
  """Ours, for photographs: six 3 x 3 more, in residual blocks; cells of 8."""
  del bits
  rows = trunk(
    Conv(32, stride=2), channels=(64, 128), blocks=(1, 2), strides=(2, 2)
  )
  return [
    *rows,
    *_pyramid(128, rows[-1].name, (0, 4, 8)),
    _prediction('head', classes, 'project', bias_init=torch_bias),
  ]
