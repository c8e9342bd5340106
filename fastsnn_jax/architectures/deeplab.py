"""Tables of the DeepLab segmenters (reference behaviour S1).

Activations only are quantised, at every bit width. The read-out is a map of
logits, one row of classes for each cell; the task brings it to the image's size
by the network's `stride`: cell i lies on pixel i stride, so each side of an
image has a multiple of `stride` and one more pixels.
"""

from fastsnn_jax.architectures.resnet import resnet34, row, trunk
from fastsnn_jax.nn.layers import Conv
from fastsnn_jax.nn.network import IMAGE, Layer
from fastsnn_jax.nn.synapses import Chain, Concat
from fastsnn_jax.nn.weights import kaiming, torch_bias, torch_uniform, zero_bias


def _pyramid(features, inputs, dilations, **settings):
  """ASPP: parallel branches over one map, and a 1 x 1 convolution over all.

  A branch is a 3 x 3 convolution, or 1 x 1 for a dilation of 0; none has the
  mean over the image.
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
  layers, last = [], IMAGE
  features = (64, 64, 128, 128, 256, 256, 256, 1024)
  strides, dilations = (1, 2, 1, 2, 2, 1, 1, 1), (1, 1, 1, 1, 1, 2, 2, 12)
  columns = zip(features, strides, dilations, strict=True)
  for i, (width, stride, dilation) in enumerate(columns, 1):
    layers.append(
      row(f'layer{i}', width, last, stride=stride, dilation=dilation)
    )
    last = f'layer{i}'
  weights = {'kernel_init': kaiming, 'bias_init': zero_bias}
  return [*layers, _prediction('layer9', classes, last, **weights)]


def deeplabv3_resnet34(bits, classes):
  """ResNet-34 with a stem of stride 4, and ASPP; cells of 16 pixels."""
  rows = resnet34(strides=(1, 2, 2, 1))
  new = {'kernel_init': torch_uniform}  # what stands on the trunk
  return [
    *rows,
    *_pyramid(256, rows[-1].name, (0, 6, 12, 18, 24), **new),
    row('head0', 256, 'project', **new),
    _prediction('head1', classes, 'head0', bias_init=torch_bias, **new),
  ]


def small_deeplab(bits, classes):
  """Ours, for small images: four convolutions, and ASPP; cells of 4 pixels."""
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
  stem = Conv(32, stride=2)
  rows = trunk(stem, channels=(64, 128), blocks=(1, 2), strides=(2, 2))
  return [
    *rows,
    *_pyramid(128, rows[-1].name, (0, 4, 8)),
    _prediction('head', classes, 'project', bias_init=torch_bias),
  ]
