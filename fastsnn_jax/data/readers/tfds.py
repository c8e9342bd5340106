"""Reads prepared TFDS data sets without TensorFlow: labels, or boxes.

Preparing a set (downloading, encoding) takes TensorFlow once; reading it does
not. TFDS is imported where it is used: half a second that most runs save.
"""

import contextlib
import io
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data.records import (
  Object,
  Records,
  check,
  class_numbers,
  new_repairs,
  with_boxes,
)
from fastsnn_jax.errors import UserError

_CHUNK = 256  # examples read at a time; more are not faster
_PEEK = 100  # a split without annotations in its first examples has none at all
_CONFIGS = {'voc': ('2007', '2012'), 'coco': ('2017',)}
_MARKS = {'is_difficult': False, 'is_crowd': False, 'area': None}
_LABELS = "classification needs {'image': uint8 [H, W, C], 'label': a class}"
_BOXES = (
  "detection needs {'image': uint8 [H, W, C], 'objects': a sequence of {'bbox':"
  " (ymin, xmin, ymax, xmax) in shares of the image, 'label': a class, and "
  "'is_difficult', 'is_crowd' and 'area' where there are such}}"
)


def default_directory() -> pathlib.Path:
  """Where TFDS looks: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
  return pathlib.Path(
    os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()


def find(name, directory) -> pathlib.Path | None:
  """The newest prepared version of a set, or None.

  Args:
    name: of the TFDS data set.
    directory: a TFDS data_dir, or the folder of the set, or of one version.
  """
  directory = pathlib.Path(directory)
  folders = [*directory.glob(f'{name}/*'), *directory.glob(f'{name}/*/*')]
  if directory.resolve().parent.name == name:
    folders.append(directory)
  elif directory.resolve().name == name:
    folders += directory.glob('*')

  def version(folder):  # as numbers, 3.0.10 is newer than 3.0.2
    numbers = folder.resolve().name.split('.')
    return [int(x) if x.isdigit() else -1 for x in numbers]

  files = ('dataset_info.json', 'features.json')
  prepared = [x for x in folders if all((x / f).is_file() for f in files)]
  return max(prepared, key=version, default=None)


def prepare_command(name, directory) -> str:
  """The shell command that prepares a set; it needs TensorFlow."""
  # TFDS defaults to another format, which only TensorFlow can read.
  return (
    'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{directory}')"
    ".download_and_prepare(file_format='array_record')\""
  )


def load(name, directory=None):
  """Reads a prepared set of pictures of one size into memory.

  Args:
    name: of the TFDS data set, such as `cifar10`.
    directory: see `find`; None for TFDS's own default.

  Returns:
    (train, test, names of the classes), the first two {'image': uint8 [N, H, W,
    C], 'label': int32 [N]}, in the order of the files; see `records`.

  Raises:
    UserError: as `records`, or images of several sizes.
  """
  train, test, classes = records(name, directory or default_directory())
  with _quiet():
    return _arrays(train), _arrays(test), classes


def records(name, directory) -> tuple['Part', 'Part', tuple[str, ...]]:
  """Opens a prepared set whose pictures stay encoded, on disk.

  Args:
    name, directory: as for `load`.

  Returns:
    (train, test, names of the classes). Those to test on are the split `test`,
    or `validation` where there is no `test` or its examples have no labels, as
    in `imagenet2012`.

  Raises:
    UserError: the set is not prepared, not in a format of random access, has
      other splits or features than needed, or files that cannot be read.
  """
  origin = _locate(name, directory), name, directory
  with _reading(*origin), _quiet():
    parts, features, test = _open(origin, _with_label, _LABELS)
    return parts['train'], parts[test], tuple(features['label'].names)


def has_boxes(name, directory) -> bool:
  """Whether there is a prepared set of this name."""
  return bool(_folders(name, directory))


def read_boxes(name, directory=None, classes=None) -> Records:
  """Reads the annotations of a prepared set; pictures when they are asked for.

  `voc` trains on train and validation, of 2012 too where that is prepared, and
  tests on test of 2007; `coco` is that of 2017. Any other set trains on train.
  What to test on is test, or validation where test has no objects (as in coco).

  Boxes are those that `voc.read_boxes` and `coco.read_boxes` give: TFDS counts
  VOC's pixels from 1, and COCO's boxes to train on end a pixel earlier.

  Args:
    name, directory: as for `load`.
    classes: names; those of the set if not given. Case does not matter.

  Raises:
    UserError: as `records`; a split without objects.
  """
  directory = pathlib.Path(directory or default_directory()).expanduser()
  kind = name.split('/')[0]
  learnt = ('train', 'validation') if kind == 'voc' else ('train',)
  repairs = new_repairs()
  train, test = [], []
  first = '/'.join([name, *_CONFIGS.get(name, ())[:1]])
  for folder in _folders(name, directory) or [_locate(first, directory)]:
    origin = folder, name, directory
    with _reading(*origin), _quiet():
      parts, features, held_out = _open(origin, _with_objects, _BOXES, not test)
      names = features['objects'].feature['label'].names
      classes = tuple(names if classes is None else classes)
      numbers = class_numbers(classes)
      for split, part in parts.items():
        if split not in (*learnt, held_out):
          continue
        short = kind == 'coco' and split != held_out
        part = [
          with_boxes(*item, numbers, repairs, short=short)
          for item in _pictures(part, names, kind == 'voc', repairs)
        ]
        check(part, classes, f'{folder} {split}', _BOXES, repairs)
        (test if split == held_out else train).extend(part)
  return Records(train, test, classes, repairs)


class Part:
  """The examples of a split by number; threads and processes may share it.

  Only the features that are asked for are decoded, and pictures stay encoded: a
  set may have a mask for each object. TFDS's own `PartialDecoding` needs
  TensorFlow.
  """

  def __init__(self, source, features, origin, split):
    self._source, self._features = source, features
    self._origin, self._split = origin, split

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index) -> tuple[bytes, dict]:
    (example,) = self.examples([int(index)])
    return example['image'], {'label': np.int32(example['label'])}

  @property
  def channels(self) -> int | None:
    return self._features['image'].shape[-1]

  def name(self, index) -> str:
    return f'{self._origin[0]} {self._split}[{index}]'

  def examples(self, rows, decoded=False) -> list[dict]:
    """Several at once, which takes a fifth of the time."""
    import tensorflow_datasets as tfds

    decoders = None if decoded else {'image': tfds.decode.SkipDecoding()}
    with _reading(*self._origin):
      return [
        self._features.deserialize_example_np(raw, decoders=decoders)
        for raw in self._source.__getitems__(rows)
      ]

  def all_examples(self, decoded=False):
    """Yields (row, example)."""
    for start in range(0, len(self), _CHUNK):
      rows = range(start, min(start + _CHUNK, len(self)))
      yield from zip(rows, self.examples(rows, decoded), strict=True)

  def annotated(self) -> bool:
    """Whether some of the first examples have a label."""
    for row in range(min(_PEEK, len(self))):
      (example,) = self.examples([row])
      if np.any(np.asarray(example.get('objects', example)['label']) >= 0):
        return True
    return False


class Picture(NamedTuple):
  """A function that gives the encoded picture of an example."""

  part: Part
  index: int

  def __call__(self) -> bytes:
    return self.part.examples([self.index])[0]['image']

  def __str__(self) -> str:
    return self.part.name(self.index)


def _arrays(part):
  """All images and labels of a split, decoded by TFDS."""
  images, labels = None, np.zeros(len(part), np.int32)
  for row, example in part.all_examples(decoded=True):
    image = example['image']
    if images is None:
      images = np.zeros((len(part), *image.shape), np.uint8)
    if image.shape != images.shape[1:]:
      raise UserError(
        f'{part.name(row)} has an image of shape {image.shape}, those before '
        f'have {images.shape[1:]}; a set in memory needs one size, so add '
        '--data.stream --data.size N (the side that images are brought to)'
      )
    images[row], labels[row] = image, example['label']
  return {'image': images, 'label': labels}


def _pictures(part, names, from_one, repairs):
  """Yields (`Picture`, size, [`Object`, …]) of what can be read."""
  for row, example in part.all_examples():
    picture = Picture(part, row)
    try:
      size = decode.size_of(io.BytesIO(example['image']))
    except decode.Undecodable:
      repairs['unreadable'].append(str(picture))
      continue
    objects = example['objects']
    count = len(objects['label'])
    boxes = np.array(objects['bbox'], np.float64).reshape(count, 4)
    corners = boxes[:, [1, 0, 3, 2]] * [*size, *size] - from_one
    marks = (objects.get(key, [no] * count) for key, no in _MARKS.items())
    rows = zip(objects['label'], corners, *marks, strict=True)
    annotated = [
      Object(names[label] if 0 <= label < len(names) else '', *values)
      for label, *values in rows
    ]
    yield picture, size, annotated


def _folders(name, directory):
  """Those of the versions that make up the set; voc is two."""
  folders = [
    find(f'{name}/{config}', directory) or find(config, directory)
    for config in _CONFIGS.get(name, ())
  ]
  if not any(folders):  # another config, or a set of one's own
    folders = [find(name, directory)]
  return [folder for folder in folders if folder]


def _locate(name, directory):
  folder = find(name, directory)
  if folder is None:
    raise UserError(
      f'no prepared TFDS data set {name!r} (nor idx files of it) in '
      f'{directory}; prepare it once with: {prepare_command(name, directory)}'
    )
  return folder


def _open(origin, choose, needs, tested=True):
  """({split: `Part`}, features that are read, name of the split to test on)."""
  import tensorflow_datasets as tfds

  # `tfds.data_source(name)` is this with the one version that the installed
  # TFDS knows; from the directory, whatever version was prepared will do.
  builder = tfds.builder_from_directory(origin[0])
  features = choose(tfds.features, builder.info.features)
  if features is None:
    layout = ' '.join(repr(builder.info.features).split())
    raise UserError(
      f'{origin[0]} holds examples of the layout {layout}; '
      f'{needs}, so choose another set'
    )
  features = tfds.features.FeaturesDict(features)
  splits = builder.info.splits
  names = ('train', 'validation', 'test')
  names = [x for x in names if x in splits and splits[x].num_examples]
  try:
    sources = builder.as_data_source(
      names, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
  except NotImplementedError as error:
    form = builder.info.file_format.value
    raise UserError(
      f'{origin[0]} is prepared as {form}, which only TensorFlow reads; '
      'convert it to array_record, where TensorFlow is installed, with: python '
      '-m tensorflow_datasets.scripts.convert_format '
      f'--dataset_version_dir={origin[0]} --out_file_format=array_record'
    ) from error
  parts = {
    name: Part(source, features, origin, name)
    for name, source in zip(names, sources, strict=True)
  }
  tests = [x for x in ('test', 'validation') if tested and x in parts]
  held_out = next((x for x in tests if parts[x].annotated()), None)
  learnt = 'train' in parts and (
    choose is _with_objects or parts['train'].annotated()
  )
  if not learnt or (tested and not held_out):
    raise UserError(
      f'{origin[0]} has the splits {sorted(splits)}; it needs annotated '
      'examples in train, and in test or validation, so choose another set'
    )
  return parts, features, held_out


def _with_label(kinds, features):
  image, label = _within(kinds, features, 'image', 'label')
  if _is_image(kinds, image) and isinstance(label, kinds.ClassLabel):
    return {'image': image, 'label': label}
  return None


def _with_objects(kinds, features):
  image, objects = _within(kinds, features, 'image', 'objects')
  each = getattr(objects, 'feature', None)
  box, label = _within(kinds, each, 'bbox', 'label')
  if (
    not _is_image(kinds, image)
    or not isinstance(objects, kinds.Sequence)
    or not isinstance(label, kinds.ClassLabel)
    or not isinstance(box, kinds.BBoxFeature)
    # Sets from before there were several formats do not name theirs.
    or getattr(box.bbox_format, 'name', 'REL_YXYX') != 'REL_YXYX'
  ):
    return None
  keys = ('bbox', 'label', *(key for key in _MARKS if key in each))
  each = kinds.Sequence({key: each[key] for key in keys})
  return {'image': image, 'objects': each}


def _within(kinds, feature, *keys):
  known = dict(feature) if isinstance(feature, kinds.FeaturesDict) else {}
  return [known.get(key) for key in keys]


def _is_image(kinds, feature):
  return isinstance(feature, kinds.Image) and feature.np_dtype == np.uint8


@contextlib.contextmanager
def _quiet():
  """Keeps TFDS's notices, which come through absl, off the terminal."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def _reading(folder, name, directory):
  """Turns what goes wrong in reading a folder into a `UserError`."""
  try:
    yield
  except (UserError, MemoryError, ImportError):
    raise
  except Exception as error:
    # TFDS, protobuf, array_record and Pillow have no common exception for
    # damaged files, and some of their messages run over many lines.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(
      f'{folder} cannot be read ({reason}); if it is damaged, remove it and '
      f'prepare it anew with: {prepare_command(name, directory)}'
    ) from error
