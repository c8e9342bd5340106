"""Data of one's own as splits and data sets, checked where they come in."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data.dataset import CLASSES, MEAN_STD, Arrays, Split
from fastsnn_jax.data.records import IGNORED
from fastsnn_jax.data.stream import Stream, as_it_is, stacked
from fastsnn_jax.errors import UserError

_SAMPLE = 1024  # images of a stream that are looked at


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set; its parts are splits, or what `as_split` takes.

  Attributes:
    name: what it is called in reports and checkpoints.
    train, test: images uint8 [H, W, C] and the task's labels.
    classes: names of the classes.
    mean, std: per channel, of images in 0..1.
    validation: a third split; without it a part of `train` is held out.
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

  `data` are a dict of arrays; a list of examples, or another iterable of them
  such as a generator or a `grain.IterDataset`, which is read into memory once;
  or a sequence of examples, with `len` and `[i]`, such as a `grain.MapDataset`,
  which is read as it is needed. An iterable may give batches of examples, as
  a loader does. An example is a dict, {'image': [H, W, C], 'label': …}; images
  are uint8 or floats in 0..255.

  Raises:
    UserError: something else, or examples that do not fit together.

  >>> examples = [{'image': np.zeros((2, 2, 1), np.uint8), 'label': 3}]
  >>> as_split(iter(examples)).column('label').tolist()
  [3]
  """
  if isinstance(data, Split):
    return data
  if isinstance(data, Mapping):
    return Arrays({name: stacked(name, x) for name, x in data.items()})
  sequence = hasattr(data, '__len__') and hasattr(data, '__getitem__')
  if sequence and not isinstance(data, list | tuple):
    return Stream(data, as_it_is)
  if not isinstance(data, Iterable):
    raise UserError(
      f'data of type {type(data).__name__}; give a dict of arrays, a sequence '
      "or an iterable of examples {'image': …, 'label': …}"
    )
  examples = list(map(as_it_is, data))
  if not examples:
    raise UserError('the iterable gave no example; at least one is needed')
  names = examples[0].keys()
  if odd := [e for e in examples if e.keys() != names]:
    raise UserError(
      f'{sorted(names)} and {sorted(odd[0])}: all must have the same labels'
    )
  if examples[0]['image'].ndim == 4:  # batches, as a loader gives them
    examples = [row for batch in examples for row in _rows(batch)]
    names = examples[0].keys()
  return as_split({name: [e[name] for e in examples] for name in names})


def _rows(batch):
  """The examples of a batch, without those that fill it up."""
  mask = batch.pop('mask', np.ones(len(batch['image'])))
  for i in np.flatnonzero(mask):
    yield {name: x[i] for name, x in batch.items()}


def as_dataset(data, name: str = 'own') -> Dataset:
  """A data set of data of one's own.

  `data` are a `Dataset`; or a dict with 'train' and 'test', each as `as_split`
  takes it, and optionally 'validation', 'name' (else `name`), 'classes', 'mean'
  and 'std'. Without them classes are numbered from the labels, and mean and
  standard deviation are those of the training images.

  Raises:
    UserError: a part is missing, or they do not fit together.

  >>> part = {'image': np.zeros((4, 8, 8, 1), np.uint8), 'label': np.arange(4)}
  >>> as_dataset({'train': part, 'test': part}).classes
  ('0', '1', '2', '3')
  """
  if isinstance(data, Dataset):
    return data
  if not isinstance(data, Mapping) or not {'train', 'test'} <= set(data):
    is_dict = isinstance(data, Mapping)
    what = f'{list(data)}' if is_dict else f'type {type(data).__name__}'
    raise UserError(
      f'data of {what}; give a Dataset, or a dict with '
      "'train' and 'test', such as {'train': {'image': …, 'label': …}, …}"
    )
  known = {field.name for field in dataclasses.fields(Dataset)} - {'notes'}
  if strange := sorted(set(data) - known):
    raise UserError(
      f'{strange[0]!r} is no part of a data set; these are: {sorted(known)}'
    )
  return assemble(**{'name': name, **data})


def assemble(
  name, train, test, classes=None, validation=None, mean=None, std=None
) -> Dataset:
  """Checks splits against each other and adds what is known of the set.

  Known names bring mean, std and classes; otherwise None has classes numbered,
  mean and std measured. UserError for an empty split, images of two sizes or
  that are no pixels, and a label without a class. Of a stream, some images are
  looked at, and none if they are bytes whose mean and std are known.
  """
  parts = {'train': train, 'test': test, 'validation': validation}
  parts = {k: as_split(x) for k, x in parts.items() if x is not None}
  for part, split in parts.items():
    _check_images(f'{name}: the {part} split', split)
  shape, *others = (split.shape for split in parts.values())
  if odd := [other for other in others if other != shape]:
    raise UserError(
      f'{name}: images of {shape} and of {odd[0]} must come from one set'
    )
  classes = tuple(classes or CLASSES.get(name, ()))
  columns = [split.column('label') for split in parts.values()]
  classes = _classes(name, [x for x in columns if x is not None], classes)
  if (mean is None) != (std is None):
    raise UserError(f'{name}: mean={mean}, std={std}; give both or neither')
  if mean is None:
    mean, std = MEAN_STD.get(name, ((), ()))
    if len(mean) != shape[-1]:
      mean, std = statistics(_images(parts['train']))
  if not len(mean) == len(std) == shape[-1]:
    raise UserError(
      f'{name}: mean={mean}, std={std}; images of shape {shape} need one '
      'number for each channel, the last dimension'
    )
  return Dataset(
    name, classes=classes, mean=tuple(mean), std=tuple(std), **parts
  )


def statistics(images) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel, of images scaled to 0..1.

  `images` are [..., C], uint8 or floats in 0..255. The deviation is at least
  1/255, so that a channel which never changes can be divided by it.
  """
  values, mean, std = np.arange(256) / 255, [], []
  for channel in range(images.shape[-1]):
    # From a histogram: exact, and no float copy of the whole set.
    grey = np.ravel(images[..., channel]).astype(np.uint8)
    share = np.bincount(grey, minlength=256) / grey.size
    mean.append(float(share @ values))
    variance = float(share @ (values - mean[-1]) ** 2)
    std.append(max(variance**0.5, 1 / 255))
  return tuple(mean), tuple(std)


def _images(split):
  """All images in memory; some of those that are read when they are needed."""
  if not isinstance(split, Arrays):
    split = split.some(_SAMPLE, seed=0).in_memory()
  return split['image']


def _check_images(what, split):
  if not len(split) or 0 in split.shape:
    raise UserError(
      f'{what} holds no images ({len(split)} of shape {split.shape}); at least '
      'one is needed'
    )
  if len(split.shape) != 3:
    raise UserError(
      f'{what} has images of shape {split.shape}, but they must be [H, W, C]; '
      'give grey ones a channel: images[..., None]'
    )
  dtype = split.shapes(1)['image'].dtype
  if dtype == np.uint8:
    return
  real = jnp.issubdtype(dtype, jnp.floating)  # bfloat16 too
  if not (real or np.issubdtype(dtype, np.integer)):
    raise UserError(
      f'{what} has images of dtype {dtype}, but they must be uint8 or floats, '
      'with pixels of 0 to 255'
    )
  images = _images(split)
  low, high = images.min(), images.max()
  if not (low >= 0 and high <= 255):  # nor if one is not a number
    remedy = (
      'give them as they are: not normalised, which the network does itself; '
      'divide those of 16 bits by 257'
    )
  elif real and 0 < high <= 1:
    remedy = 'multiply what lies in 0 to 1 by 255'
  else:
    return
  raise UserError(
    f'{what} has values from {low} to {high}; images must have pixels of 0 to '
    f'255, so {remedy}'
  )


def _classes(name, columns, classes):
  """The names of the classes, if they are as many as the labels need."""
  if not all(np.issubdtype(x.dtype, np.integer) for x in columns):
    columns = ()  # floats are no classes
  # Wide enough that the count of classes does not wrap at label 255.
  labels = np.concatenate([[], *map(np.ravel, columns)]).astype(int)
  single = all(x.ndim == 1 for x in columns)
  if any(x.ndim == 3 for x in columns):
    labels = labels[labels != IGNORED]
  low, high = (labels.min(), labels.max()) if labels.size else (0, -1)
  classes = classes or tuple(map(str, range(high + 1)))
  if not classes:
    raise UserError(
      f'{name}: the classes are not known, for the labels are no whole numbers '
      "in memory; give their names, data={…, 'classes': ('cat', 'dog')}"
    )
  # Boxes have -1 for no object.
  if high >= len(classes) or (single and low < 0):
    raise UserError(
      f'{name}: labels run from {low} to {high}, but there are {len(classes)} '
      f'classes; labels must be 0 to {len(classes) - 1}'
    )
  return classes
