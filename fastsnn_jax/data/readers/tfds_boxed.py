"""Reads a prepared TFDS detection set without TensorFlow: voc, coco, and alike.

Annotations are read at once, pictures when they are asked for.
"""

import collections
import dataclasses
import io
import pathlib

import numpy as np

from fastsnn_jax.data import boxed, decode
from fastsnn_jax.data.readers import tfds_source
from fastsnn_jax.data.readers.tfds_records import Examples
from fastsnn_jax.errors import UserError

_CHUNK = 64  # examples whose encoded pictures are in memory at a time
_PEEK = 100  # a split without objects in its first examples has none at all
_CONFIGS = {'voc': ('2007', '2012'), 'coco': ('2017',)}
_MARKS = ('is_difficult', 'is_crowd', 'area')
_LAYOUT = (
  "{'image': uint8 [H, W, C], 'objects': a sequence of {'bbox': (ymin, xmin, "
  "ymax, xmax) in shares of the image, 'label': a class, and 'is_difficult', "
  "'is_crowd' and 'area' where there are such}}"
)


@dataclasses.dataclass(frozen=True)
class Picture:
  """A function that gives the encoded picture of an example."""

  examples: Examples
  index: int

  def __call__(self) -> bytes:
    return self.examples.example(self.index)['image']

  def __str__(self) -> str:
    return self.examples.name(self.index)


def found(name, directory) -> bool:
  """Whether there is a prepared set of this name."""
  configs = (name, *(f'{name}/{config}' for config in _CONFIGS.get(name, ())))
  return any(tfds_source.find(config, directory) for config in configs)


def read(name, directory=None, classes=None, *, exact=False) -> boxed.Boxed:
  """Reads the annotations of a prepared data set.

  `voc` trains on train and validation, of 2012 too where that is prepared, and
  tests on test of 2007; `coco` is that of 2017. Any other set trains on train.
  What to test on is test, or validation where test has no objects (as in coco).

  Boxes are those that `voc.read` and `coco.read` give: TFDS counts VOC's pixels
  from 1, and COCO's boxes to train on end a pixel earlier.

  Args:
    name: of the TFDS data set.
    directory: see `tfds_source.find`; None for TFDS's own default.
    classes: names; those of the set if not given. Case does not matter.
    exact: COCO's boxes to train on as annotated, too.

  Raises:
    UserError: the set is not prepared, not in a format of random access, of
      another layout, has no split with objects to test on, or cannot be read.
  """
  directory = pathlib.Path(directory or tfds_source.default_directory())
  directory = directory.expanduser()
  kind = name.split('/')[0]
  learnt = ('train', 'validation') if kind == 'voc' else ('train',)
  repairs = collections.Counter()
  train, test = [], []
  folders = _folders(name, directory)
  for folder in folders:
    with tfds_source.reading(folder, name, directory), tfds_source.quiet():
      parts, names = _open_set(folder, (name, directory))
      classes = tuple(names if classes is None else classes)
      held_out = _held_out(folder, parts) if folder == folders[0] else None
      for part, examples in parts.items():
        if part not in (*learnt, held_out):
          continue
        short = kind == 'coco' and part != held_out and not exact
        records = [
          boxed.record(*item, boxed.index(classes), repairs, short=short)
          for item in _pictures(examples, names, kind == 'voc', repairs)
        ]
        boxed.check(records, classes, f'{folder} {part}', _LAYOUT)
        (test if part == held_out else train).extend(records)
  return boxed.Boxed(train, test, classes, repairs)


def _folders(name, directory):
  """Those of the versions that make up the set; voc is two."""
  configs = _CONFIGS.get(name, ())
  found = [
    tfds_source.find(f'{name}/{config}', directory)
    or tfds_source.find(config, directory)
    for config in configs
  ]
  found = [folder for folder in found if folder]
  if configs and not found:  # another config, or a set of one's own
    found = [tfds_source.find(name, directory)]
    name = f'{name}/{configs[0]}'
  return found if any(found) else [tfds_source.locate(name, directory)]


def _open_set(folder, origin):
  """({part: its `Examples`} where there are any, names of the classes)."""
  builder, features = _open_folder(folder)
  splits = builder.info.splits
  parts = {
    part: Examples(
      _source(builder, features, folder, part), _reopen, folder, part, origin
    )
    for part in ('train', 'validation', 'test')
    if part in splits and splits[part].num_examples
  }
  if 'train' not in parts:
    raise UserError(
      f'{folder} has the splits {sorted(splits)}; it needs examples in train, '
      'so choose another set'
    )
  return parts, features['objects'].feature['label'].names


def _held_out(folder, parts):
  """The split to test on."""
  for part in ('test', 'validation'):
    examples = parts.get(part, ())
    first = range(min(_PEEK, len(examples)))
    if any(len(examples.example(i)['objects']['label']) for i in first):
      return part
  raise UserError(
    f'{folder} has examples in {sorted(parts)}; it needs some with objects in '
    'test or validation, so choose another set'
  )


def _pictures(examples, names, from_one, repairs):
  """Yields (`Picture`, size, [`boxed.Found`]) of what can be read."""
  for start in range(0, len(examples), _CHUNK):
    rows = range(start, min(start + _CHUNK, len(examples)))
    for row, example in zip(rows, examples.some(rows), strict=True):
      try:
        size = decode.size_of(io.BytesIO(example['image']))
      except decode.Undecodable:
        repairs['unreadable'] += 1
        continue
      objects = example['objects']
      count = len(objects['label'])
      boxes = np.array(objects['bbox'], np.float64).reshape(count, 4)
      corners = boxes[:, [1, 0, 3, 2]] * [*size, *size] - from_one
      columns = zip(
        objects['label'],
        corners,
        *(objects.get(key, [None] * count) for key in _MARKS),
        strict=True,
      )
      yield (
        Picture(examples, row),
        size,
        [
          boxed.Found(
            names[label] if 0 <= label < len(names) else '',
            corners,
            bool(difficult),
            bool(crowd),
            area,
          )
          for label, corners, difficult, crowd, area in columns
        ],
      )


def _open_folder(folder):
  """A folder -> (its builder, the features that are read)."""
  import tensorflow_datasets as tfds

  def within(feature, kind, *keys):
    if isinstance(feature, kind) and set(keys) <= set(feature):
      return [feature[key] for key in keys]
    return [None] * len(keys)

  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
  image, objects = within(
    features, tfds.features.FeaturesDict, 'image', 'objects'
  )
  each = getattr(objects, 'feature', None)
  box, label = within(each, tfds.features.FeaturesDict, 'bbox', 'label')
  if (
    not isinstance(image, tfds.features.Image)
    or image.np_dtype != np.uint8
    or not isinstance(objects, tfds.features.Sequence)
    or not isinstance(label, tfds.features.ClassLabel)
    or not isinstance(box, tfds.features.BBoxFeature)
    # Sets from before there were several formats do not name theirs.
    or getattr(box.bbox_format, 'name', 'REL_YXYX') != 'REL_YXYX'
  ):
    layout = ' '.join(repr(features).split())
    raise UserError(
      f'{folder} holds examples of the layout {layout}; detection needs '
      f'{_LAYOUT}, so choose another set'
    )
  keys = ('bbox', 'label', *(key for key in _MARKS if key in each))
  return builder, tfds.features.FeaturesDict(
    {
      'image': image,
      'objects': tfds.features.Sequence({key: each[key] for key in keys}),
    }
  )


def _source(builder, features, folder, part):
  import tensorflow_datasets as tfds

  (source,) = tfds_source.sources(
    builder,
    folder,
    [part],
    deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
  )
  return _Chosen(source, features, {'image': tfds.decode.SkipDecoding()})


def _reopen(folder, part):
  return _source(*_open_folder(folder), folder, part)


class _Chosen:
  """A source of which only some features are decoded.

  TFDS's own `PartialDecoding` needs TensorFlow. To decode all could be slow: a
  set may have a mask for each object.
  """

  def __init__(self, source, features, decoders):
    self._source, self._features = source, features
    self._decoders = decoders

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    return self._decode(self._source[index])

  def __getitems__(self, rows):
    return [self._decode(record) for record in self._source.__getitems__(rows)]

  def _decode(self, record):
    return self._features.deserialize_example_np(
      record, decoders=self._decoders
    )
