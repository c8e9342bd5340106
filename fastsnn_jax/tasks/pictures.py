"""Pictures in files, with boxes or with masks, as data sets."""

from fastsnn_jax.data import records
from fastsnn_jax.data.dataset import MEAN_STD
from fastsnn_jax.data.own import Dataset


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


def dataset_of(name, found, split) -> Dataset:
  """The data set of `Records`, of which `split(part, rows)` makes the parts."""
  parts = {part: split(part, rows) for part, rows in found.parts().items()}
  mean, std = MEAN_STD['imagenet2012']
  labels = {'classes': found.classes, 'notes': records.notes(found)}
  return Dataset(name, **parts, mean=mean, std=std, **labels)
