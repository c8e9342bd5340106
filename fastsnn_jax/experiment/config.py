"""The schema of an experiment: frozen, typed, checked when it is made."""

import dataclasses
import errno
import os
import pathlib
import runpy
from typing import Annotated, Any, Literal

from fastsnn_jax.errors import UserError, told
from fastsnn_jax.experiment.checks import Rule, Settings


def is_path(text: str) -> bool:
  """Whether a file or directory can have this path here."""
  try:
    os.stat(text := os.path.expanduser(text))
  except ValueError:  # NUL, or what the file system's encoding lacks
    return False
  except OSError as error:
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
      return False
  return bool(text.strip()) and not text.startswith('~')


def _is_name(text):
  """A part of a path, or parts below a directory, as TFDS names its sets."""
  parts = {part.strip() for part in text.split('/')}
  return (
    text.isprintable() and is_path(text) and not {'', '.', '..', '~'} & parts
  )


def _within(least, most):
  words = f'of at least {least} and at most {most}'
  return Rule(lambda v: least <= v <= most, words)


Count = Annotated[int, Rule(lambda v: v >= 1, 'of at least 1')]
# Above these no job ends, no memory is enough, or 32 bits do not tell apart.
Anchors = Annotated[int, _within(1, 100)]
Batch = Annotated[int, _within(1, 65536)]
Epochs = Annotated[int, _within(1, 100_000)]
Seed = Annotated[int, _within(0, 2**32 - 1)]
Side = Annotated[int, _within(1, 8192)]
Steps = Annotated[int, _within(1, 4096)]
WarmUp = Annotated[float, _within(0, 100_000)]
Workers = Annotated[int, _within(0, 1024)]
Name = Annotated[str, Rule(_is_name, 'that names a data set, no path')]
PATH = Rule(is_path, 'that can be a path here')
Natural = Annotated[int, Rule(lambda v: v >= 0, 'of at least 0')]
Positive = Annotated[float, Rule(lambda v: v > 0, 'above 0')]
NotNegative = Annotated[float, Rule(lambda v: v >= 0, 'of at least 0')]
Share = Annotated[float, Rule(lambda v: 0 < v < 1, 'between 0 and 1')]
BelowOne = Annotated[float, Rule(lambda v: 0 <= v < 1, 'in [0, 1)')]
UpToOne = Annotated[float, Rule(lambda v: 0 <= v <= 1, 'in [0, 1]')]
_Mode = Literal['unsigned', 'signed', 'settled']
_Schedule = Literal['bias', 'sequential', 'parallel', 'none']
_ONE = Rule(bool, 'and one at least')
_RISE = Rule(lambda v: sorted(set(v)) == [*v], 'and above the one before')
_DIFFER = Rule(
  lambda v: v and len({stage.bits for stage in v}) == len(v),
  'of different bits, and one at least',
)


@dataclasses.dataclass(frozen=True)
class Data(Settings):
  """Which images, and how they are drawn."""

  name: Name = 'digits'
  """digits, mnist, fashion_mnist, cifar10, cifar100, idx, scenes (for boxes and
  masks), a TFDS data set, a registered one, or any name for the files in
  path."""
  path: Annotated[str, PATH] | None = None
  """Directory: idx files, prepared TFDS sets, pictures, or as VOC or COCO."""
  batch: Batch = 128
  """Images per training step."""
  eval_batch: Batch = 100
  """Images per evaluation step."""
  crop: Natural = 4
  """Random crops: pixels of padding for classification; for boxes and masks
  random parts of the image, unless it is 0."""
  flip: bool = True
  """Mirror training images at random."""
  jitter: BelowOne = 0.0
  """Random brightness, contrast and saturation, each by 1 ± jitter; detection
  changes the hue too, and the official code has 0.5."""
  held_out: Share = 0.1
  """Share of the training images that selects the best epoch, where the data
  set has no validation images of its own."""
  stream: bool = False
  """Read images from disk all along; otherwise they are kept in memory."""
  size: Side | None = None
  """Side in pixels of images that are streamed or have boxes."""
  sizes: tuple[Side, ...] = ()
  """Sides of training images with boxes, changed every ten steps; or the one
  side of random crops of images with masks."""
  anchors: Anchors | None = None
  """Fit this many anchors to the boxes; if not given, the model's own."""
  crowd: Literal['background', 'ignored'] = 'background'
  """What COCO's crowds are in masks; in the official code: background."""
  workers: Workers = 0
  """Decode streamed images in this many processes; 0 for threads."""


@dataclasses.dataclass(frozen=True)
class Stage(Settings):
  """One precision: trained from the best of the stage before."""

  bits: Literal[32, 5, 4, 3, 2]
  """32 is the float network, the others are quantised."""
  epochs: Epochs = 300
  """Passes over the training images."""
  learning_rate: Positive = 0.1
  """Learning rate at the start."""
  weight_decay: NotNegative = 1e-4
  """Add weight_decay * parameter to the gradient."""
  schedule: Literal['step', 'cosine', 'poly', 'constant'] = 'step'
  """step: a tenth at each milestone; poly: (share of steps left) ** 0.9."""
  milestones: Annotated[tuple[Share, ...], _RISE] = (0.5, 0.75)
  """Shares of the epochs, for the schedule step."""
  spiking: bool = False
  """Train the signed spiking network of 2^bits - 1 steps itself, by its twin's
  derivative; it is saved as the quantised twin, on the same variables."""

  sparsity: NotNegative = 0.0
  """Add sparsity * the sum over the layers of their mean levels to the loss, so
  that the spiking twin fires less; a layer's level is from 0 to 1."""

  def __post_init__(self):
    super().__post_init__()
    words = 'False for 32 bits: only a quantised network has a spiking twin'
    self.check('spiking', lambda v: not (v and self.bits == 32), words)
    words = '0 for 32 bits: only a quantised network has levels'
    self.check('sparsity', lambda v: not (v and self.bits == 32), words)


@dataclasses.dataclass(frozen=True)
class Conversion(Settings):
  """What convert.py does with each quantised network."""

  bits: tuple[int, ...] = ()
  """Bit widths to convert; if none is given, all that were trained."""
  mode: Annotated[tuple[_Mode, ...], _ONE] = ('unsigned', 'signed', 'settled')
  """Neurons to evaluate."""
  steps: Steps | None = None
  """T, steps with input; if not given 2^bits - 1, where settled is exact."""
  settle: Steps | Literal['auto'] = 'auto'
  """Steps after the T-th in settled mode; auto: until no neuron fires."""
  tune: tuple[_Schedule, ...] = ('sequential',)
  """Fine-tune the signed network layer by layer; none for no fine-tuning. bias
  moves the biases only, without a gradient."""
  tune_epochs: Epochs = 1
  """Passes over the tuning images; for each layer if sequential; 1 for bias."""
  tune_images: Count | None = None
  """Tune with this many training images; if not given, all that 2 GB hold."""
  tune_learning_rate: Positive = 1e-3
  """Learning rate of the fine-tuning (SGD)."""
  tune_weight_decay: NotNegative = 1e-4
  """Weight decay of the fine-tuning; the official code: 5e-4 for the CIFAR
  AlexNet and VGG11, else 1e-4."""
  batch_norm: Literal['train', 'eval'] = 'train'
  """Batch norm in tuning; the official code: eval for AlexNet and VGG11."""
  data_path: Annotated[str, PATH] | None = None
  """Directory of the data, if it is not where train.py found it."""
  eval_batch: Batch | None = None
  """Images per evaluation step; if not given, as in training."""
  tune_batch: Batch | None = None
  """Images per step of the fine-tuning; if not given, as in training. It is
  rounded up to a multiple of the number of devices."""
  coco: bool = False
  """Add COCO's twelve numbers, for detection; needs the extra detection."""
  accept: Literal['better', 'always'] = 'better'
  """Keep a layer's update only where it helped, or always."""
  explain: bool = True
  """Add cost, early exit and diagnosis of the kept networks to the report."""
  keep: Literal['last'] | _Mode | Literal['bias', 'sequential', 'parallel'] = (
    'last'
  )
  """Save this network as snn4, …: one of mode, one of tune, or the last."""

  def __post_init__(self):
    for name in ('bits', 'mode', 'tune'):  # one alone needs no tuple
      value = getattr(self, name)
      single = isinstance(value, int | str)
      object.__setattr__(self, name, (value,) if single else tuple(value))
    super().__post_init__()
    for bits in self.bits:
      if bits not in (5, 4, 3, 2):
        raise UserError(f'bits={bits}, but a spiking network has 5, 4, 3 or 2')
    made = ('last', *self.mode, *self.schedules)
    words = f'one of {", ".join(made)}; it has to be in mode or tune'
    self.check('keep', lambda v: v in made, words)

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
class Compute(Settings):
  """How devices compute a training step; the official code: the defaults."""

  dtype: Literal['float32', 'bfloat16'] = 'float32'
  """Type of the layers in training; all else is float32, evaluation too."""
  accumulate: Count = 1
  """Compute a batch in this many parts, with the memory of one."""
  remat: bool = False
  """Compute the insides of layers twice, which takes less memory."""
  batch_stats: Literal['global', 'device'] = 'global'
  """Batch norm's statistics: of the whole batch, or of each device's part."""


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
  """A network, its data, the stages of its training and its conversion."""

  model: str = 'small_resnet8'
  """Name of a model, one of fastsnn_jax.models()."""
  data: Data = Data()
  stages: Annotated[tuple[Stage, ...], _DIFFER] = tuple(
    Stage(bits) for bits in (32, 4, 3, 2)
  )
  convert: Conversion = Conversion()
  compute: Compute = Compute()
  seed: Seed = 0
  """Seed of initial values, shuffling and augmentation."""
  inherit: Literal['all', 'trunk'] = 'all'
  """Layers taken from the stage before; official ResNet segmenter: trunk."""
  pretrained: Annotated[str, PATH] | None = None
  """File of torchvision's ResNet-34, for the trunk of the first stage."""
  optimizer: Literal['sgd', 'adamw'] = 'sgd'
  """Optimiser; the official code: sgd."""
  momentum: BelowOne = 0.9
  """Momentum of sgd."""
  warmup: WarmUp = 0.0
  """Raise the learning rate from 0 in this many epochs."""
  warmup_power: Positive = 1.0
  """Raise it with this power of the share done; official detection: 4."""
  smoothing: BelowOne = 0.0
  """Share of the target that label smoothing spreads over all classes."""
  balance: UpToOne = 0.0
  """Weight the classes of masks by frequency ** -balance; 0.5 helps rare."""
  ema: BelowOne = 0.0
  """Decay of a moving average of weights, judged and saved; 0 for none."""
  decay: Literal['all', 'kernels'] = 'all'
  """What weight decay acts on; the official code: all, theta too."""
  select: Literal['held-out', 'test', 'last'] = 'held-out'
  """Images that select the epoch, or the last; the official code: test."""
  save_minutes: NotNegative = 5.0
  """Save every this many minutes within a stage."""
  save_steps: Count | None = None
  """Save every this many steps, too."""


def from_dict(tree: dict[str, Any]) -> Experiment:
  """The inverse of `asdict`; settings that came later have their defaults."""

  def made(kind, part):
    lists = {k: tuple(v) for k, v in part.items() if isinstance(v, list)}
    return kind(**{**part, **lists})

  try:
    parts = {
      'data': made(Data, tree['data']),
      'stages': tuple(made(Stage, stage) for stage in tree['stages']),
      'convert': made(Conversion, tree['convert']),
      'compute': made(Compute, tree.get('compute', {})),
    }
    return Experiment(**{**tree, **parts})
  except (KeyError, TypeError, UserError) as error:
    raise UserError(
      f'the experiment in this checkpoint does not fit this version ({error}); '
      'load it with the version that wrote it'
    ) from error


def load(path) -> Experiment:
  """The `config` of a Python file, or of one of ours by name.

  UserError if there is no such file, if it cannot be run, or has no `config`.

  >>> load('digits').model
  'small_resnet8'
  """
  name, file = str(path), None
  if is_path(name):
    file = pathlib.Path(name).expanduser()
  if file is None or not os.path.isfile(file):  # is_file raises, unreadable
    file = _ours().get(name)
  if file is None:
    raise UserError(
      f'--config {name}: no such file; those that come with the package are '
      f'{", ".join(sorted(_ours()))}'
    )
  try:
    config = runpy.run_path(str(file)).get('config')
  except UserError as error:
    raise UserError(f'{name}: {error}') from error
  except (Exception, SystemExit) as error:  # a config has no say in our end
    said = told(error)
    raise UserError(
      f'{name}: it cannot be run ({said}); it is to be Python that sets '
      'config = Experiment(…)'
    ) from error
  if not isinstance(config, Experiment):
    raise UserError(f'{name}: it must set config = Experiment(…)')
  return config


def _ours() -> dict[str, pathlib.Path]:
  """{name: file}; a wheel has them in the package, a checkout beside it."""
  package = pathlib.Path(__file__).parents[1]
  folders = package / 'configs', package.parent / 'configs'
  return {path.stem: path for f in folders for path in f.glob('*.py')}
