"""What a data set is here, and what is known of the usual ones."""

import dataclasses

import numpy as np

from fastsnn_jax.errors import UserError

_DIGITS = tuple('0123456789')

# Per channel, of images in 0..1. Those of MNIST and Fashion-MNIST are the
# customary ones; CIFAR's are what the reference normalises with.
MEAN_STD = {
  'mnist': ((0.1307,), (0.3081,)),
  'fashion_mnist': ((0.2860,), (0.3530,)),
  'cifar10': ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
  'cifar100': ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
  'imagenet2012': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

CLASSES = {
  'mnist': _DIGITS,
  'fashion_mnist': (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A data set, whole, in memory.

  Attributes:
    name: What it is called in reports and checkpoints.
    train: `{'image': uint8 [N, H, W, C], 'label': int32 [N]}`, or the labels of
      another task, see `tasks`.
    test: The same, to be looked at once.
    classes: Names of the classes; `label` indexes them.
    mean: Per channel, of images in 0..1; what `normalize` takes.
    std: Per channel, of images in 0..1.
    validation: A third split, if the set has its own; otherwise a part of
      `train` is held out.
    notes: What was found wrong and mended, for the user to know.
  """

  name: str
  train: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  classes: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  validation: dict[str, np.ndarray] | None = None
  notes: tuple[str, ...] = ()


def assemble(name, train, test, classes=None) -> Dataset:
  """Checks two splits against each other and adds what is known of the set.

  Args:
    name: Of the data set; the known ones bring their mean, std and classes.
    train: `{'image': uint8 [N, H, W, C], 'label': integer [N]}`.
    test: The same.
    classes: Names of the classes, or None for the known or numbered ones.

  Raises:
    UserError: An empty split, images of two sizes, a label without a class.
  """
  for part, arrays in (('train', train), ('test', test)):
    if arrays['image'].size == 0:
      raise UserError(
        f'{name}: the {part} split holds no images (shape '
        f'{arrays["image"].shape}); it needs at least one'
      )
  shapes = train['image'].shape[1:], test['image'].shape[1:]
  if shapes[0] != shapes[1]:
    raise UserError(
      f'{name}: training images have shape {shapes[0]}, test images '
      f'{shapes[1]}; both splits must come from one set'
    )
  # Wide enough that the count of classes does not wrap at label 255.
  labels = np.concatenate([train['label'], test['label']]).astype(np.int64)
  if classes is None:
    classes = CLASSES.get(name) or tuple(map(str, range(labels.max() + 1)))
  if labels.min() < 0 or labels.max() >= len(classes):
    raise UserError(
      f'{name}: labels run from {labels.min()} to {labels.max()}, but there '
      f'are {len(classes)} classes; labels must be 0 to {len(classes) - 1}'
    )
  mean, std = MEAN_STD.get(name, ((), ()))
  if len(mean) != shapes[0][-1]:
    mean, std = statistics(train['image'])
  parts = [
    {'image': x['image'], 'label': x['label'].astype(np.int32)}
    for x in (train, test)
  ]
  return Dataset(name, *parts, tuple(classes), mean, std)


def statistics(images) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel, of images scaled to 0..1.

  Args:
    images: uint8 [..., C].

  Returns:
    Two tuples of C floats. The deviation is at least 1/255, so that a channel
    which never changes can be divided by it.

  >>> statistics(np.array([[0], [255]], np.uint8))
  ((0.5,), (0.5,))
  """
  values = np.arange(256) / 255
  mean, std = [], []
  for channel in range(images.shape[-1]):
    # From a histogram: exact, and no float copy of the whole set.
    share = np.bincount(images[..., channel].ravel(), minlength=256)
    share = share / share.sum()
    mean.append(float(share @ values))
    variance = float(share @ (values - mean[-1]) ** 2)
    std.append(max(variance**0.5, 1 / 255))
  return tuple(mean), tuple(std)


def split(arrays, fraction, seed):
  """Parts a set in two by a shuffle that `seed` fixes.

  Args:
    arrays: A dict of arrays with the same first dimension N.
    fraction: Share of the second, held-out part, in (0, 1). Each part gets at
      least one row.
    seed: A non-negative integer. One seed gives one split for good: it does
      not depend on the version of NumPy.

  Returns:
    `(train_part, held_out_part)`, disjoint, together the whole.

  Raises:
    UserError: A fraction outside (0, 1), a negative seed, fewer than two rows,
      arrays of different lengths.

  >>> train, held_out = split({'label': np.arange(10)}, 0.3, seed=0)
  >>> len(train['label']), len(held_out['label'])
  (7, 3)
  """
  if not 0 < fraction < 1:
    raise UserError(
      f'fraction is {fraction}; the held-out share must lie strictly between '
      '0 and 1, such as 0.1'
    )
  if seed < 0:
    raise UserError(f'seed is {seed}; it must be 0 or a positive integer')
  lengths = {key: len(value) for key, value in arrays.items()}
  if len(set(lengths.values())) != 1:
    raise UserError(
      f'arrays have lengths {lengths}; a split needs the same number of rows '
      'in each'
    )
  rows = next(iter(lengths.values()))
  if rows < 2:
    raise UserError(
      f'the set has {rows} rows; a split needs at least 2, so use more data'
    )
  # NumPy promises the raw stream of a bit generator for ever, but not what
  # `Generator.permutation` makes of it.
  order = np.argsort(np.random.PCG64(seed).random_raw(rows), kind='stable')
  held = min(max(round(rows * fraction), 1), rows - 1)
  return (
    {key: value[order[held:]] for key, value in arrays.items()},
    {key: value[order[:held]] for key, value in arrays.items()},
  )
