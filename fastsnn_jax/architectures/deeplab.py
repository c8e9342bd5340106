"""Tables of the DeepLab segmenters (reference behaviour S1).

Activations only are quantised, at every bit width. The read-out is a map of
logits, which the task enlarges: cell i lies on pixel i stride, so each side of
an image has a multiple of the network's `stride` and one more pixels.
"""

from fastsnn_jax.architectures.resnet import chain, resnet34, row, trunk
from fastsnn_jax.nn.layers import Conv
from fastsnn_jax.nn.synapses import Chain, Concat
from fastsnn_jax.nn.tables.table import Layer
from fastsnn_jax.nn.weights import kaiming, torch_bias, torch_uniform, zero_bias


def _pyramid(features, inputs, dilations, **settings):
  """ASPP: branches over one map, each a 3 x 3 convolution, or 1 x 1 for a
  dilation of 0; and a 1 x 1 convolution over all."""
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
  features = (64, 64, 128, 128, 256, 256, 256, 1024)
  strides, dilations = (1, 2, 1, 2, 2, 1, 1, 1), (1, 1, 1, 1, 1, 2, 2, 12)
  layers = chain(features, strides, dilations)
  weights = {'kernel_init': kaiming, 'bias_init': zero_bias}
  return [*layers, _prediction('layer9', classes, 'layer8', **weights)]


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
    *chain((24, 48, 64, 64), (2, 2, 1, 1)),
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
