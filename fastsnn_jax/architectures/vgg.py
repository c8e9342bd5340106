"""Tables of the VGGs (reference behaviour C2.2, C2.6 and C2.7)."""

from fastsnn_jax.architectures.alexnet import (
  IMAGENET_WEIGHTS,
  cifar_weights,
  plain,
)
from fastsnn_jax.nn.weights import kaiming, small_normal

_VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
_VGG16 = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)


def _vgg(classes, features, strides, **weights):
  """3 x 3 convolutions with strides in place of pooling, three dense layers."""
  return plain(
    classes,
    convs=tuple(zip(features, strides, strict=True)),
    dense=(4096, 4096),
    conv_init=kaiming,
    dense_init=small_normal,
    **weights,
  )


def cifar_vgg11(bits, classes):
  """Eight convolutions; the map is 2 x 2 where it is flattened."""
  strides = (1, 2, 1, 2, 1, 2, 1, 2)
  return _vgg(classes, _VGG11, strides, **cifar_weights(bits))


def imagenet_vgg11(bits, classes):
  """Eight convolutions for 224 x 224, the first with a stride too."""
  del bits
  strides = (2, 2, 1, 2, 1, 2, 1, 2)
  return _vgg(classes, _VGG11, strides, **IMAGENET_WEIGHTS)


def imagenet_vgg16(bits, classes):
  """Thirteen convolutions for 224 x 224; each group's last has the stride."""
  del bits
  strides = (1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2)
  return _vgg(classes, _VGG16, strides, **IMAGENET_WEIGHTS)
