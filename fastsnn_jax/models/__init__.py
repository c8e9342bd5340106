"""Models by name: each is a function (bits, classes) -> table of layers."""

from collections.abc import Sequence

from fastsnn_jax.errors import UserError
from fastsnn_jax.models.alexnet import cifar_alexnet, imagenet_alexnet
from fastsnn_jax.models.resnet import cifar_resnet, cifar_resnet18, small_resnet
from fastsnn_jax.models.vgg import cifar_vgg11, imagenet_vgg11, imagenet_vgg16
from fastsnn_jax.network import Network
from fastsnn_jax.neurons import QuantRelu, Relu

# name -> (table, initial theta)
_MODELS = {
  'cifar_alexnet': (cifar_alexnet, 8.0),
  'cifar_vgg11': (cifar_vgg11, 8.0),
  **{
    f'cifar_resnet{depth}': (cifar_resnet(depth), 6.0)
    for depth in (20, 32, 44, 56, 110)
  },
  'cifar_resnet18': (cifar_resnet18, 6.0),
  'imagenet_alexnet': (imagenet_alexnet, 6.0),
  'imagenet_vgg16': (imagenet_vgg16, 6.0),
  'imagenet_vgg11': (imagenet_vgg11, 6.0),
  'small_resnet8': (small_resnet(blocks=1, stem_stride=1), 6.0),
  'small_resnet14': (small_resnet(blocks=2, stem_stride=2), 6.0),
}

BITS = (32, 5, 4, 3, 2)


def models() -> tuple[str, ...]:
  """The names that `build` takes."""
  return tuple(_MODELS)


def input_size(model: str) -> int:
  """Side of the square images that a model was drawn up for.

  Only networks that flatten a map are bound to it, by their first dense layer.

  >>> input_size('cifar_vgg11'), input_size('imagenet_vgg11')
  (32, 224)
  """
  return 224 if model.startswith('imagenet_') else 32


def build(
  model: str, bits: int = 32, classes: int | Sequence[str] = 10, **static
) -> Network:
  """A network by name; the image it meets decides its input size and channels.

  Args:
    model: one of `models()`.
    bits: 32 gives the float network (`Relu`), 2 to 5 a quantised one
      (`QuantRelu(bits)`); what has so many bits is part of the model's table.
    classes: their number, or their names.
    **static: further fields of `Network`: mean, std.

  Raises:
    UserError: an unknown model or bit width, fewer than two classes.

  >>> build('cifar_resnet20', bits=2).neuron
  QuantRelu(bits=2, initial_theta=6.0)
  """
  if model not in _MODELS:
    raise UserError(f'model={model!r}: no such model; {", ".join(_MODELS)}')
  if bits not in BITS:
    raise UserError(f'bits={bits!r}: a network has one of {BITS} bits')
  names = range(classes) if isinstance(classes, int) else classes
  names = tuple(map(str, names))
  if len(names) < 2:
    raise UserError(f'classes={classes!r}: at least two classes are needed')
  table, theta = _MODELS[model]
  neuron = Relu() if bits == 32 else QuantRelu(bits, theta)
  layers = tuple(table(bits, len(names)))
  return Network(layers, neuron, model, bits, names, **static)
