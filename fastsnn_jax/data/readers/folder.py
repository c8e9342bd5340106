"""A folder of pictures, one folder per class: DIR/train/CLASS/PICTURE."""

import os
import pathlib

import numpy as np

from fastsnn_jax.errors import UserError

SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.png', '.webp', '.bmp', '.gif'),
  *('.tif', '.tiff', '.ppm', '.pgm'),
)
# In this order; the first that has folders in it. ImageNet's `test` holds
# pictures without a class, its `val` is what everybody tests on.
_TEST = ('test', 'val', 'validation')
LAYOUT = 'DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val, validation)'


class Files:
  """The pictures of one split: encoded bytes, read when asked for.

  Args:
    folder: of the split.
    names: paths below it, as bytes: an array of a million `str` is too large
      to send to every worker process.
    labels: int32, one for each.
  """

  channels = None  # each picture has its own

  def __init__(self, folder, names, labels):
    self._folder, self._names, self._labels = os.fspath(folder), names, labels

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index) -> tuple[bytes, int]:
    path = self.name(index)
    try:
      with open(path, 'rb') as file:
        return file.read(), int(self._labels[index])
    except OSError as error:
      raise UserError(
        f'{path} cannot be read ({error.strerror}); it was there when the run '
        'began, so bring it back or check its permissions, then go on'
      ) from error

  def name(self, index) -> str:
    return os.path.join(self._folder, os.fsdecode(bytes(self._names[index])))


def found(directory) -> bool:
  """Whether a directory has a folder `train` with folders in it."""
  return bool(_classes(pathlib.Path(directory) / 'train'))


def read(directory) -> tuple[Files, Files, tuple[str, ...]]:
  """Lists the pictures of both splits, in the order of their names.

  Pictures are the files in or below the folder of a class whose names end as
  one of `SUFFIXES`; other files, hidden ones and files beside the folders of
  the classes are left alone.

  Args:
    directory: where `train` is, and `test`, `val` or `validation`.

  Returns:
    (train, test, names of the classes): the sorted names of train's folders.

  Raises:
    UserError: a split is missing, a class has no pictures to train on, or test
      has a class that train has not.
  """
  directory = pathlib.Path(directory)
  classes = _classes(directory / 'train')
  test = next((x for x in _TEST if _classes(directory / x)), None)
  if not classes or test is None:
    what = 'train' if not classes else 'test (nor val or validation)'
    raise UserError(
      f'{directory} has no folder {what} with a folder for each class; '
      f'arrange the pictures as {LAYOUT}'
    )
  unknown = [x for x in _classes(directory / test) if x not in set(classes)]
  if unknown:
    raise UserError(
      f'{directory / test} has the classes {_some(unknown)}, which '
      f'{directory / "train"} has not; both need the same folders, so rename '
      'or remove them'
    )
  train, counts = _list(directory / 'train', classes)
  empty = [x for x, n in zip(classes, counts, strict=True) if n == 0]
  if empty:
    raise UserError(
      f'{directory / "train"} has no pictures of the classes {_some(empty)}; '
      f'each folder needs at least one file ({" ".join(SUFFIXES)}), so fill or '
      'remove them'
    )
  held_out, counts = _list(directory / test, classes)
  if not sum(counts):
    raise UserError(
      f'{directory / test} has no pictures ({" ".join(SUFFIXES)}) in the '
      f'folders of its classes; arrange them as {LAYOUT}'
    )
  return train, held_out, tuple(classes)


def _some(names):
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return f'{names[:5]}{more}'


def _classes(folder):
  """Sorted names of the folders in a folder; none if it is not there."""
  if not folder.is_dir():
    return []
  with os.scandir(folder) as entries:
    return sorted(
      entry.name
      for entry in entries
      if entry.is_dir() and not entry.name.startswith('.')
    )


def _list(folder, classes):
  """(`Files`, number of pictures of each class)."""
  names, counts = [], []
  for name in classes:
    below = []
    for where, folders, files in os.walk(folder / name, followlinks=True):
      folders[:] = [x for x in folders if not x.startswith('.')]
      below += [
        os.path.relpath(os.path.join(where, file), folder)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith('.')
      ]
    names += [os.fsencode(x) for x in sorted(below)]
    counts.append(len(below))
  labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
  return Files(folder, np.array(names, dtype=bytes), labels), counts
