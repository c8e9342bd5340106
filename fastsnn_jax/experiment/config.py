"""The schema of an experiment: frozen, typed, checked when it is made."""

import dataclasses
import difflib
import pathlib
import re
import runpy
from typing import Literal

from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.checks import check, check_types

_UNKNOWN = r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"


@dataclasses.dataclass(frozen=True)
class Data:
  """Which images, and how they are drawn."""

  name: str = 'digits'
  """digits, mnist, fashion_mnist, cifar10, cifar100, idx, scenes (for boxes and
  masks), a TFDS set, or any name for what is in path."""
  path: str | None = None
  """Directory of idx files, of prepared TFDS data sets, of pictures, or in the
  layout of VOC or COCO."""
  batch: int = 128
  """Images per training step."""
  eval_batch: int = 100
  """Images per evaluation step."""
  crop: int = 4
  """Random crops: pixels of padding for classification; for boxes and masks
  random parts of the image, unless it is 0."""
  flip: bool = True
  """Mirror training images at random."""
  jitter: float = 0.0
  """Random brightness, contrast and saturation, each by 1 ± jitter; detection
  changes the hue too, and its reference has 0.5."""
  held_out: float = 0.1
  """Share of the training images that selects the best epoch, where the set has
  no validation images of its own."""
  stream: bool = False
  """Read images from disk all along; otherwise they are kept on the device."""
  size: int | None = None
  """Side that images are brought to: streamed ones, and those with boxes."""
  sizes: tuple[int, ...] = ()
  """Sides of training images with boxes, changed every ten steps, or the one
  of random crops of images with masks."""
  anchors: int | None = None
  """How many are fitted to the boxes of the set; the model's if not given."""
  crowd: Literal['background', 'ignored'] = 'background'
  """What COCO's crowds are in masks; the reference: background."""
  workers: int = 0
  """Processes that decode streamed images; 0 for threads."""

  def __post_init__(self):
    check_types(self)
    check(self, 'jitter', lambda v: 0 <= v < 1, 'in [0, 1)')
    check(self, 'workers', lambda v: v >= 0, 'at least 0')
    check(self, 'size', lambda v: v is None or v >= 1, 'at least 1, or none')
    check(self, 'anchors', lambda v: v is None or v >= 1, 'at least 1, or none')
    check(self, 'sizes', lambda v: all(s >= 1 for s in v), 'at least 1 each')
    for name in ('batch', 'eval_batch'):
      check(self, name, lambda v: v >= 1, 'at least 1')
    check(self, 'crop', lambda v: v >= 0, 'at least 0')
    check(self, 'held_out', lambda v: 0 < v < 1, 'between 0 and 1')


@dataclasses.dataclass(frozen=True)
class Stage:
  """One precision: trained from the best of the stage before."""

  bits: int
  """32 (float), 5, 4, 3 or 2."""
  epochs: int = 300
  """Passes over the training images."""
  learning_rate: float = 0.1
  """Of SGD, at the start."""
  weight_decay: float = 1e-4
  """Added to the gradient as weight_decay * parameter."""
  schedule: Literal['step', 'cosine', 'poly', 'constant'] = 'step'
  """step: a tenth at each milestone; poly: the power 0.9 of what is left."""
  milestones: tuple[float, ...] = (0.5, 0.75)
  """Shares of the epochs, for the schedule step."""

  def __post_init__(self):
    check_types(self)
    check(self, 'bits', lambda v: v in (32, 5, 4, 3, 2), '32, 5, 4, 3 or 2')
    check(self, 'epochs', lambda v: v >= 1, 'at least 1')
    check(self, 'learning_rate', lambda v: v > 0, 'above 0')
    check(self, 'weight_decay', lambda v: v >= 0, 'at least 0')
    check(
      self,
      'milestones',
      lambda v: all(0 < share < 1 for share in v) and sorted(set(v)) == [*v],
      'shares of the epochs between 0 and 1 that rise',
    )


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What convert.py does with each quantised network."""

  bits: tuple[int, ...] = ()
  """Bit widths to convert; if none is given, all that were trained."""
  mode: tuple[Literal['unsigned', 'signed', 'settled'], ...] = (
    'unsigned',
    'signed',
    'settled',
  )
  """Neurons to judge."""
  steps: int | None = None
  """Time steps with input, T; if not given 2^bits - 1, at which settled is
  exact."""
  settle: int = 8
  """Steps after the T-th in settled mode."""
  tune: tuple[Literal['sequential', 'parallel', 'none'], ...] = ('sequential',)
  """Layer-wise fine-tuning of the signed network; none to leave it out."""
  tune_epochs: int = 1
  """Passes over the tuning images, per layer if sequential."""
  tune_images: int | None = None
  """Training images to tune with; if not given all, or 2 GB of a stream's."""
  tune_learning_rate: float = 1e-3
  """Of the fine-tuning's SGD."""
  tune_weight_decay: float = 1e-4
  """The reference: 5e-4 for the CIFAR AlexNet and VGG11, else 1e-4."""
  batch_norm: Literal['train', 'eval'] = 'train'
  """The tuned layer's batch norm; the reference: eval for AlexNet and VGG11."""
  data_path: str | None = None
  """Directory of the data, if it is not where train.py found it."""
  eval_batch: int | None = None
  """Images per call of the judging; if not given, the training's."""
  tune_batch: int | None = None
  """Images per step of the fine-tuning; if not given, the training's. More
  where the devices could not share them out evenly."""
  coco: bool = False
  """Add COCO's twelve numbers, for detection; needs the extra detection."""
  accept: Literal['better', 'always'] = 'better'
  """Keep a layer's update only where it helped, or always."""
  keep: Literal[
    'last', 'unsigned', 'signed', 'settled', 'sequential', 'parallel'
  ] = 'last'
  """Which network snn4, … hold: a mode's, a tuning's, or the last of all."""

  def __post_init__(self):
    for name in ('bits', 'mode', 'tune'):  # one alone needs no tuple
      value = getattr(self, name)
      single = isinstance(value, int | str)
      object.__setattr__(self, name, (value,) if single else tuple(value))
    check_types(self)
    for bits in self.bits:
      if bits not in (5, 4, 3, 2):
        raise UserError(f'bits={bits}, but a spiking network has 5, 4, 3 or 2')
    check(self, 'mode', lambda v: v, 'one mode or more')
    check(self, 'settle', lambda v: v >= 1, 'at least 1')
    check(self, 'tune_epochs', lambda v: v >= 1, 'at least 1')
    check(self, 'tune_learning_rate', lambda v: v > 0, 'above 0')
    check(self, 'tune_weight_decay', lambda v: v >= 0, 'at least 0')
    for name in ('steps', 'tune_images', 'eval_batch', 'tune_batch'):
      check(self, name, lambda v: v is None or v >= 1, 'at least 1, or none')
    made = ('last', *self.mode, *self.schedules)
    check(
      self,
      'keep',
      lambda v: v in made,
      f'one of {", ".join(made)}; what is kept has to be in mode or tune',
    )

  def of(self, data: Data) -> Data:
    """Where the images are, and how many at a time, for the conversion."""
    return dataclasses.replace(
      data,
      path=self.data_path or data.path,
      batch=self.tune_batch or data.batch,
      eval_batch=self.eval_batch or data.eval_batch,
    )

  @property
  def schedules(self) -> tuple[str, ...]:
    """The fine-tuning schedules asked for."""
    return tuple(name for name in self.tune if name != 'none')


@dataclasses.dataclass(frozen=True)
class Compute:
  """How the devices compute a training step; the reference: the defaults."""

  dtype: Literal['float32', 'bfloat16'] = 'float32'
  """Of layers in training; all else stays float32, evaluation too."""
  accumulate: int = 1
  """Parts of a batch, one after another, for the memory of one part."""
  remat: bool = False
  """Compute the insides of layers twice, to keep less in memory."""
  batch_stats: Literal['global', 'device'] = 'global'
  """Batch norm's statistics: of the whole batch, or of each device's part."""

  def __post_init__(self):
    check_types(self)
    check(self, 'accumulate', lambda v: v >= 1, 'at least 1')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A network, its data, the stages of its training and its conversion."""

  model: str = 'small_resnet8'
  """A name that fastsnn_jax.build takes."""
  data: Data = Data()
  stages: tuple[Stage, ...] = (Stage(32), Stage(4), Stage(3), Stage(2))
  convert: Conversion = Conversion()
  compute: Compute = Compute()
  seed: int = 0
  """Of initial values, shuffling and augmentation."""
  inherit: Literal['all', 'trunk'] = 'all'
  """What a stage takes over; the reference's ResNet segmenter: its trunk."""
  pretrained: str | None = None
  """File of torchvision's ResNet-34, for the trunk of the first stage."""
  optimizer: Literal['sgd', 'adamw'] = 'sgd'
  """The reference: sgd."""
  momentum: float = 0.9
  """Of SGD."""
  warmup: float = 0.0
  """Epochs in which the learning rate rises to the schedule's."""
  warmup_power: float = 1.0
  """Of the share of the warm-up that is over; detection's reference has 4."""
  smoothing: float = 0.0
  """Share of the target that label smoothing spreads over all classes."""
  balance: float = 0.0
  """Of segmentation: pixels of a class count by its frequency to minus this
  power in the loss; 0.5 helps rare classes."""
  ema: float = 0.0
  """Decay of a moving average of the weights, which is then judged and kept."""
  decay: Literal['all', 'kernels'] = 'all'
  """What weight decay pulls on: the reference's all, theta too, or kernels."""
  select: Literal['held-out', 'test', 'last'] = 'held-out'
  """Which epoch is kept; test is what the reference does."""
  save_minutes: float = 5.0
  """Time between saves within a stage."""
  save_steps: int | None = None
  """Steps between saves, beside those by time."""

  def __post_init__(self):
    check_types(self)
    check(self, 'seed', lambda v: v >= 0, 'at least 0')
    check(self, 'stages', lambda v: v, 'one stage or more')
    check(
      self,
      'stages',
      lambda v: len({s.bits for s in v}) == len(v),
      'of different bits',
    )
    check(self, 'momentum', lambda v: 0 <= v < 1, 'in [0, 1)')
    check(self, 'save_minutes', lambda v: v >= 0, 'at least 0')
    check(
      self, 'save_steps', lambda v: v is None or v >= 1, 'at least 1, or none'
    )
    check(self, 'warmup', lambda v: v >= 0, 'at least 0')
    check(self, 'warmup_power', lambda v: v > 0, 'above 0')
    check(self, 'balance', lambda v: 0 <= v <= 1, 'in [0, 1]')
    for name in ('smoothing', 'ema'):
      check(self, name, lambda v: 0 <= v < 1, 'in [0, 1)')


def load(path) -> Experiment:
  """The `config` of a Python file, or of one that comes with the package.

  Args:
    path: of the file; or the name of one of ours, such as digits.

  Raises:
    UserError: no such file, not to be run, or without a `config`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    path = _ours().get(str(path), path)
  if not path.is_file():
    raise UserError(
      f'--config {path}: no such file; those that come with the package are '
      f'{", ".join(sorted(_ours()))}'
    )
  try:
    found = runpy.run_path(str(path)).get('config')
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except Exception as error:
    unknown = re.match(_UNKNOWN, str(error))
    if unknown and unknown[1] in globals():  # a class of this schema
      kind, name = unknown.groups()
      known = [field.name for field in dataclasses.fields(globals()[kind])]
      near = difflib.get_close_matches(name, known, 1)
      raise UserError(
        f'{path}: {kind} has no {name!r}; '
        + (f'did you mean {near[0]!r}?' if near else f'{", ".join(known)}')
      ) from error
    raise UserError(
      f'{path}: it cannot be run ({type(error).__name__}: {error}); it is to '
      'be Python that sets config = Experiment(…)'
    ) from error
  if not isinstance(found, Experiment):
    raise UserError(f'{path}: it must set config = Experiment(…)')
  return found


def _ours() -> dict[str, pathlib.Path]:
  """{name: file} of the configs that come with the package.

  A wheel has them in the package, a checkout beside it.
  """
  package = pathlib.Path(__file__).parents[1]
  for folder in (package / 'configs', package.parent / 'configs'):
    if folder.is_dir():
      return {path.stem: path for path in folder.glob('*.py')}
  return {}
