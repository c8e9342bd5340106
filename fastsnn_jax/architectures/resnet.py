"""Tables of the residual networks (reference behaviour C2.3 and C2.4).

Two firing rows a block: part1 is a convolution, part2 a convolution plus the
shortcut. The sum is a current, so it is never quantised.
"""

import functools

from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.synapses import Chain, GlobalAveragePool, Residual
from fastsnn_jax.nn.tables.table import IMAGE, Layer
from fastsnn_jax.nn.weights import Apot, EightBit, torch_bias, torch_uniform


def resnet(
  classes, stem, channels, blocks, *, ends=None, middle=None, stem_stride=1
):
  """A residual network: a stem of so many channels, stages of so many channels
  and blocks; `ends` and `middle` say how their weights are quantised."""
  first = Conv(stem, weights=ends, stride=stem_stride)
  layers = trunk(first, channels=channels, blocks=blocks, middle=middle)
  initial = {'kernel_init': torch_uniform, 'bias_init': torch_bias}
  head = Dense(classes, weights=ends, norm=False, **initial)
  pooled, last = Chain((GlobalAveragePool(), head)), layers[-1].name
  return [*layers, Layer(f'layer{len(channels) + 1}', pooled, (last,))]


def row(name, features, inputs, *, kernel=3, dilation=1, **settings):
  """A convolution that leaves the map's size but for its stride."""
  settings['padding'] = kernel // 2 * dilation
  synapse = Conv(features, kernel=kernel, dilation=dilation, **settings)
  return Layer(name, synapse, (inputs,))


def chain(features, strides, dilations=None, **settings):
  """3 x 3 convolutions one after another: rows layer1, layer2, …"""
  columns = zip(features, strides, dilations or [1] * len(strides), strict=True)
  layers, last = [], IMAGE
  for i, (width, stride, dilation) in enumerate(columns, 1):
    window = {'stride': stride, 'dilation': dilation, **settings}
    layers.append(row(f'layer{i}', width, last, **window))
    last = f'layer{i}'
  return layers


def trunk(stem, *, channels, blocks, middle=None, strides=None):
  """Firing rows: the first convolution, then stages of residual blocks, whose
  first blocks have `strides`; if None, all stages but the first halve the map.
  `middle` quantises all weights but the stem's."""
  layers = [Layer('layer0', stem)]
  last, width = 'layer0', stem.features
  strides = strides or (1,) + (2,) * (len(channels) - 1)
  stages = zip(channels, blocks, strides, strict=True)
  for stage, (features, count, first_stride) in enumerate(stages, 1):
    for block in range(count):
      stride = first_stride if block == 0 else 1
      conv, shortcut = functools.partial(Conv, features, middle), None
      if stride != 1 or features != width:
        shortcut = conv(kernel=1, stride=stride, padding=0)
      name = f'layer{stage}.{block}'
      first, second = conv(stride=stride), Residual(conv(), shortcut)
      layers.append(Layer(f'{name}.part1', first, (last,)))
      layers.append(Layer(f'{name}.part2', second, (f'{name}.part1', last)))
      last, width = f'{name}.part2', features
  return layers


def resnet34(strides=None):
  """ResNet-34's firing rows, with a stem of stride 4 and no pooling."""
  stem = Conv(64, kernel=7, stride=4, padding=3)
  channels, blocks = (64, 128, 256, 512), (3, 4, 6, 3)
  return trunk(stem, channels=channels, blocks=blocks, strides=strides)


def thin_resnet(blocks, stem_stride=1):
  """16, 32, 64 channels and so many blocks each: (depth - 2) / 6 for ResNet-20
  to -110 of the official code; less is ours. 8-bit ends at any bit width."""

  def table(bits, classes):
    weights = {'ends': EightBit(), 'stem_stride': stem_stride}
    if bits != 32:
      weights['middle'] = Apot(bits, 'full')
    return resnet(classes, 16, (16, 32, 64), (blocks,) * 3, **weights)

  return table


def cifar_resnet18(bits, classes):
  """The wide 3-3-2 network: float weights, only activations are quantised."""
  return resnet(classes, stem=64, channels=(128, 256, 512), blocks=(3, 3, 2))
