"""Models by name: each is a function (bits, classes) -> table of layers."""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastsnn_jax.architectures import deeplab, yolo
from fastsnn_jax.architectures.alexnet import cifar_alexnet, imagenet_alexnet
from fastsnn_jax.architectures.resnet import (
  cifar_resnet,
  cifar_resnet18,
  small_resnet,
)
from fastsnn_jax.architectures.vgg import (
  cifar_vgg11,
  imagenet_vgg11,
  imagenet_vgg16,
)
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import QuantRelu, Relu


class _Model(NamedTuple):
  """How a network of a name is made.

  Attributes:
    table: (bits, classes) -> layers; of detectors, (bits, classes, anchors).
    theta: initial.
    size: side of the square images that the model was drawn up for.
    static: fields of `Network`; a detector's `anchors` may be a function of the
      number of classes.
  """

  table: Callable
  theta: float = 6.0
  size: int = 32
  static: Mapping[str, Any] = types.MappingProxyType({})


def _detector(table, size, **static):
  return _Model(table, 6.0, size, {'task': 'detection', 'size': size, **static})


def _segmenter(table, size, stride):
  return _Model(table, 6.0, size, {'task': 'segmentation', 'stride': stride})


_MODELS = {
  'cifar_alexnet': _Model(cifar_alexnet, 8.0),
  'cifar_vgg11': _Model(cifar_vgg11, 8.0),
  **{
    f'cifar_resnet{depth}': _Model(cifar_resnet(depth))
    for depth in (20, 32, 44, 56, 110)
  },
  'cifar_resnet18': _Model(cifar_resnet18),
  'imagenet_alexnet': _Model(imagenet_alexnet, size=224),
  'imagenet_vgg16': _Model(imagenet_vgg16, size=224),
  'imagenet_vgg11': _Model(imagenet_vgg11, size=224),
  'small_resnet8': _Model(small_resnet(blocks=1, stem_stride=1)),
  'small_resnet14': _Model(small_resnet(blocks=2, stem_stride=2)),
  'yolov2_tiny': _detector(
    yolo.yolov2_tiny, 416, stride=32, anchors=yolo.anchors_for
  ),
  'yolov2_resnet34': _detector(
    yolo.yolov2_resnet34, 416, stride=32, anchors=yolo.anchors_for, overlap=0.6
  ),
  'small_yolo': _detector(
    yolo.small_yolo, 96, stride=16, anchors=yolo.SMALL_ANCHORS
  ),
  'deeplabv1_vgg9': _segmenter(deeplab.deeplabv1_vgg9, 513, 8),
  'deeplabv3_resnet34': _segmenter(deeplab.deeplabv3_resnet34, 513, 16),
  'small_deeplab': _segmenter(deeplab.small_deeplab, 97, 4),
  'medium_deeplab': _segmenter(deeplab.medium_deeplab, 241, 8),
}

BITS = (32, 5, 4, 3, 2)
_MAPPED = 255  # classes of a segmenter, whose maps are uint8


def models() -> tuple[str, ...]:
  """The names that `build` takes."""
  return tuple(_MODELS)


def input_size(model: str) -> int:
  """Side of the square images that a model was drawn up for.

  Only networks that flatten a map are bound to it, by their first dense layer.

  >>> input_size('cifar_vgg11'), input_size('imagenet_vgg11')
  (32, 224)
  """
  return _MODELS[model].size


def task_of(model: str) -> str:
  """'classification', 'detection' or 'segmentation'.

  >>> task_of('small_yolo')
  'detection'
  """
  return _known(model).static.get('task', 'classification')


def stride_of(model: str) -> int:
  """Side of a cell of the read-out, in pixels; 1 for a classifier.

  >>> stride_of('small_yolo')
  16
  """
  return _known(model).static.get('stride', 1)


def _known(model):
  if model not in _MODELS:
    raise UserError(f'model={model!r}: no such model; {", ".join(_MODELS)}')
  return _MODELS[model]


def build(
  model: str, bits: int = 32, classes: int | Sequence[str] = 10, **static
) -> Network:
  """A network by name; the image it meets decides its input size and channels.

  Args:
    model: one of `models()`.
    bits: 32 gives the float network (`Relu`), 2 to 5 a quantised one
      (`QuantRelu(bits)`); what has so many bits is part of the model's table.
    classes: their number, or their names.
    **static: further fields of `Network`: mean, std, and of detectors anchors
      (if not given, the reference's for so many classes), overlap and size.

  Raises:
    UserError: an unknown model or bit width, fewer than two classes (one, for
      a detector) or more than 255 for a segmenter, anchors that are no boxes or
      for a classifier.

  >>> build('cifar_resnet20', bits=2).neuron
  QuantRelu(bits=2, initial_theta=6.0)
  """
  known = _known(model)
  if bits not in BITS:
    raise UserError(f'bits={bits!r}: a network has one of {BITS} bits')
  names = range(classes) if isinstance(classes, int) else classes
  names = tuple(map(str, names))
  table, theta, _, known = known
  static = {**known, **static}
  least, needed = 2, 'two classes are'
  if 'anchors' in known:  # a detector may look for one kind of thing
    least, needed = 1, 'one class is'
  if len(names) < least:
    raise UserError(f'classes={classes!r}: at least {needed} needed')
  if known.get('task') == 'segmentation' and len(names) > _MAPPED:
    raise UserError(
      f'classes: {len(names)} are more than the {_MAPPED} that a map of bytes '
      'can tell apart (255 is ignored); join some of them'
    )
  sizes = (bits, len(names))
  if 'anchors' in static:
    static['anchors'] = _anchors(model, known, static['anchors'], len(names))
    sizes = (*sizes, static['anchors'])
  neuron = Relu() if bits == 32 else QuantRelu(bits, theta)
  return Network(tuple(table(*sizes)), neuron, model, bits, names, **static)


def _anchors(model, known, anchors, classes):
  """As a tuple of pairs, checked."""
  if 'anchors' not in known:
    raise UserError(f'anchors={anchors!r}: {model} is no detector; leave it')
  anchors = anchors(classes) if callable(anchors) else anchors
  try:
    boxes = tuple((float(w), float(h)) for w, h in anchors)
  except (TypeError, ValueError):
    boxes = ()
  if not boxes or not all(0 < side < math.inf for box in boxes for side in box):
    raise UserError(
      f'anchors={anchors!r}: a detector starts from boxes, each a (width, '
      'height) in cells, both positive'
    )
  return boxes
