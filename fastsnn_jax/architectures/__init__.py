"""Models by name: each is a function (bits, classes) -> table of layers."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastsnn_jax.architectures import deeplab, plain, resnet, yolo
from fastsnn_jax.errors import UserError, repeated
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import QuantRelu, Relu

BITS = (32, 5, 4, 3, 2)


class Model(NamedTuple):
  """How a network of a name is made; fields as of `register`."""

  table: Callable
  theta: float
  size: int
  static: dict[str, Any]
  task: str
  stride: int
  remainder: int


class _Registry(dict):
  def __missing__(self, name):
    raise UserError(
      f'model={name!r}: no such model; there are {", ".join(self)}; one of '
      'your own is registered first (fs.register_model, or a --config FILE)'
    )


_MODELS: dict[str, Model] = _Registry()


def register(
  name: str,
  table: Callable,
  *,
  theta: float = 6.0,
  size: int = 32,
  replace: bool = False,
  task: str = 'classification',
  stride: int = 1,
  remainder: int = 0,
  **static,
) -> None:
  """Gives a model of one's own a name, which configs and checkpoints then take.

  Args:
    name: for `build`.
    table: (bits, classes) -> layers, the last of which is the read-out; a
      detector's is (bits, classes, anchors) -> layers.
    theta: where the learned clips of the activations start.
    size: side of the square images that the model is drawn up for.
    replace: whether the name may be another model's.
    task, stride, remainder, **static: fields of `Network`; with `anchors`, or a
      function of the number of classes that gives them, the model is a
      detector. And `most_classes`: 255 for a segmenter, whose maps are bytes.

  Raises:
    UserError: another model's name, or settings that a network has not.

  >>> import fastsnn_jax as fs
  >>> def table(bits, classes):
  ...   head = fs.Dense(classes, norm=False)
  ...   return [fs.Layer('stem', fs.Conv(8)), fs.Layer('head', head, ('stem',))]
  >>> fs.register_model('two_rows', table, size=8)
  >>> fs.build('two_rows', bits=4, classes=3).neuron
  QuantRelu(bits=4, initial_theta=6.0)
  """
  fields = {field.name for field in dataclasses.fields(Network)[5:]}
  if strange := static.keys() - fields - {'most_classes'}:
    raise UserError(
      f'register {name!r}: {min(strange)!r} is no setting of a model; leave it'
    )
  new = Model(table, theta, size, static, task, stride, remainder)
  if not replace and name in _MODELS and _MODELS[name] != new:
    raise UserError(
      f'register {name!r}: another model has the name; choose one, or replace '
      'that model with replace=True'
    )
  _MODELS[name] = new


def model(name: str) -> Model:
  """What is registered under a name; UserError if nothing is."""
  return _MODELS[name]


def models() -> tuple[str, ...]:
  """The names that `build` takes.

  >>> 'cifar_resnet20' in models()
  True
  """
  return tuple(_MODELS)


def build(
  model: str, bits: int = 32, classes: int | Sequence[str] = 10, **static
) -> Network:
  """A network by name; the image it meets decides its input size and channels.

  Args:
    model: one of `models()`.
    bits: 32 gives the float network (`Relu`), 2 to 5 a quantised one
      (`QuantRelu(bits)`); which weights have so many is the table's matter.
    classes: their number, or their names.
    **static: further fields of `Network`: mean, std, and of detectors anchors
      (by default the official ones for so many classes), overlap and size.

  Raises:
    UserError: an unknown model or bit width, fewer than two classes (one for a
      detector) or more than a segmenter can tell apart, unusable anchors.

  >>> build('cifar_resnet20', bits=2).neuron
  QuantRelu(bits=2, initial_theta=6.0)
  """
  if not isinstance(model, str):
    raise UserError(
      f'model={model!r}, but it must be a name; fs.models() has them'
    )
  made = _MODELS[model]
  if not isinstance(bits, numbers.Integral) or bits not in BITS:
    raise UserError(f'bits={bits!r}: a network has one of {BITS} bits')
  bits, names = int(bits), _names(classes)
  fields = {field.name for field in dataclasses.fields(Network)[5:]}
  if strange := sorted(static.keys() - fields):
    raise UserError(
      f'build: {strange[0]!r} is no setting of a network; there are '
      f'{sorted(fields)}'
    )
  fields = {x: getattr(made, x) for x in ('task', 'stride', 'remainder')}
  known = {**fields, **made.static}
  least, needed = 2, 'two classes are'
  if 'anchors' in known:  # a detector may look for one kind of thing
    least, needed = 1, 'one class is'
    known['size'] = made.size
  if len(names) < least:
    raise UserError(f'classes={classes!r}: at least {needed} needed')
  static = {**known, **static}
  most = static.pop('most_classes', math.inf)
  if len(names) > most:
    raise UserError(
      f'classes: {len(names)} are more than the {most} that a map of bytes '
      'can tell apart (255 is ignored); join some of them'
    )
  sizes = (bits, len(names))
  if 'anchors' in static:
    static['anchors'] = _anchors(model, known, static['anchors'], len(names))
    sizes = (*sizes, static['anchors'])
  neuron = Relu() if bits == 32 else QuantRelu(bits, made.theta)
  layers = tuple(made.table(*sizes))
  return Network(layers, neuron, model, bits, names, **static)


def _names(classes) -> tuple[str, ...]:
  """The names of classes, from themselves or their number."""
  if isinstance(classes, numbers.Integral):
    return tuple(map(str, range(int(classes))))
  odd = isinstance(classes, str | bytes | Mapping | set | frozenset)
  names = () if odd or not isinstance(classes, Iterable) else tuple(classes)
  if (
    odd
    or not isinstance(classes, Iterable)
    or any(not isinstance(name, str | numbers.Integral) for name in names)
  ):
    raise UserError(
      f'classes={classes!r}, but they must be a whole number, or a list of '
      'names in the order of the labels'
    )
  names = tuple(map(str, names))
  if twice := repeated(names):
    raise UserError(
      f'classes: {twice[0]!r} is there {twice.count(twice[0])} times, but each '
      'class needs a name of its own'
    )
  return names


def _anchors(model, known, anchors, classes):
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


register('cifar_alexnet', plain.cifar_alexnet, theta=8.0)
register('cifar_vgg11', plain.cifar_vgg11, theta=8.0)
for _depth in (20, 32, 44, 56, 110):
  register(f'cifar_resnet{_depth}', resnet.thin_resnet((_depth - 2) // 6))
register('cifar_resnet18', resnet.cifar_resnet18)
register('imagenet_alexnet', plain.imagenet_alexnet, size=224)
register('imagenet_vgg16', plain.imagenet_vgg16, size=224)
register('imagenet_vgg11', plain.imagenet_vgg11, size=224)
register('small_resnet8', resnet.thin_resnet(blocks=1))
register('small_resnet14', resnet.thin_resnet(blocks=2, stem_stride=2))

_DETECTOR = {'task': 'detection', 'anchors': yolo.anchors_for}
_SEGMENTER = {'task': 'segmentation', 'remainder': 1, 'most_classes': 255}
for _table, _size, _stride, _static in (
  (yolo.yolov2_tiny, 416, 32, _DETECTOR),
  (yolo.yolov2_resnet34, 416, 32, {**_DETECTOR, 'overlap': 0.6}),
  (yolo.small_yolo, 96, 16, {**_DETECTOR, 'anchors': yolo.SMALL_ANCHORS}),
  (deeplab.deeplabv1_vgg9, 513, 8, _SEGMENTER),
  (deeplab.deeplabv3_resnet34, 513, 16, _SEGMENTER),
  (deeplab.small_deeplab, 97, 4, _SEGMENTER),
  (deeplab.medium_deeplab, 241, 8, _SEGMENTER),
):
  register(_table.__name__, _table, size=_size, stride=_stride, **_static)
