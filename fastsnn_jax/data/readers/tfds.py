"""Prepared TFDS data sets without TensorFlow: images with a class or boxes.

Preparing a set takes TensorFlow once, reading it does not. TFDS is imported
where it is used: half a second that most runs save.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data import records as annotations
from fastsnn_jax.data.dataset import check_room
from fastsnn_jax.data.readers import text
from fastsnn_jax.data.readers.finder import inside
from fastsnn_jax.errors import UserError, told

_CHUNK = 256  # examples read at a time; more are not faster
_PEEK = 100  # a split without annotations in its first examples has none at all
_CONFIGS = {'voc': ('2007', '2012'), 'coco': ('2017',)}
_CLASSES = 10**6  # at most; a name is made for each
_KINDS = 'tensorflow_datasets.core.features.'  # the module of TFDS's features
_MARKS = {'is_difficult': False, 'is_crowd': False, 'area': None}
_LABELS = "classification needs {'image': uint8 [H, W, C], 'label': a class}"
_BOXES = (
  "detection needs {'image': uint8 [H, W, C], 'objects': a sequence of {'bbox':"
  " (ymin, xmin, ymax, xmax) in shares of the image, 'label': a class, and "
  "'is_difficult', 'is_crowd' and 'area' where there are such}}"
)


def default_directory() -> pathlib.Path:
  """Where TFDS looks: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
  directory = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(directory).expanduser()


def find(name, directory) -> list[pathlib.Path]:
  """The newest prepared version of a set, of each config that it is made of.

  `directory` is a TFDS data_dir, or the folder of the set, or of one version.
  """
  folders = [
    _newest(f'{name}/{config}', directory) or _newest(config, directory)
    for config in _CONFIGS.get(name, ())
  ]
  if not any(folders):  # another config, or a set of one's own
    folders = [_newest(name, directory)]
  return [folder for folder in folders if folder]


def _newest(name, directory):
  directory = pathlib.Path(directory)
  base, folders = directory / name, []
  if inside(name) and os.path.isdir(base):  # NUL and the like are none
    folders = [*base.glob('*'), *base.glob('*/*')]
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


def load(name, directory):
  """`records` in memory, and what was left out: (train, test, classes, notes).

  Splits are {'image': uint8 [N, H, W, C], 'label': int32 [N]}.
  """
  *parts, classes = records(name, directory)
  repairs = annotations.new_repairs()
  train, test = (_arrays(part, repairs) for part in parts)
  return train, test, classes, tuple(annotations.lines(repairs))


def _arrays(part, repairs):
  images, labels, row = None, np.zeros(len(part), np.int32), 0
  with _reading(*part.origin):
    for number, example in part.all_examples():
      try:
        image = decode.whole(example['image'], part.channels)
      except decode.Undecodable as error:
        repairs['unreadable'].append(part.name(number))
        reason = error
        continue
      if images is None:
        remedy = 'add --data.stream --data.size N (of the side)'
        check_room(len(part), image.shape, part.name(''), remedy)
        images = np.zeros((len(part), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        raise UserError(
          f'{part.name(number)} has shape {image.shape}, those before have '
          f'{images.shape[1:]}; add --data.stream --data.size N (of the side)'
        )
      images[row], labels[row] = image, part.label(number, example)
      row += 1
    if images is None:
      raise reason
  return {'image': images[:row], 'label': labels[:row]}


def records(name, directory) -> tuple['Part', 'Part', tuple[str, ...]]:
  """(train, test, names of the classes); pictures stay encoded, on disk.

  To test on is `test`, or `validation` where `test` is missing or unlabelled.
  """
  origin = _located(name, directory)[-1], name, directory
  with _reading(*origin):
    parts, test = _open(origin, boxes=False)
    classes = parts['train'].features['label'].names
    return parts['train'], parts[test], tuple(classes)


def read_boxes(name, directory) -> annotations.Records:
  """Reads the annotations of a prepared set; pictures when they are asked for.

  `voc` trains on train and validation, of 2012 too where that is prepared, and
  tests on test of 2007; `coco` is that of 2017. Any other set trains on train
  and tests on test, or validation where test has no objects (as in coco).
  TFDS counts VOC's pixels from 1; COCO's boxes to train on are a pixel shorter.
  """
  kind = name.split('/')[0]
  learnt = ('train', 'validation') if kind == 'voc' else ('train',)
  repairs, train, test, classes = annotations.new_repairs(), [], [], ()
  for folder in _located(name, directory):
    origin = folder, name, directory
    with _reading(*origin):
      parts, held_out = _open(origin, boxes=True, tested=not test)
      for split in [x for x in parts if x in (*learnt, held_out)]:
        names = parts[split].features['objects'].feature['label'].names
        classes = classes or tuple(names)
        numbers = annotations.class_numbers(classes)
        short = kind == 'coco' and split != held_out
        rows = [
          annotations.with_boxes(*item, numbers, repairs, short=short)
          for item in _pictures(parts[split], names, kind == 'voc', repairs)
        ]
        annotations.check(rows, classes, f'{folder} {split}', _BOXES, repairs)
        (test if split == held_out else train).extend(rows)
  return annotations.Records(train, test, classes, repairs)


def _pictures(part, names, from_one, repairs):
  """Yields (`Picture`, size, [`annotations.Object`, …]) of what can be read."""
  for row, example in part.all_examples():
    picture, objects = Picture(part, row), example['objects']
    try:
      size = decode.size_of(example['image'])
    except decode.Undecodable:
      repairs['unreadable'].append(str(picture))
      continue
    known, count = dict(enumerate(names)), len(objects['label'])
    called = [known.get(int(i), '') for i in objects['label']]
    boxes = np.array(objects['bbox'], np.float64).reshape(count, 4)
    corners = boxes[:, [1, 0, 3, 2]] * [*size, *size] - from_one
    marks = (objects.get(key, [no] * count) for key, no in _MARKS.items())
    yield picture, size, list(map(annotations.Object, called, corners, *marks))


@contextlib.contextmanager
def _reading(folder, name, directory):
  try:
    yield
  except (UserError, MemoryError, ImportError):
    raise
  except Exception as error:
    # TFDS, protobuf, array_record and Pillow have no common exception for
    # damaged files, and some of their messages run over many lines.
    reason = told(error)
    raise UserError(
      f'{folder} cannot be read ({reason}); if it is damaged, remove it and '
      f'prepare it anew with: {prepare_command(name, directory)}'
    ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """The examples of a split by number; threads and processes may share it.

  Only `features` are decoded, and pictures stay encoded: a set may have a mask
  for each object. TFDS's own `PartialDecoding` needs TensorFlow.
  """

  source: Any
  features: Any
  origin: tuple  # folder, name and directory
  split: str

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index) -> tuple[bytes, dict]:
    (example,) = self.examples([int(index)])
    return example['image'], {'label': self.label(index, example)}

  def label(self, index, example) -> np.int32:
    """The class of an example; UserError if there is none of that number."""
    label, count = int(example['label']), self.features['label'].num_classes
    if not 0 <= label < count:
      raise UserError(
        f'{self.name(index)} has the label {label}, and the set {count} '
        f'classes; labels must be 0 to {count - 1}, so prepare it anew'
      )
    return np.int32(label)

  @property
  def channels(self) -> int | None:
    return self.features['image'].shape[-1]

  def name(self, index) -> str:
    return f'{self.origin[0]} {self.split}[{index}]'

  def examples(self, rows) -> list[dict]:
    """Several at once, which takes a fifth of the time."""
    from tensorflow_datasets import decode as tfds_decode

    decoders = {'image': tfds_decode.SkipDecoding()}
    with _reading(*self.origin):
      return [
        self.features.deserialize_example_np(raw, decoders=decoders)
        for raw in self.source.__getitems__(rows)
      ]

  def all_examples(self):
    """Yields (row, example)."""
    for start in range(0, len(self), _CHUNK):
      rows = range(start, min(start + _CHUNK, len(self)))
      yield from zip(rows, self.examples(rows), strict=True)

  def annotated(self) -> bool:
    first = self.examples(range(min(_PEEK, len(self))))
    labels = [x.get('objects', x)['label'] for x in first]
    return bool(np.any(np.hstack(labels) >= 0))


class Picture(NamedTuple):
  """A function that gives the encoded picture of an example."""

  part: Part
  index: int

  def __call__(self) -> bytes:
    return self.part.examples([self.index])[0]['image']

  def __str__(self) -> str:
    return self.part.name(self.index)


def _located(name, directory):
  if folders := find(name, directory):
    return folders
  full = '/'.join([name, *_CONFIGS.get(name, ())[:1]])
  raise UserError(
    f'no prepared TFDS data set {full!r} (nor idx files of it) in {directory}; '
    f'prepare it once with: {prepare_command(full, directory)}'
  )


def _open(origin, *, boxes, tested=True):
  """({split: `Part`}, name of the split to test on)."""
  import tensorflow_datasets as tfds

  folder = origin[0]
  _check_features(tfds, folder / 'features.json')
  # `tfds.data_source(name)` is this with the one version that the installed
  # TFDS knows; from the directory, whatever version was prepared will do.
  builder = tfds.builder_from_directory(folder)
  features = _selected(tfds.features, builder.info.features, boxes)
  if features is None:
    layout = ' '.join(repr(builder.info.features).split())
    raise UserError(
      f'{folder} holds examples of the layout {layout}; '
      f'{_BOXES if boxes else _LABELS}, so choose another set'
    )
  splits, raw = builder.info.splits, tfds.decode.DeserializeMethod.RAW_BYTES
  names = ('train', 'validation', 'test')
  names = [x for x in names if x in splits and splits[x].num_examples]
  try:
    sources = builder.as_data_source(names, deserialize_method=raw)
  except NotImplementedError as error:
    raise UserError(
      f'{folder} is prepared as {builder.info.file_format.value}, which only '
      'TensorFlow reads; where that is installed, convert it with: python -m '
      'tensorflow_datasets.scripts.convert_format --out_file_format='
      f'array_record --dataset_version_dir={folder}'
    ) from error
  parts = {
    name: Part(source, features, origin, name)
    for name, source in zip(names, sources, strict=True)
  }
  for name, part in parts.items():  # before anything is as long as they say
    info = part.source.dataset_info  # of the format that is read
    for shard in info.splits[name].file_instructions:
      file, count = shard.filename, shard.examples_in_shard
      if not inside(os.path.relpath(file, folder)):
        raise ValueError(f'{file} is outside')
      if count > os.stat(file).st_size:
        raise ValueError(f'{file} cannot hold {count} examples')
    part.examples([len(part) - 1])
  tests = [x for x in ('test', 'validation') if tested and x in parts]
  held_out = next((x for x in tests if parts[x].annotated()), None)
  learnt = 'train' in parts and (boxes or parts['train'].annotated())
  if not learnt or (tested and not held_out):
    raise UserError(
      f'{folder} has the splits {sorted(splits)}; it needs annotated '
      'examples in train, and in test or validation, so choose another set'
    )
  return parts, held_out


def _check_features(tfds, path):
  """UserError if a file names classes that are not TFDS's own.

  TFDS imports the module of whatever is named.
  """
  own, todo = set(tfds.features.__all__), [json.loads(text.read(path))]
  while todo:
    node = todo.pop()
    if isinstance(node, list):
      todo += node
    elif isinstance(node, dict):
      todo += node.values()
      for key, value in node.items():
        if key in ('pythonClassName', 'python_class_name', 'type'):
          named = value if isinstance(value, str) else f'{_KINDS}x.Image'
          if (
            not named.startswith(_KINDS) or named.rpartition('.')[2] not in own
          ):
            raise UserError(
              f'{path} names the class {annotations.shown(named)!r}, which is '
              "not one of TFDS's own features; nothing else is imported, so "
              'prepare the set with those'
            )
        if (
          key in ('numClasses', 'num_classes') and text.number(value) > _CLASSES
        ):
          raise UserError(
            f'{path} has {key} {value}; at most {_CLASSES} are read, so look '
            'at the file'
          )


def _selected(kinds, features, boxes):
  """The features that are read, or None if a set has others."""
  known, key = dict(features), 'objects' if boxes else 'label'
  image, label = known.get('image'), known.get(key)
  good = isinstance(image, kinds.Image) and image.np_dtype == np.uint8
  read = {'image': image, key: label}
  if boxes:
    each = label.feature if isinstance(label, kinds.Sequence) else None
    each = dict(each) if isinstance(each, kinds.FeaturesDict) else {}
    box, label = each.get('bbox'), each.get('label')
    # Sets from before there were several formats do not name theirs.
    form = getattr(getattr(box, 'bbox_format', None), 'name', 'REL_YXYX')
    good = good and isinstance(box, kinds.BBoxFeature) and form == 'REL_YXYX'
    names = ('bbox', 'label', *_MARKS)
    read[key] = kinds.Sequence({x: each[x] for x in names if x in each})
  good = good and isinstance(label, kinds.ClassLabel)
  return kinds.FeaturesDict(read) if good else None
