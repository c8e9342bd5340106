"""Pictures to read: encoded ones, prepared TFDS sets and folders of them."""

import io
import json

import numpy as np
import PIL.Image


def encode(image, form='PNG', **options) -> bytes:
  """A Pillow image or uint8 [H, W, C] as a file of some format."""
  if isinstance(image, np.ndarray):
    image = PIL.Image.fromarray(image.squeeze())
  stream = io.BytesIO()
  image.save(stream, form, **options)
  return stream.getvalue()


def write_tfds(
  data_dir,
  parts,
  *,
  name='cifar10',
  version='3.0.2',
  shape=(6, 5, 3),
  file_format='array_record',
  features=None,
):
  """Writes a data set as TFDS does, without TensorFlow.

  Args:
    parts: {split: list of (image as encoded bytes, label)}; each split goes to
      two shards.
  """
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  folder = data_dir / name / version
  folder.mkdir(parents=True)
  features = features or tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=shape),
      'label': tfds.features.ClassLabel(names=['cat', 'dog', 'ship']),
    }
  )
  features.save_config(folder)
  splits = []
  for part, rows in parts.items():
    shards = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for number, shard in enumerate(shards):
      file = f'{name}-{part}.{file_format}-{number:05}-of-00002'
      writer = ArrayRecordWriter(str(folder / file), 'group_size:1')
      for image, label in shard:
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature['image'].bytes_list.value.append(image)
        feature['label'].int64_list.value.append(label)
        writer.write(example.SerializeToString())
      writer.close()
    splits.append(
      {
        'name': part,
        'shardLengths': [str(len(shard)) for shard in shards],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
    )
  info = {
    'name': name,
    'version': version,
    'fileFormat': file_format,
    'moduleName': 'nowhere',
    'splits': splits,
  }
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  return folder
