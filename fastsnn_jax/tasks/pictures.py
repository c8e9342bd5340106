"""Pictures in files, with boxes or with masks, as data sets."""

import pathlib

from fastsnn_jax.data import records
from fastsnn_jax.data.dataset import MEAN_STD
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.errors import UserError


class Listed:
  """Records as a `Stream` reads them: `[i]` is (record, its known labels)."""

  def __init__(self, part, known):
    self._part, self._known = part, known

  def __len__(self):
    return len(self._part)

  def __getitem__(self, index):
    known = {name: values[index] for name, values in self._known.items()}
    return self._part[index], known

  def name(self, index) -> str:
    return str(self._part[index].picture)

  def column(self, name):
    return self._known.get(name)


def directory_of(path, layouts: str) -> pathlib.Path:
  """Where the files are; UserError if there is no such directory."""
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(f'{path} is not a directory; give one with {layouts}')
  return directory


def dataset_of(name, found, split) -> Dataset:
  """The data set of `Records`, of which `split(part, rows)` makes the parts."""
  parts = {part: split(part, rows) for part, rows in found.parts().items()}
  mean, std = MEAN_STD['imagenet2012']
  labels = {'classes': found.classes, 'notes': records.notes(found)}
  return Dataset(name, **parts, mean=mean, std=std, **labels)
