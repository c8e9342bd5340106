"""Reads a prepared TFDS data set without TensorFlow, example by example."""

import threading

from fastsnn_jax.data import tfds_source
from fastsnn_jax.data.dataset import CLASSES
from fastsnn_jax.errors import UserError


class Records:
  """The examples of one split by number, their pictures still encoded.

  It can be pickled, and read from several threads at once.

  Args:
    builder: TFDS's, of the folder.
    folder: of one version of a prepared set.
    part: name of the split.
    origin: (name, directory) that led to the folder.
  """

  def __init__(self, builder, folder, part, origin):
    self._folder, self._part, self._origin = folder, part, origin
    self.channels = builder.info.features['image'].shape[-1]
    self._lock = threading.Lock()
    self._source = _open(builder, folder, part)
    self._length = len(self._source)

  def __getstate__(self):  # a worker process opens the files itself
    return self.__dict__ | {'_source': None, '_lock': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())

  def __len__(self):
    return self._length

  def __getitem__(self, index) -> tuple[bytes, int]:
    with tfds_source.reading(self._folder, *self._origin):
      with self._lock:
        if self._source is None:
          with tfds_source.quiet():
            builder, _ = tfds_source.open_folder(self._folder)
            self._source = _open(builder, self._folder, self._part)
      example = self._source[int(index)]
      return example['image'], int(example['label'])

  def name(self, index) -> str:
    return f'{self._folder} {self._part}[{index}]'


def read(name, directory) -> tuple[Records, Records, tuple[str, ...]]:
  """Opens a prepared data set.

  Args:
    name: of the TFDS data set.
    directory: see `tfds_source.find`.

  Returns:
    (`Records` to train on, `Records` to test on, names of the classes). Those
    to test on are the split `test`, or `validation` where there is no `test` or
    its examples have no labels, as in `imagenet2012`.

  Raises:
    UserError: as `tfds_source.load`, but images may have any sizes.
  """
  folder = tfds_source.locate(name, directory)
  origin = name, directory
  with tfds_source.reading(folder, *origin), tfds_source.quiet():
    builder, label = tfds_source.open_folder(folder)
    splits = builder.info.splits
    parts = {
      part: Records(builder, folder, part, origin)
      for part in ('train', 'test', 'validation')
      if part in splits and splits[part].num_examples
    }
    # A split is labelled or not as a whole: the first example tells.
    labelled = [part for part in parts if parts[part][0][1] >= 0]
  if 'train' not in labelled or len(labelled) < 2:
    raise UserError(
      f'{folder} has the splits {sorted(splits)}; it needs examples with '
      'labels in train and in test or validation, so choose another set'
    )
  names = tuple(CLASSES.get(name) or label.names)
  return parts['train'], parts[labelled[1]], names


def _open(builder, folder, part):
  import tensorflow_datasets as tfds

  decoders = {'image': tfds.decode.SkipDecoding()}
  return tfds_source.sources(builder, folder, [part], decoders)[0]
