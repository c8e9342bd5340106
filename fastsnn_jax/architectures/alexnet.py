"""Tables of the AlexNets (spec/classification.md 2.1 and 2.5)."""

from fastsnn_jax.architectures.plain import (
  IMAGENET_WEIGHTS,
  cifar_weights,
  plain,
)
from fastsnn_jax.nn.synapses import kaiming, small_normal, torch_uniform


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
