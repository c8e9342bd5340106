"""Tables of the AlexNets, and what they share with the VGGs: convolutions, then
dense layers (reference behaviour C2.1 and C2.5)."""

from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.network import IMAGE, Layer
from fastsnn_jax.nn.weights import (
  Apot,
  EightBit,
  kaiming,
  small_normal,
  torch_uniform,
)


def plain(
  classes, *, convs, dense, conv_init, dense_init, ends=None, middle=None
):
  """Layers of a network without branches.

  Args:
    classes: outputs of the read-out.
    convs: (features, stride) of each 3 x 3 convolution, or (features, stride,
      kernel, padding).
    dense: features of each hidden dense layer.
    conv_init, dense_init: initial values of the kernels.
    ends: weight quantiser of the first and last layer.
    middle: weight quantiser of all other layers.
  """
  synapses = []
  for features, stride, *window in convs:
    kernel, padding = window or (3, 1)
    synapses.append(
      Conv(
        features,
        weights=middle if synapses else ends,
        kernel_init=conv_init,
        kernel=kernel,
        stride=stride,
        padding=padding,
      )
    )
  for features in dense:
    synapses.append(Dense(features, weights=middle, kernel_init=dense_init))
  synapses.append(Dense(classes, ends, norm=False, kernel_init=dense_init))
  names = [IMAGE, *(f'layer{i + 1}' for i in range(len(synapses)))]
  rows = zip(names[1:], synapses, names, strict=False)
  return [Layer(name, synapse, (last,)) for name, synapse, last in rows]


def cifar_weights(bits):
  """The CIFAR family: float at 32 bits, else APoT between 8-bit ends."""
  if bits == 32:
    return {'ends': None, 'middle': None}
  return {'ends': EightBit(), 'middle': Apot(bits, 'detached')}


# The ImageNet family quantises activations only: its middle weights are float
# and its ends have 8 bits, at every bit width and in the float network.
IMAGENET_WEIGHTS = {'ends': EightBit(), 'middle': None}


def cifar_alexnet(bits, classes):
  """Seven layers; strides in place of pooling."""
  return plain(
    classes,
    convs=((96, 1), (256, 2), (384, 2), (384, 1), (256, 2)),
    dense=(2048,),
    conv_init=torch_uniform,
    dense_init=torch_uniform,
    **cifar_weights(bits),
  )


def imagenet_alexnet(bits, classes):
  """Eight layers for 224 x 224; the map is 6 x 6 where it is flattened."""
  del bits
  return plain(
    classes,
    convs=(
      (64, 4, 11, 2),
      (192, 2, 5, 1),
      (384, 2, 3, 0),
      (256, 1, 3, 1),
      (256, 2, 3, 0),
    ),
    dense=(4096, 4096),
    conv_init=kaiming,
    dense_init=small_normal,
    **IMAGENET_WEIGHTS,
  )
