"""Reads a prepared TFDS data set without TensorFlow, whole, into memory.

Preparing one (downloading, encoding) takes TensorFlow once; reading it does
not. TFDS is imported where it is used: half a second that most runs save.
"""

import contextlib
import logging
import os
import pathlib

import numpy as np

from fastsnn_jax.data.dataset import CLASSES, Dataset, assemble
from fastsnn_jax.errors import UserError

_CHUNK = 1024  # examples decoded at a time; larger is not faster
_LAYOUT = "{'image': uint8 [H, W, C], 'label': a class}"


def default_directory() -> pathlib.Path:
  """Where TFDS looks: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
  return pathlib.Path(
    os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()


def find(name, directory) -> pathlib.Path | None:
  """The newest prepared version of a set, or None.

  Args:
    name: Of the TFDS data set.
    directory: A TFDS data_dir, or the folder of the set, or of one version.
  """
  directory = pathlib.Path(directory)
  candidates = [*directory.glob(f'{name}/*'), *directory.glob(f'{name}/*/*')]
  if directory.resolve().parent.name == name:
    candidates.append(directory)
  elif directory.resolve().name == name:
    candidates += directory.glob('*')
  prepared = [
    folder
    for folder in candidates
    if (folder / 'dataset_info.json').is_file()
    and (folder / 'features.json').is_file()
  ]
  return max(prepared, key=lambda x: _version(x.resolve().name), default=None)


def _version(text):
  """'3.0.10' -> [3, 0, 10]: as numbers, 3.0.10 is newer than 3.0.2."""
  return [int(x) if x.isdigit() else -1 for x in text.split('.')]


def load(name, directory=None) -> Dataset:
  """Reads the splits `train` and `test` of a prepared data set.

  Args:
    name: Of the TFDS data set, such as `cifar10`.
    directory: See `find`; None for TFDS's own default.

  Returns:
    A data set of images [N, H, W, C] in the order of the files.

  Raises:
    UserError: The set is not prepared, not in a format of random access, has
      other splits or features than needed, images of several sizes, or files
      that cannot be read.
  """
  directory = pathlib.Path(directory or default_directory())
  folder = locate(name, directory)
  with reading(folder, name, directory), quiet():
    builder, label = open_folder(folder)
    train, test = sources(builder, folder, ['train', 'test'])
    train, test = (_read(folder, source) for source in (train, test))
    # Names that TFDS has not got are numbers there; then ours are no worse.
    return assemble(name, train, test, CLASSES.get(name) or label.names)


def locate(name, directory) -> pathlib.Path:
  """As `find`, but an error says how to prepare a set that is not there."""
  folder = find(name, directory)
  if folder is None:
    raise UserError(
      f'no prepared TFDS data set {name!r} (nor idx files of it) in '
      f'{directory}; prepare it once with: {prepare_command(name, directory)}'
    )
  return folder


@contextlib.contextmanager
def reading(folder, name, directory):
  """Turns what goes wrong in reading `folder` into a `UserError`."""
  try:
    yield
  except (UserError, MemoryError, ImportError):
    raise
  except Exception as error:
    # TFDS, protobuf, array_record and Pillow have no common exception for
    # damaged files, and some of their messages run over many lines.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(
      f'{folder} cannot be read ({reason}); if it is damaged, remove it '
      f'and prepare it anew with: {prepare_command(name, directory)}'
    ) from error


def prepare_command(name, directory) -> str:
  """The shell command that prepares a set; it needs TensorFlow."""
  # TFDS defaults to another format, which only TensorFlow can read.
  return (
    'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{directory}')"
    ".download_and_prepare(file_format='array_record')\""
  )


def open_folder(folder):
  """A folder -> (its builder, its feature of labels), of the right layout."""
  import tensorflow_datasets as tfds

  # `tfds.data_source(name)` is this with the one version that the installed
  # TFDS knows; from the directory, whatever version was prepared will do.
  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
  keys = features if isinstance(features, tfds.features.FeaturesDict) else {}
  image, label = (dict(keys).get(key) for key in ('image', 'label'))
  if (
    not isinstance(image, tfds.features.Image)
    or image.np_dtype != np.uint8
    or not isinstance(label, tfds.features.ClassLabel)
  ):
    layout = ' '.join(repr(features).split())
    raise UserError(
      f'{folder} holds examples of the layout {layout}; classification needs '
      f'{_LAYOUT}, so choose another set'
    )
  return builder, label


def sources(builder, folder, parts, **options):
  """The data sources of these splits; options are `as_data_source`'s."""
  missing = set(parts) - set(builder.info.splits)
  if missing:
    raise UserError(
      f'{folder} has the splits {sorted(builder.info.splits)}; it needs '
      f'{" and ".join(parts)}, so choose another set'
    )
  try:
    return builder.as_data_source(parts, **options)
  except NotImplementedError as error:
    form = builder.info.file_format.value
    raise UserError(
      f'{folder} is prepared as {form}, which only TensorFlow reads; convert '
      'it to array_record, where TensorFlow is installed, with: python -m '
      'tensorflow_datasets.scripts.convert_format '
      f'--dataset_version_dir={folder} --out_file_format=array_record'
    ) from error


def _read(folder, source):
  """A data source -> its images and labels, decoded into two arrays."""
  images, labels = None, np.zeros(len(source), np.int32)
  for start in range(0, len(source), _CHUNK):
    rows = range(start, min(start + _CHUNK, len(source)))
    for row, example in zip(rows, source.__getitems__(rows), strict=True):
      image = example['image']
      if images is None:
        images = np.zeros((len(source), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        raise UserError(
          f'{folder} holds images of different sizes, {images.shape[1:]} and '
          f'{image.shape}; a set in memory needs one size, so add '
          '--data.stream --data.size N (the side that images are brought to)'
        )
      images[row], labels[row] = image, example['label']
  return {
    'image': np.zeros((0, 0, 0, 0), np.uint8) if images is None else images,
    'label': labels,
  }


@contextlib.contextmanager
def quiet():
  """Keeps TFDS's notices (each file opened, OpenCV is faster) off the terminal.

  They come through absl, whose level is set back afterwards.
  """
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)
