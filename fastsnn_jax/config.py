"""The schema of an experiment: frozen, typed, checked when it is made."""

import dataclasses
import math
import pathlib
import runpy
import typing
from typing import Any, Literal

from fastsnn_jax.errors import UserError


def _check(owner, name, good, rule):
  value = getattr(owner, name)
  if not good(value):
    kind = type(owner).__name__.lower()
    raise UserError(f'{kind}.{name}={value!r}, but it must be {rule}')


def _check_types(owner):
  """Config files are Python: what they set is checked here, not by tyro."""
  for name, hint in typing.get_type_hints(type(owner)).items():
    _check(owner, name, lambda v, hint=hint: _fits(v, hint), _words(hint))


def _fits(value, hint):
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return value in parts
  if origin is tuple:
    return isinstance(value, tuple) and all(_fits(v, parts[0]) for v in value)
  if parts:  # X | None
    return any(_fits(value, part) for part in parts)
  if hint is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
  return isinstance(value, hint) and (
    hint is bool or not isinstance(value, bool)
  )


def _words(hint):
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return 'one of ' + ', '.join(map(str, parts))
  if origin is tuple:
    return f'a tuple, each {_words(parts[0])}'
  if parts:
    return ' or '.join(map(_words, parts))
  plain = {int: 'a whole number', float: 'a finite number', str: 'text'}
  return plain.get(hint, 'none' if hint is type(None) else hint.__name__)


@dataclasses.dataclass(frozen=True)
class Data:
  """Which images, and how they are drawn."""

  name: str = 'digits'
  """digits, mnist, fashion_mnist, cifar10, cifar100, idx, or a TFDS set."""
  path: str | None = None
  """Directory of idx files or of prepared TFDS data sets."""
  batch: int = 128
  """Images per training step."""
  eval_batch: int = 100
  """Images per evaluation step."""
  crop: int = 4
  """Zero padding in pixels for random crops; 0 for none."""
  flip: bool = True
  """Mirror training images at random."""
  held_out: float = 0.1
  """Share of the training images that selects the best epoch."""

  def __post_init__(self):
    _check_types(self)
    for name in ('batch', 'eval_batch'):
      _check(self, name, lambda v: v >= 1, 'at least 1')
    _check(self, 'crop', lambda v: v >= 0, 'at least 0')
    _check(self, 'held_out', lambda v: 0 < v < 1, 'between 0 and 1')


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
  schedule: Literal['step', 'cosine', 'constant'] = 'step'
  """step: a tenth at each milestone."""
  milestones: tuple[float, ...] = (0.5, 0.75)
  """Shares of the epochs, for the schedule step."""

  def __post_init__(self):
    _check_types(self)
    _check(self, 'bits', lambda v: v in (32, 5, 4, 3, 2), '32, 5, 4, 3 or 2')
    _check(self, 'epochs', lambda v: v >= 1, 'at least 1')
    _check(self, 'learning_rate', lambda v: v > 0, 'above 0')
    _check(self, 'weight_decay', lambda v: v >= 0, 'at least 0')
    _check(
      self,
      'milestones',
      lambda v: all(0 < share < 1 for share in v) and sorted(set(v)) == [*v],
      'shares of the epochs between 0 and 1 that rise',
    )


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What convert.py does with each quantised network."""

  bits: tuple[int, ...] = (4, 3, 2)
  """Bit widths to convert."""
  mode: tuple[Literal['unsigned', 'signed', 'settled'], ...] = (
    'unsigned',
    'signed',
    'settled',
  )
  """Neurons to judge."""
  settle: int = 8
  """Steps after the T-th in settled mode."""
  tune: tuple[Literal['sequential', 'parallel', 'none'], ...] = ('sequential',)
  """Layer-wise fine-tuning of the signed network; none to leave it out."""
  tune_epochs: int = 1
  """Passes over the tuning images, per layer if sequential."""
  tune_images: int | None = None
  """Training images to tune and judge with; all if not given."""
  tune_learning_rate: float = 1e-3
  """Of the fine-tuning's SGD."""
  tune_weight_decay: float = 1e-4
  """The reference: 5e-4 for the CIFAR AlexNet and VGG11, else 1e-4."""
  batch_norm: Literal['train', 'eval'] = 'train'
  """The tuned layer's batch norm; the reference: eval for AlexNet and VGG11."""
  data_path: str | None = None
  """Directory of the data, if it is not where train.py found it."""
  accept: Literal['better', 'always'] = 'better'
  """Keep a layer's update only where it helped, or always."""

  def __post_init__(self):
    for name in ('bits', 'mode', 'tune'):  # one alone needs no tuple
      value = getattr(self, name)
      single = isinstance(value, int | str)
      object.__setattr__(self, name, (value,) if single else tuple(value))
    _check_types(self)
    _check(self, 'bits', lambda v: v, 'one bit width or more')
    for bits in self.bits:
      if bits not in (5, 4, 3, 2):
        raise UserError(f'bits={bits}, but a spiking network has 5, 4, 3 or 2')
    _check(self, 'mode', lambda v: v, 'one mode or more')
    _check(self, 'settle', lambda v: v >= 1, 'at least 1')
    _check(self, 'tune_epochs', lambda v: v >= 1, 'at least 1')
    _check(self, 'tune_learning_rate', lambda v: v > 0, 'above 0')
    _check(self, 'tune_weight_decay', lambda v: v >= 0, 'at least 0')
    _check(
      self, 'tune_images', lambda v: v is None or v >= 1, 'at least 1, or none'
    )

  @property
  def schedules(self) -> tuple[str, ...]:
    """The fine-tuning schedules asked for."""
    return tuple(name for name in self.tune if name != 'none')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A network, its data, the stages of its training and its conversion."""

  model: str = 'small_resnet8'
  """A name that fastsnn_jax.build takes."""
  data: Data = Data()
  stages: tuple[Stage, ...] = (Stage(32), Stage(4), Stage(3), Stage(2))
  convert: Conversion = Conversion()
  seed: int = 0
  """Of initial values, shuffling and augmentation."""
  momentum: float = 0.9
  """Of SGD."""
  decay: Literal['all', 'kernels'] = 'all'
  """What weight decay pulls on: the reference's all, theta too, or kernels."""
  select: Literal['held-out', 'test', 'last'] = 'held-out'
  """Which epoch is kept; test is what the reference does."""
  save_minutes: float = 5.0
  """Time between saves within a stage."""

  def __post_init__(self):
    _check_types(self)
    _check(self, 'seed', lambda v: v >= 0, 'at least 0')
    _check(self, 'stages', lambda v: v, 'one stage or more')
    _check(
      self,
      'stages',
      lambda v: len({s.bits for s in v}) == len(v),
      'of different bits',
    )
    _check(self, 'momentum', lambda v: 0 <= v < 1, 'in [0, 1)')
    _check(self, 'save_minutes', lambda v: v >= 0, 'at least 0')


def to_dict(config: Experiment) -> dict[str, Any]:
  """Plain dicts and lists, for JSON."""
  return dataclasses.asdict(config)


def from_dict(tree: dict[str, Any]) -> Experiment:
  """The inverse of `to_dict`."""

  def tuples(part):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}

  try:
    parts = {
      **tree,
      'data': Data(**tuples(tree['data'])),
      'stages': tuple(Stage(**tuples(stage)) for stage in tree['stages']),
      'convert': Conversion(**tuples(tree['convert'])),
    }
    return Experiment(**parts)
  except (KeyError, TypeError) as error:
    raise UserError(
      f'the experiment in this checkpoint does not fit this version ({error}); '
      'load it with the version that wrote it'
    ) from error


def flat(
  config: Experiment,
  conversion: Conversion,
  imported: dict[str, str] | None = None,
) -> dict[str, Any]:
  """Settings as one level of names, for the report; paths are left out.

  Those of the training too, unless the network was imported from a file.
  """
  tree = {**to_dict(config), 'convert': dataclasses.asdict(conversion)}
  result = {}
  if imported:
    kept = ('model', 'data', 'convert', 'seed')
    tree = {name: tree[name] for name in kept}
    result['imported from'] = imported['file']
  for name, value in tree.items():
    if name == 'stages':
      for stage in value:
        words = [f'{k} {v}' for k, v in stage.items() if k != 'bits']
        result[f'stage {stage["bits"]} bits'] = ', '.join(words)
    elif isinstance(value, dict):
      result |= {
        f'{name}.{k}': v
        for k, v in value.items()
        if k not in ('path', 'data_path')
      }
    else:
      result[name] = value
  return result


def load(path) -> Experiment:
  """The `config` of a Python file, as those in configs/.

  Raises:
    UserError: no such file, not to be run, or without a `config`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'--config {path}: no such file; configs/ holds some')
  try:
    found = runpy.run_path(str(path)).get('config')
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except Exception as error:
    raise UserError(
      f'{path}: it cannot be run ({type(error).__name__}: {error}); it is to '
      'be Python that sets config = Experiment(…)'
    ) from error
  if not isinstance(found, Experiment):
    raise UserError(f'{path}: it must set config = Experiment(…)')
  return found
