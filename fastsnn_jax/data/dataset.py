"""What a data set is: splits that answer `batches`, in memory or on disk.

Nobody outside of this folder asks how a split is stored.
"""

import abc
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from fastsnn_jax.errors import UserError

# Per channel, of images in 0..1. Those of MNIST and Fashion-MNIST are the
# customary ones; CIFAR's are what the official code normalises with.
MEAN_STD = {
  'mnist': ((0.1307,), (0.3081,)),
  'fashion_mnist': ((0.2860,), (0.3530,)),
  'cifar10': ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
  'cifar100': ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
  'imagenet2012': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CLASSES = {
  'mnist': tuple('0123456789'),
  'fashion_mnist': (
    *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal'),
    *('Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
  ),
}


class Shuffle(NamedTuple):
  """What fixes the draws of a stage of training, for good.

  Keys are for the initial values, the order of the examples and what is drawn
  for augmentation; `number` is a seed for what is drawn on the host.
  """

  seed: int
  stage: int = 0

  @property
  def init_key(self) -> jax.Array:
    return self._keys()[0]

  @property
  def order_key(self) -> jax.Array:
    return jax.random.split(self._keys()[1])[0]

  @property
  def draw_key(self) -> jax.Array:
    return jax.random.split(self._keys()[1])[1]

  @property
  def number(self) -> int:
    return int(jax.random.key_data(self._keys()[1]).ravel()[-1])

  def _keys(self):
    key = jax.random.fold_in(jax.random.key(self.seed), self.stage)
    return jax.random.split(key)


class Split(abc.ABC):
  """One part of a data set: examples by number, and batches of them."""

  shape: tuple[int, ...]  # (H, W, C) of an image in a batch of an evaluation

  @abc.abstractmethod
  def __len__(self) -> int:
    """How many examples there are."""

  @abc.abstractmethod
  def batches(
    self,
    size: int,
    *,
    shuffle: Shuffle | None = None,
    start: int = 0,
    shared: bool = True,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `size` examples: 'image', the labels, and 'mask', as arrays.

    Without `shuffle` one pass in order. With it training batches without end,
    in a new order each epoch. The last batch of a pass or an epoch is filled up
    with examples of the same; 'mask' is 0 for them, and 1 for all others.
    Batch `start` is the first; later ones are those of an unbroken run. If
    `shared`, each process gets its own rows of a batch, otherwise all rows.
    """

  @abc.abstractmethod
  def take(self, rows) -> 'Split':
    """The examples of these numbers, in this order."""

  @abc.abstractmethod
  def shapes(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a training batch of all processes is made of, 'mask' included."""

  def column(self, name: str) -> np.ndarray | None:
    """The labels of this name of all examples, if they are in memory."""
    del name

  def complaints(self) -> list[str]:
    """What the user should know since the last call, a line each."""
    return []

  def some(self, count: int, seed: int) -> 'Split':
    """So many of the examples, drawn at random: a list may be sorted."""
    if count >= len(self):
      return self
    return self.split(1 - count / len(self), seed)[0]

  def in_memory(self) -> 'Arrays':
    """All examples that can be decoded, on every process."""
    arrays, filled = {}, 0
    for batch in self.batches(min(64, len(self)), shared=False):
      real = batch.pop('mask') > 0
      for name, x in batch.items():
        if name not in arrays:
          arrays[name] = np.empty((len(self), *x.shape[1:]), x.dtype)
        arrays[name][filled : filled + real.sum()] = x[real]
      filled += real.sum()
    return Arrays({name: x[:filled] for name, x in arrays.items()})

  def split(self, fraction: float, seed: int) -> tuple['Split', 'Split']:
    """(training part, held-out part), by a shuffle that `seed` fixes."""
    rest, held = split_rows(len(self), fraction, seed)
    return self.take(rest), self.take(held)

  def steps(self, size: int) -> int:
    """Batches of an epoch."""
    return -(-len(self) // size)


class Arrays(Split):
  """A split in memory: a dict of arrays with one row for each example.

  >>> part = Arrays({'image': np.zeros((3, 2, 2, 1), np.uint8),
  ...                'label': np.arange(3)})
  >>> [batch['mask'].tolist() for batch in part.batches(2)]
  [[1.0, 1.0], [1.0, 0.0]]
  """

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    self.arrays = dict(arrays)
    lengths = {name: len(x) for name, x in self.arrays.items()}
    if 'image' not in lengths or len(set(lengths.values())) != 1:
      raise UserError(
        f"arrays of lengths {lengths}; a split needs 'image' and labels, under "
        'these names, with the same number of rows in each'
      )

  def __len__(self):
    return len(self.arrays['image'])

  def __getitem__(self, name: str) -> np.ndarray:
    return self.arrays[name]

  def __contains__(self, name: str) -> bool:
    return name in self.arrays

  @property
  def shape(self):
    return np.shape(self.arrays['image'])[1:]

  def shapes(self, size):
    return batch_shapes({k: x[0] for k, x in self.arrays.items()}, size)

  def column(self, name):
    return self.arrays.get(name)

  def take(self, rows):
    return Arrays({name: x[rows] for name, x in self.arrays.items()})

  def some(self, count, seed):
    del seed  # the first ones, which are what reports of old were made with
    return self.take(slice(count))

  def in_memory(self):
    return self

  def batches(self, size, *, shuffle=None, start=0, shared=True):
    total, steps = len(self), self.steps(size)
    if total < 1 or size < 1:
      raise UserError(
        f'{total} images in batches of {size}: at least one of each is needed'
      )
    mine, first = own_rows(size, shared)
    order, epoch = np.arange(total), None
    for step in itertools.count(start) if shuffle else range(start, steps):
      if shuffle is not None and step // steps != epoch:
        epoch = step // steps
        key = jax.random.fold_in(shuffle.order_key, epoch)
        order = np.asarray(jax.random.permutation(key, total))
      position = step % steps * size + first + np.arange(mine)
      rows = order[position % total]
      batch = {name: x[rows] for name, x in self.arrays.items()}
      yield {**batch, 'mask': (position < total).astype(np.float32)}


def batch_shapes(example, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of `size` examples like this one, and of their 'mask'."""
  return {
    name: jax.ShapeDtypeStruct((size, *np.shape(x)), np.asarray(x).dtype)
    for name, x in {**example, 'mask': np.float32(1)}.items()
  }


def check_room(count: int, shape, what: str, remedy: str) -> None:
  """UserError if so many arrays of bytes are more than the machine's memory."""
  if not hasattr(os, 'sysconf'):
    return
  needed = count * math.prod(map(int, shape))
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if needed > memory:
    raise UserError(
      f'{what} need {needed / 1e9:,.0f} GB as {count} arrays of '
      f'{tuple(shape)}, the machine has {memory / 1e9:,.0f} GB; {remedy}'
    )


def own_rows(size: int, shared: bool) -> tuple[int, int]:
  """(how many rows of a batch this process gets, the number of the first)."""
  if not shared:
    return size, 0
  mine = size // jax.process_count()
  return mine, mine * jax.process_index()


@functools.lru_cache(maxsize=4)
def split_rows(rows: int, fraction: float, seed: int):
  """Numbers of the rows of two parts, by a shuffle that `seed` fixes for good.

  `fraction` in (0, 1) is the share of the second, held-out part; each part gets
  at least one row. UserError if there is only one, or the seed is negative.
  """
  if not (0 < fraction < 1 and seed >= 0 and rows > 1):
    raise UserError(
      f'{rows} examples, a share of {fraction} and the seed {seed}: they must '
      'be 2 or more, between 0 and 1, and 0 or more'
    )
  # NumPy promises the raw stream of a bit generator for ever, but not what
  # `Generator.permutation` makes of it.
  order = np.argsort(np.random.PCG64(seed).random_raw(rows), kind='stable')
  held = min(max(round(rows * fraction), 1), rows - 1)
  return order[held:], order[:held]
