"""Reads a prepared TFDS data set without TensorFlow, example by example."""

import contextlib
import threading

from fastsnn_jax.data.dataset import CLASSES
from fastsnn_jax.data.readers import tfds_source
from fastsnn_jax.errors import UserError


class Examples:
  """The examples of one split by number, their pictures still encoded.

  It can be pickled, and read from several threads at once.

  Args:
    source: TFDS's.
    reopen: (folder, part) -> source, a function of a module.
    folder: of one version of a prepared set.
    part: name of the split.
    origin: (name, directory) that led to the folder.
  """

  def __init__(self, source, reopen, folder, part, origin):
    self._source, self._reopen = source, reopen
    self._folder, self._part, self._origin = folder, part, origin
    self._lock = threading.Lock()
    self._length = len(source)

  def __getstate__(self):  # a worker process opens the files itself
    return self.__dict__ | {'_source': None, '_lock': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())

  def __len__(self):
    return self._length

  def example(self, index) -> dict:
    with self._opened() as source:
      return source[int(index)]

  def some(self, rows) -> list[dict]:
    """Several at once, which takes a fifth of the time."""
    with self._opened() as source:
      return source.__getitems__(rows)

  def name(self, index) -> str:
    return f'{self._folder} {self._part}[{index}]'

  @contextlib.contextmanager
  def _opened(self):
    with tfds_source.reading(self._folder, *self._origin):
      with self._lock:
        if self._source is None:
          with tfds_source.quiet():
            self._source = self._reopen(self._folder, self._part)
      yield self._source


class Records(Examples):
  """`Examples` of pictures with a label: `[i]` is (encoded bytes, label).

  Args:
    builder: TFDS's, of the folder.
    folder, part, origin: as for `Examples`.
  """

  def __init__(self, builder, folder, part, origin):
    source = _open(builder, folder, part)
    super().__init__(source, _reopen, folder, part, origin)
    self.channels = builder.info.features['image'].shape[-1]

  def __getitem__(self, index) -> tuple[bytes, int]:
    example = self.example(index)
    return example['image'], int(example['label'])


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
  return tfds_source.sources(builder, folder, [part], decoders=decoders)[0]


def _reopen(folder, part):
  return _open(tfds_source.open_folder(folder)[0], folder, part)
