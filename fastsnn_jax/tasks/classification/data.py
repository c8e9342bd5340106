"""Images with a class each: in memory, or read from disk all along."""

import dataclasses
import functools

from fastsnn_jax.data import decode, named, records
from fastsnn_jax.data.dataset import MEAN_STD
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.data.stream import Stream


def open_data(settings) -> Dataset:
  """The data set that `Data` of a config names.

  What is streamed has the mean and deviation known for it, or else ImageNet's.
  """
  name, size = settings.name, settings.size
  if not settings.stream:
    return named.load(name, settings.path)
  train, test, classes = named.records(name, settings.path)
  channels = 3 if size else train.channels
  if channels not in (1, 3):  # those of the first picture, for all
    channels = Stream(train, Decode(None, None, cut=False)).shape[-1]
  prepare = [Decode(size, channels, cut) for cut in (False, True)]
  parts = [
    Stream(part, *prepare, workers=settings.workers) for part in (train, test)
  ]
  known = MEAN_STD.get(name, MEAN_STD['imagenet2012'])
  if len(known[0]) != channels:
    known = [(sum(x) / len(x),) * channels for x in known]
  notes = tuple(records.lines(getattr(train, 'repairs', {})))
  return Dataset(name, *parts, tuple(classes), *known, notes=notes)


@dataclasses.dataclass(frozen=True)
class Decode:
  """(encoded picture, labels) -> an example.

  Attributes:
    size: side of the square that is cut out, in the centre or in training at
      random, and resized; None for the whole picture as it is.
    channels: 1 or 3; None for those of each picture.
    cut: cut at random, in training.
  """

  size: int | None
  channels: int | None
  cut: bool

  def __call__(self, record, draws):
    encoded, labels = record
    if self.size is None:
      return {'image': decode.whole(encoded, self.channels), **labels}
    if self.cut and draws:
      box = functools.partial(decode.random_box, uniform=draws)
    else:
      box = functools.partial(decode.centre_box, size=self.size)
    return {'image': decode.resized(encoded, self.size, box), **labels}
