"""Data sets by name, and those of one's own."""

import dataclasses
import pathlib
from collections.abc import Callable

from fastsnn_jax.data.dataset import CLASSES
from fastsnn_jax.data.own import Dataset, as_dataset, assemble
from fastsnn_jax.data.readers import digits, folder, idx, tfds
from fastsnn_jax.errors import UserError

_TFDS = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')
_OWN: dict[str, Callable] = {}


def register(name: str, load: Callable) -> None:
  """Makes a data set of one's own known by name, to configs and commands.

  Args:
    name: that `Data.name` then takes; it comes before a known one.
    load: (`Data.path`, a string or None) -> a `Dataset`, or what `as_dataset`
      takes. Called anew by each command; UserError if it cannot be called.

  >>> import numpy as np
  >>> part = {'image': np.zeros((4, 8, 8, 1), np.uint8), 'label': np.arange(4)}
  >>> register('blank', lambda path: {'train': part, 'test': part})
  >>> own('blank', None).name
  'blank'
  """
  if not callable(load):
    raise UserError(
      f'register_dataset {name!r}: {type(load).__name__} is no function (path)'
    )
  _OWN[name] = load


def own(name: str, path: str | None) -> Dataset | None:
  """The registered data set of this name, if there is one."""
  return as_dataset(_OWN[name](path), name) if name in _OWN else None


def names() -> tuple[str, ...]:
  """The names that `load` knows; `idx` is any directory of idx files."""
  return ('digits', *_TFDS, 'idx')


def load(name: str, path: str | None = None) -> Dataset:
  """Reads images with a class each into memory.

  Args:
    name: one of `names()`, or a name of your own for what is in `path`.
    path: a directory with idx files, or a TFDS data_dir. None for TFDS's
      default (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`). The digits come
      with the package.

  Raises:
    UserError: the name is unknown, or the data are not what they should be.

  >>> load('digits').train['image'].shape
  (1437, 8, 8, 1)
  """
  if name == 'digits':
    return digits.load()
  if path is None and name not in _TFDS:
    raise UserError(
      f'data set {name!r} needs the path of its directory; known names are '
      f'{", ".join(names())} (any directory of idx files)'
    )
  directory = directory_of(path, 'idx files or a prepared TFDS data set')
  if path is not None and idx.has_files(directory):
    found = idx.load(directory)
    if name == 'idx':
      return assemble(directory.resolve().name, *found)
    return assemble(name, *found[:2])
  if name in _TFDS or tfds.find(name, directory):
    train, test, classes, notes = tfds.load(name, directory)
    found = assemble(name, train, test, CLASSES.get(name) or classes)
    return dataclasses.replace(found, notes=notes)
  if folder.has_classes(directory):
    raise UserError(
      f'{path} holds a folder of pictures, which are read from disk all along; '
      'add --data.stream --data.size N (their side in pixels, such as 224)'
    )
  raise UserError(
    f'{path} holds neither idx files (train-images-idx3-ubyte[.gz] and so on) '
    f'nor a prepared TFDS data set {name!r}; known names are '
    f'{", ".join(names())}'
  )


def records(name: str, path: str | None = None):
  """(records to train on, records to test on, names of the classes), on disk.

  `path` is a TFDS data_dir, or a folder with `train/CLASS/PICTURE` and
  `test/CLASS/PICTURE` (or `val`, `validation`). None for TFDS's default.
  UserError if neither is there, or it is not as it should be.
  """
  layout = f'pictures arranged as {folder.LAYOUT}'
  directory = directory_of(path, f'a prepared TFDS data set, or {layout}')
  if tfds.find(name, directory):
    train, test, classes = tfds.records(name, directory)
    return train, test, CLASSES.get(name) or classes
  if path is not None and folder.has_classes(directory):
    return folder.read(directory)
  remedy = ', or give the path of pictures' if path is None else ''
  raise UserError(
    f'no prepared TFDS data set {name!r} in {directory}, nor {layout}; prepare '
    f'it once with: {tfds.prepare_command(name, directory)}{remedy}'
  )


def directory_of(path, what: str) -> pathlib.Path:
  """Where the files are, or TFDS's default; UserError if no directory is."""
  if path is None:
    return tfds.default_directory()
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(f'{path} is not a directory; give one with {what}')
  return directory
