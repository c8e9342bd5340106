"""A folder of pictures, one folder per class: DIR/train/CLASS/PICTURE."""

import os
import pathlib

import numpy as np

from fastsnn_jax.data import records
from fastsnn_jax.data.decode import SUFFIXES
from fastsnn_jax.data.readers.finder import is_file, is_folder, is_picture
from fastsnn_jax.errors import UserError

# In this order; the first that has folders in it. ImageNet's `test` holds
# pictures without a class, its `val` is what everybody tests on.
_TEST = ('test', 'val', 'validation')
LAYOUT = 'DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val, validation)'


class Files:
  """A split: `[i]` reads (the encoded picture, {'label': int32})."""

  channels = None  # each picture has its own

  def __init__(self, folder, names, labels, repairs):
    self.repairs = repairs  # those of all splits, for `records.lines`
    # Bytes: an array of a million `str` is too large to send to every worker.
    self._folder, self._names, self._labels = os.fspath(folder), names, labels

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index) -> tuple[bytes, dict]:
    picture = records.encoded(pathlib.Path(self.name(index)))
    return picture, {'label': self._labels[index]}

  def name(self, index) -> str:
    return os.path.join(self._folder, os.fsdecode(bytes(self._names[index])))


def has_classes(directory) -> bool:
  """Whether a directory has a folder `train` with folders in it."""
  return bool(_classes(pathlib.Path(directory) / 'train'))


def read(directory) -> tuple[Files, Files, tuple[str, ...]]:
  """(train, test, sorted names of train's folders, which are the classes).

  Pictures are the files in or below a class's folder that end as in `SUFFIXES`,
  in the order of their names; hidden ones do not count. Links to folders are
  followed once, what is no regular file is never opened.
  """
  directory = pathlib.Path(directory)
  train = directory / 'train'
  tests = [x for name in _TEST if _classes(x := directory / name)]
  classes = _classes(train)
  if not classes or not tests:
    what = 'test (nor val or validation)' if classes else 'train'
    raise UserError(
      f'{directory} has no folder {what} with a folder for each class; '
      f'arrange the pictures as {LAYOUT}'
    )
  test = tests[0]
  if unknown := sorted(set(_classes(test)) - set(classes)):
    raise UserError(
      f'{test} has the classes {_some(unknown)}, which {train} has not; both '
      'need the same folders, so rename or remove them'
    )
  parts, repairs = [], records.new_repairs()
  for folder, needed in ((train, classes), (test, ())):
    part, counts = _list(folder, classes, repairs)
    empty = [x for x, n in zip(classes, counts, strict=True) if not n]
    if set(empty) & set(needed) or not sum(counts):
      raise UserError(
        f'{folder} has no pictures of the classes {_some(empty)}; each folder '
        f'needs one or more ({" ".join(SUFFIXES)}), so fill or remove them'
      )
    parts.append(part)
  return *parts, tuple(classes)


def _some(names):
  rest = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return f'{names[:5]}{rest}'


def _classes(folder):
  paths = folder.iterdir() if folder.is_dir() else ()
  return sorted(x.name for x in paths if x.is_dir() and x.name[0] != '.')


def _list(folder, classes, repairs):
  """(`Files`, number of pictures of each class)."""
  names, counts = [], []
  for name in classes:
    below = [
      os.path.relpath(path, folder) for path in _below(folder / name, repairs)
    ]
    names += [os.fsencode(x) for x in sorted(below)]
    counts.append(len(below))
  labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
  return Files(folder, np.array(names, dtype=bytes), labels, repairs), counts


def _below(top, repairs):
  """Yields the paths of the pictures in or below a folder, each once."""
  # A link to one that holds it would lead in circles.
  above = {*top.absolute().parents, *top.resolve().parents}
  seen, folders, links = {_same(x) for x in above}, [str(top)], []
  while folders or links:
    where = (folders or links).pop()  # so that a link is what is left out
    try:
      if (same := _same(where)) in seen:
        repairs['loop'].append(where)
        continue
      with os.scandir(where) as entries:
        entries = sorted(entries, key=lambda x: x.name)
    except OSError:
      repairs['unreadable'].append(where)
      continue
    seen.add(same)
    for entry in entries:  # no `stat` of each, which is slow on a network
      if entry.name[0] == '.':
        continue
      if is_folder(entry):
        (links if entry.is_symlink() else folders).append(entry.path)
      elif not is_picture(entry.name):
        repairs['ending'].append(entry.path)
      elif not is_file(entry):
        repairs['no_file'].append(entry.path)
      else:
        yield entry.path


def _same(folder):
  status = os.stat(folder)
  return status.st_dev, status.st_ino
