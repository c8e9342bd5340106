"""Data of one's own as splits and data sets, checked where they come in."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from fastsnn_jax.data.dataset import (
  CLASSES,
  MEAN_STD,
  Arrays,
  Split,
  check_example,
  statistics,
)
from fastsnn_jax.data.stream import Stream, as_it_is
from fastsnn_jax.errors import UserError

_IGNORED = 255  # in masks: no class
_SAMPLE = 1024  # images of a stream whose mean and deviation are measured


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set; its parts are splits, or what `as_split` takes.

  Attributes:
    name: what it is called in reports and checkpoints.
    train: examples to train on: images uint8 [H, W, C] and the task's labels.
    test: the same, to be looked at once.
    classes: names of the classes.
    mean, std: per channel, of images in 0..1.
    validation: a third split, if the set has its own; otherwise a part of
      `train` is held out.
    notes: what was mended or left out, for the user to know.
  """

  name: str
  train: Split
  test: Split
  classes: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  validation: Split | None = None
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    for part in ('train', 'test', 'validation'):
      if (value := getattr(self, part)) is not None:
        object.__setattr__(self, part, as_split(value))


def as_split(data) -> Split:
  """A split of data of one's own.

  Args:
    data: a dict of arrays; a list of examples, or another iterable of them such
      as a generator or a `grain.IterDataset`, which is read into memory once;
      or a sequence of examples, with `len` and `[i]`, such as a
      `grain.MapDataset`, which is read as it is needed. An example is a dict,
      {'image': [H, W, C], 'label': …}; images are uint8 or floats in 0..255.

  Raises:
    UserError: something else, or examples that do not fit together.

  >>> examples = [{'image': np.zeros((2, 2, 1), np.uint8), 'label': 3}]
  >>> as_split(iter(examples)).column('label').tolist()
  [3]
  """
  if isinstance(data, Split):
    return data
  if isinstance(data, Mapping):
    return Arrays({name: _stacked(name, x) for name, x in data.items()})
  sequence = hasattr(data, '__len__') and hasattr(data, '__getitem__')
  if sequence and not isinstance(data, list | tuple):
    return Stream(data, as_it_is)
  if not isinstance(data, Iterable):
    raise UserError(
      f'data of type {type(data).__name__}; give a dict of arrays, a sequence '
      "or an iterable of examples {'image': …, 'label': …}"
    )
  examples = [check_example(example) for example in data]
  if not examples:
    raise UserError('the iterable gave no example; at least one is needed')
  if odd := [e for e in examples if e.keys() != examples[0].keys()]:
    raise UserError(
      f'examples with {sorted(examples[0])} and with {sorted(odd[0])}; all '
      'must have the same labels'
    )
  return Arrays(
    {name: _stacked(name, [e[name] for e in examples]) for name in examples[0]}
  )


def _stacked(name, rows):
  try:
    return np.asarray(rows)
  except ValueError as error:  # NumPy's text does not say which
    raise UserError(
      f'{name!r} has rows of several shapes, which make no array; bring '
      'images to one size, and fill up lists of boxes with label -1'
    ) from error


def as_dataset(data, name: str = 'own') -> Dataset:
  """A data set of data of one's own.

  Args:
    data: a `Dataset`; or a dict with 'train' and 'test', each as `as_split`
      takes it, and optionally 'validation', 'name', 'classes', 'mean' and
      'std'. Without them classes are numbered from the labels, and mean and
      standard deviation are those of the training images.
    name: what it is called, if it does not say so.

  Raises:
    UserError: a part is missing, or they do not fit together.

  >>> part = {'image': np.zeros((4, 8, 8, 1), np.uint8), 'label': np.arange(4)}
  >>> as_dataset({'train': part, 'test': part}).classes
  ('0', '1', '2', '3')
  """
  if isinstance(data, Dataset):
    return data
  if not isinstance(data, Mapping) or not {'train', 'test'} <= set(data):
    raise UserError(
      f'data of type {type(data).__name__}; give a Dataset, or a dict with '
      "'train' and 'test', such as {'train': {'image': …, 'label': …}, …}"
    )
  known = {field.name for field in dataclasses.fields(Dataset)} - {'notes'}
  if strange := sorted(set(data) - known):
    raise UserError(
      f'data: {strange[0]!r} is no part of a data set; there are '
      f'{", ".join(sorted(known))}'
    )
  return assemble(**{'name': name, **data})


def assemble(
  name, train, test, classes=None, validation=None, mean=None, std=None
) -> Dataset:
  """Checks splits against each other and adds what is known of the set.

  Args:
    name: of the data set; the known ones bring mean, std and classes.
    train, test, validation: as `as_split` takes them.
    classes: names of the classes, or None for the known or numbered ones.
    mean, std: per channel, of images in 0..1; None for the known or measured.

  Raises:
    UserError: an empty split, images of two sizes or that are no pixels, a
      label without a class.
  """
  parts = {'train': as_split(train), 'test': as_split(test)}
  if validation is not None:
    parts['validation'] = as_split(validation)
  for part, split in parts.items():
    _check_images(f'{name}: the {part} split', split)
  shape, *others = (split.shape for split in parts.values())
  if odd := [other for other in others if other != shape]:
    raise UserError(
      f'{name}: training images have shape {shape}, others {odd[0]}; all '
      'splits must come from one set'
    )
  classes = tuple(classes or CLASSES.get(name, ()))
  columns = [split.column('label') for split in parts.values()]
  classes = _classes(name, [x for x in columns if x is not None], classes)
  if not classes:
    raise UserError(
      f'{name}: its labels do not say which classes there are; give '
      "'classes', their names"
    )
  if (mean is None) != (std is None):
    raise UserError(f'{name}: mean={mean}, std={std}; give both or neither')
  if mean is None:
    mean, std = MEAN_STD.get(name, ((), ()))
    if len(mean) != shape[-1]:
      sample = parts['train']
      if not isinstance(sample, Arrays):
        sample = sample.some(_SAMPLE, seed=0).in_memory()
      mean, std = statistics(sample['image'])
  if not len(mean) == len(std) == shape[-1]:
    raise UserError(
      f'{name}: mean={mean}, std={std} for images of shape {shape}; give one '
      'number for each channel, the last dimension'
    )
  return Dataset(
    name, classes=classes, mean=tuple(mean), std=tuple(std), **parts
  )


def _check_images(what, split):
  if not len(split) or 0 in split.shape:
    raise UserError(
      f'{what} holds no images ({len(split)} of shape {split.shape}); it needs '
      'at least one'
    )
  if len(split.shape) != 3:
    raise UserError(
      f'{what} has images of shape {split.shape}, but they must be [H, W, C]; '
      'give grey ones a channel: images[..., None]'
    )
  images = split.column('image')
  if images is not None and not np.issubdtype(images.dtype, np.uint8):
    low, high = images.min(), images.max()
    shares = np.issubdtype(images.dtype, np.floating) and 0 < high <= 1
    if not 0 <= low <= high <= 255 or shares:
      raise UserError(
        f'{what} has values from {low} to {high}; images must have pixels of 0 '
        'to 255, so multiply what lies in 0 to 1 by 255'
      )


def _classes(name, columns, classes):
  """The names of the classes, if they are as many as the labels need."""
  if not all(np.issubdtype(x.dtype, np.integer) for x in columns):
    return classes
  # Wide enough that the count of classes does not wrap at label 255.
  labels = np.concatenate([[], *map(np.ravel, columns)]).astype(int)
  single = all(x.ndim == 1 for x in columns)
  if any(x.ndim == 3 for x in columns):
    labels = labels[labels != _IGNORED]
  low, high = (labels.min(), labels.max()) if labels.size else (0, -1)
  classes = classes or tuple(map(str, range(high + 1)))
  # Boxes have -1 for no object.
  if high >= len(classes) or (single and low < 0):
    raise UserError(
      f'{name}: labels run from {low} to {high}, but there are {len(classes)} '
      f'classes; labels must be 0 to {len(classes) - 1}'
    )
  return classes
