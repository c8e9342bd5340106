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


PICTURE = encode(np.zeros((3, 4, 3), np.uint8))


def write_named(directory, *names):
  """Pictures under these names, which stand behind `PICTURE` in each."""
  for name in names:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICTURE + name.encode())


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
    parts: {split: list of (image as encoded bytes, label), or of {feature: its
      values}}; each split goes to two shards.
    name: of the set, or set/config.
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
  splits, name = [], name.split('/')[0]
  for part, rows in parts.items():
    shards = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for number, shard in enumerate(shards):
      file = f'{name}-{part}.{file_format}-{number:05}-of-00002'
      writer = ArrayRecordWriter(str(folder / file), 'group_size:1')
      for row in shard:
        if not isinstance(row, dict):
          row = {'image': [row[0]], 'label': [row[1]]}
        example = tf_example_pb2.Example()
        for key, values in row.items():
          feature = example.features.feature[key]
          values = np.array(values, object).ravel().tolist()
          kinds = {bytes: feature.bytes_list, float: feature.float_list}
          kind = type(values[0]) if values else int
          kinds.get(kind, feature.int64_list).value.extend(values)
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


def smooth(height, width, seed=0) -> np.ndarray:
  """Like a photograph: uint8 noise with most of it in the low frequencies."""
  random = np.random.default_rng(seed)
  frequency = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  )
  frequency[0, 0] = 1
  noise = np.fft.rfft2(random.standard_normal((3, height, width)))
  layers = np.fft.irfft2(noise / frequency**1.2, s=(height, width))
  # The colours of a place go together.
  layers[1:] = 0.8 * layers[0] + 0.3 * layers[1:]
  layers = (layers - layers.mean()) / max(layers.std(), 1e-9)
  return np.clip(127 + 55 * layers, 0, 255).astype(np.uint8).transpose(1, 2, 0)
