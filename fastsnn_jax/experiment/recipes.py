"""How each family of networks is trained: the official way, and ours.

Two things that differ by family are not here, for they are part of a model's
table: the gradient of the weight quantiser, and the initial theta.
"""

import dataclasses

from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage

_CIFAR = Data('cifar10', batch=128, eval_batch=100, crop=4, flip=True)
_IMAGENET = Data(
  'imagenet2012', batch=1024, eval_batch=256, stream=True, size=224
)
_BOXES = Data('voc', batch=16, eval_batch=16, jitter=0.5, stream=True, size=416)
_BOXES = dataclasses.replace(_BOXES, sizes=tuple(range(320, 609, 32)))
_MASKS = Data('voc', batch=32, eval_batch=8, stream=True, size=513)


def _ladder(**settings):
  return tuple(Stage(bits, **settings) for bits in (32, 4, 3, 2))


_ALEXNET = (
  Stage(32, epochs=300, learning_rate=0.1, weight_decay=5e-4),
  Stage(4, epochs=300, learning_rate=0.04, weight_decay=1e-4),
  Stage(3, epochs=300, learning_rate=0.04, weight_decay=1e-4),
  Stage(2, epochs=300, learning_rate=0.04, weight_decay=3e-5),
)
_DEFAULTS = _ladder(epochs=300, learning_rate=0.1)
# Epochs 20, 40 and 50.
_CONSTANT = {'epochs': 60, 'milestones': (1 / 3, 2 / 3, 5 / 6)}
_IMAGENET_STAGES = (
  Stage(4, learning_rate=0.1, **_CONSTANT),  # from random weights
  Stage(3, learning_rate=0.01, **_CONSTANT),
  Stage(2, learning_rate=0.01, **_CONSTANT),
)
_DETECTION = _ladder(
  epochs=250, learning_rate=1e-3, weight_decay=5e-4, milestones=(0.6, 0.8)
)
_SEGMENTATION = _ladder(epochs=50, learning_rate=0.007, schedule='poly')
# Fine-tuning of the C10 folder, the ResNets, ResNet-18, and ImageNet.
_C10 = {'tune_weight_decay': 5e-4, 'batch_norm': 'eval', 'accept': 'always'}
_RES = {'tune_epochs': 8}
_R18 = {'accept': 'always'}
_UNTUNED = {'tune': ('none',)}
# At 513 pixels maps are large.
_UNTUNED_MASKS = {**_UNTUNED, 'eval_batch': 1, 'tune_batch': 1}

_RESNETS = [f'cifar_resnet{depth}' for depth in (20, 32, 44, 56, 110)]
# model: (data, stages, fields of `Conversion`)
_REFERENCE = {
  'cifar_alexnet': (_CIFAR, _ALEXNET, _C10),
  'cifar_vgg11': (_CIFAR, _DEFAULTS, _C10),
  **dict.fromkeys(_RESNETS, (_CIFAR, _DEFAULTS, _RES)),
  'cifar_resnet18': (_CIFAR, _DEFAULTS, _R18),
  'imagenet_alexnet': (_IMAGENET, _IMAGENET_STAGES, _RES),
  'imagenet_vgg16': (_IMAGENET, _IMAGENET_STAGES, _RES),
  'imagenet_vgg11': (_IMAGENET, _IMAGENET_STAGES, _RES),
  'yolov2_tiny': (_BOXES, _DETECTION, _UNTUNED),
  'yolov2_resnet34': (_BOXES, _DETECTION, _UNTUNED),
  'deeplabv1_vgg9': (_MASKS, _SEGMENTATION, _UNTUNED_MASKS),
  'deeplabv3_resnet34': (_MASKS, _SEGMENTATION, _UNTUNED_MASKS),
}
# Fields of `Experiment` that the detectors have besides.
_YOLO = {'warmup': 2.0, 'warmup_power': 4.0, 'ema': 0.9999}


def reference(model: str, **changes) -> Experiment:
  """What the official scripts do with a model (reference behaviour C4, C5).

  SGD with momentum 0.9 and weight decay on every parameter, theta too; a tenth
  of the rate from each milestone on; the epoch that is best on the test images.
  Fine-tuning of classifiers is layer by layer. Where the scripts document
  nothing (VGG11, VGG16, ResNet-18), these are their defaults. Detection (D4)
  has a warm-up and a moving average of the weights; segmentation (S3) a rate
  that falls with the power 0.9 of what is left. These two have no fine-tuning,
  and only signed neurons.

  `changes` are fields of `Experiment`. UserError for another model.

  >>> [stage.weight_decay for stage in reference('cifar_alexnet').stages]
  [0.0005, 0.0001, 0.0001, 3e-05]
  """
  if model not in _REFERENCE:
    raise UserError(
      f'model={model!r}: the official code has no such network; it has '
      f'{", ".join(_REFERENCE)}'
    )
  data, stages, tuning = _REFERENCE[model]
  convert = Conversion(mode=('signed',), **tuning)
  official = {'decay': 'all', 'select': 'test'}
  official |= _YOLO if data is _BOXES else {}
  experiment = Experiment(model, data, stages, convert, **official)
  return dataclasses.replace(experiment, **changes)


def recommended(model: str, **changes) -> Experiment:
  """`reference`, where it is sound to do otherwise as we would do it.

  The epoch is chosen on held-out training images, so that the test images are
  looked at once. All modes are judged: settled is exact without fine-tuning.
  Fine-tuning takes one epoch of 5,120 images, sequentially and in parallel, and
  keeps a layer's update only where it helped: the official 8 epochs a layer
  on all images can cost more than the training did.

  `model` is one of `fs.models()`, `changes` are fields of `Experiment`.

  >>> recommended('cifar_resnet20').select
  'held-out'
  """
  known = model in _REFERENCE
  experiment = reference(model) if known else Experiment(model)
  convert = dataclasses.replace(
    experiment.convert,
    mode=('unsigned', 'signed', 'settled'),
    tune=('sequential', 'parallel'),
    **{'tune_epochs': 1, 'tune_images': 5120, 'accept': 'better'},
  )
  ours = {'select': 'held-out', 'convert': convert}
  return dataclasses.replace(experiment, **(ours | changes))
