"""Data sets by name: in memory whole, or streamed from disk.

`load` reads one small enough to live on the device as uint8: the embedded
digits, a directory of idx files, or a data set prepared by TFDS. `open_stream`
opens a large one, prepared by TFDS or a folder of pictures; `Loader` makes
batches of it and `prefetch_to_device` feeds them. `normalize` and `crop_flip`
then work on the device.
"""

import pathlib

from fastsnn_jax.data.dataset import CLASSES, Dataset, assemble, split
from fastsnn_jax.data.image_ops import (
  augment,
  color_jitter,
  crop_flip,
  normalize,
  present,
  resize,
)
from fastsnn_jax.data.loader import Loader
from fastsnn_jax.data.prefetch import prefetch_to_device
from fastsnn_jax.data.readers import digits, folder, idx, tfds
from fastsnn_jax.data.stream import open_stream
from fastsnn_jax.errors import UserError

__all__ = [
  'Dataset',
  'Loader',
  'augment',
  'color_jitter',
  'crop_flip',
  'load',
  'names',
  'normalize',
  'open_stream',
  'prefetch_to_device',
  'present',
  'resize',
  'split',
]

_TFDS = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')


def names() -> tuple[str, ...]:
  """The names that `load` knows; `idx` stands for any directory of idx files.

  >>> names()
  ('digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'idx')
  """
  return ('digits', *_TFDS, 'idx')


def load(name: str, path: str | None = None) -> Dataset:
  """Reads a data set into memory.

  Args:
    name: One of `names()`, or a name of your own for the idx files or the
      prepared TFDS data set in `path`.
    path: A directory with idx files, or a TFDS data_dir. None for TFDS's
      default (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`). The embedded
      digits ignore it.

  Returns:
    The data set, images uint8 [N, H, W, C].

  Raises:
    UserError: The name is unknown, the directory or the data are not there, or
      they are not what they should be.

  >>> load('digits').train['image'].shape
  (1437, 8, 8, 1)
  """
  if name == 'digits':
    return digits.load()
  if path is None:
    if name == 'idx':
      raise UserError(
        "data set 'idx' needs the directory of its files; give a path"
      )
    if name in _TFDS:
      return _assembled(name, *tfds.load(name))
    raise UserError(
      f'unknown data set {name!r}; choose one of {", ".join(names())}, or give '
      'the path of your own'
    )
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(
      f'{path} is not a directory; give as path one which holds idx files or '
      'a prepared TFDS data set'
    )
  if idx.has_files(directory):
    train, test, classes = idx.load(directory)
    if name == 'idx':
      return assemble(directory.resolve().name, train, test, classes)
    return _assembled(name, train, test, classes)
  if name in _TFDS or tfds.find(name, directory):
    return _assembled(name, *tfds.load(name, directory))
  if folder.has_classes(directory):
    raise UserError(
      f'{path} holds a folder of pictures, train/CLASS/PICTURE, which are read '
      'from disk all along; add --data.stream --data.size N (the side that '
      'they are brought to in pixels, such as 224)'
    )
  raise UserError(
    f'{path} holds neither idx files (train-images-idx3-ubyte[.gz] and so on) '
    f'nor a prepared TFDS data set {name!r}; known names are '
    f'{", ".join(names())}'
  )


def _assembled(name, train, test, classes):
  return assemble(name, train, test, CLASSES.get(name) or classes)
