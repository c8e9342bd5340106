"""The table that AlexNet and VGG share: convolutions, then dense layers."""

from fastsnn_jax.nn.network import IMAGE, Layer
from fastsnn_jax.nn.synapses import Apot, Conv, Dense, EightBit


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
  layers, last = [], IMAGE

  def add(synapse):
    nonlocal last
    layers.append(Layer(f'layer{len(layers) + 1}', synapse, (last,)))
    last = layers[-1].name

  for features, stride, *window in convs:
    kernel, padding = window or (3, 1)
    add(
      Conv(
        features,
        weights=ends if last == IMAGE else middle,
        kernel_init=conv_init,
        kernel=kernel,
        stride=stride,
        padding=padding,
      )
    )
  for features in dense:
    add(Dense(features, weights=middle, kernel_init=dense_init))
  add(Dense(classes, weights=ends, norm=False, kernel_init=dense_init))
  return layers


def cifar_weights(bits):
  """The CIFAR family: float at 32 bits, else APoT between 8-bit ends."""
  if bits == 32:
    return {'ends': None, 'middle': None}
  return {'ends': EightBit(), 'middle': Apot(bits, 'detached')}


# The ImageNet family quantises activations only: its middle weights are float
# and its ends have 8 bits, at every bit width and in the float network.
IMAGENET_WEIGHTS = {'ends': EightBit(), 'middle': None}
