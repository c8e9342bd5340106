"""Tables of the AlexNets and VGGs: convolutions with strides in place of
pooling, then dense layers (reference behaviour C2.1, C2.2 and C2.5 to C2.7)."""

from fastsnn_jax.nn import weights as w
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.tables.table import IMAGE, Layer

_NORMAL = (w.kaiming, w.small_normal)
# The ImageNet family quantises activations only: its middle weights are float
# and its ends have 8 bits, at every bit width and in the float network.
_IMAGENET_WEIGHTS = (w.EightBit(), None)
_VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
_VGG16 = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)


def _plain(classes, convs, weights, dense=(4096, 4096), initial=_NORMAL):
  """Layers without branches: (features, stride) of each 3 x 3 convolution, or
  (features, stride, kernel, padding); then features of hidden dense layers.
  `initial` is for (convolutions, dense), `weights` for (the ends, all else)."""
  (conv_init, dense_init), (ends, middle) = initial, weights
  synapses = []
  for features, stride, *window in convs:
    kernel, padding = window or (3, 1)
    shape = {'kernel': kernel, 'stride': stride, 'padding': padding}
    quantiser = middle if synapses else ends
    synapses.append(Conv(features, quantiser, kernel_init=conv_init, **shape))
  synapses += [Dense(x, middle, kernel_init=dense_init) for x in dense]
  synapses.append(Dense(classes, ends, norm=False, kernel_init=dense_init))
  names = [IMAGE, *(f'layer{i + 1}' for i in range(len(synapses)))]
  rows = zip(names[1:], synapses, names, strict=False)
  return [Layer(name, synapse, (last,)) for name, synapse, last in rows]


def _cifar_weights(bits):
  """The CIFAR family: float at 32 bits, else APoT between 8-bit ends."""
  if bits == 32:
    return None, None
  return w.EightBit(), w.Apot(bits, 'detached')


def cifar_alexnet(bits, classes):
  """Seven layers."""
  convs = ((96, 1), (256, 2), (384, 2), (384, 1), (256, 2))
  settings = {'dense': (2048,), 'initial': (w.torch_uniform,) * 2}
  return _plain(classes, convs, _cifar_weights(bits), **settings)


def imagenet_alexnet(bits, classes):
  """Eight layers for 224 x 224; the map is 6 x 6 where it is flattened."""
  wide = (64, 4, 11, 2), (192, 2, 5, 1)
  convs = (*wide, (384, 2, 3, 0), (256, 1, 3, 1), (256, 2, 3, 0))
  return _plain(classes, convs, _IMAGENET_WEIGHTS)


def cifar_vgg11(bits, classes):
  """Eight convolutions; the map is 2 x 2 where it is flattened."""
  convs = zip(_VGG11, (1, 2, 1, 2, 1, 2, 1, 2), strict=True)
  return _plain(classes, convs, _cifar_weights(bits))


def imagenet_vgg11(bits, classes):
  """Eight convolutions for 224 x 224, the first with a stride too."""
  convs = zip(_VGG11, (2, 2, 1, 2, 1, 2, 1, 2), strict=True)
  return _plain(classes, convs, _IMAGENET_WEIGHTS)


def imagenet_vgg16(bits, classes):
  """Thirteen convolutions for 224 x 224; each group's last has the stride."""
  strides = (1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2)
  convs = zip(_VGG16, strides, strict=True)
  return _plain(classes, convs, _IMAGENET_WEIGHTS)
