"""The readers of data sets: embedded digits, idx files, prepared TFDS sets."""

import gzip
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pictures import encode, write_tfds

import fastsnn_jax as fs
from fastsnn_jax import data
from fastsnn_jax.data.dataset import split_rows
from fastsnn_jax.data.own import statistics
from fastsnn_jax.data.readers import tfds as tfds_reader
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.workdir import open_data


def _shared(item):
  """A path in the shared folder; skips without it, fails under CI if only
  the item is missing."""
  beside = pathlib.Path(__file__).parents[3] / 'shared'
  folder = pathlib.Path(os.environ.get('FASTSNN_SHARED', beside))
  if (folder / item).exists():
    return folder / item
  if os.environ.get('CI') and folder.exists():
    pytest.fail(f'the shared folder is there, but has no {item}')
  pytest.skip('needs the shared folder (../shared or FASTSNN_SHARED)')


def _fails(*arguments):
  """The message of the error of `load`, which must be one line."""
  with pytest.raises(UserError) as error:
    data.load(*arguments)
  message = str(error.value)
  assert message
  assert '\n' not in message
  return message


def test_import_leaves_tfds_alone():
  code = (
    'import sys, fastsnn_jax.data as d; d.load("digits"); '
    'sys.exit("tensorflow_datasets" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# ------------------------------------------------------------------ digits


def test_digits_counts_range_and_classes():
  digits = data.load('digits')
  assert digits.name == 'digits'
  assert digits.classes == tuple('0123456789')
  for part, count in ((digits.train, 1437), (digits.test, 360)):
    assert part['image'].shape == (count, 8, 8, 1)
    assert part['image'].dtype == np.uint8
    assert part['label'].shape == (count,)
    assert part['label'].dtype == np.int32
    assert part['image'].min() == 0
    assert part['image'].max() == 255
  # Stratified: a fifth of each class, within one image.
  test = np.bincount(digits.test['label'])
  whole = test + np.bincount(digits.train['label'])
  assert test.tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
  assert np.abs(test - whole / 5).max() < 1
  assert len(np.unique(digits.train['image'])) == 17


def test_digits_split_is_fixed_and_disjoint():
  one, two = data.load('digits'), data.load('digits')
  for part in ('train', 'test'):
    for key in ('image', 'label'):
      np.testing.assert_array_equal(
        getattr(one, part)[key], getattr(two, part)[key]
      )
  train, test = (
    {image.tobytes() for image in part['image']}
    for part in (one.train, one.test)
  )
  assert len(train) == 1437
  assert len(test) == 360
  assert not train & test


def test_digits_statistics_are_those_of_the_training_split():
  digits = data.load('digits')
  mean, std = statistics(digits.train['image'])
  assert digits.mean == pytest.approx(mean, abs=1e-6)
  assert digits.std == pytest.approx(std, abs=1e-6)


def test_digits_are_those_of_scikit_learn():
  sklearn = pytest.importorskip('sklearn.datasets')
  source = sklearn.load_digits()
  digits = data.load('digits')
  values = np.round(source.images * 255 / 16).astype(np.uint8)
  expected = {
    (image.tobytes(), label)
    for image, label in zip(values, source.target, strict=True)
  }
  got = {
    (image.tobytes(), label)
    for part in (digits.train, digits.test)
    for image, label in zip(part['image'], part['label'], strict=True)
  }
  assert got == expected


# --------------------------------------------------------------------- idx

_IDX = {
  'train-images-idx3-ubyte': (0x803, 'train', 'image'),
  'train-labels-idx1-ubyte': (0x801, 'train', 'label'),
  't10k-images-idx3-ubyte': (0x803, 'test', 'image'),
  't10k-labels-idx1-ubyte': (0x801, 'test', 'label'),
}


def _write_idx(directory, zipped=False, classes=3):
  """Writes the four files; returns the arrays that are in them."""
  random = np.random.default_rng(0)
  parts = {
    part: {
      'image': random.integers(0, 256, (rows, 5, 4), dtype=np.uint8),
      'label': np.arange(rows, dtype=np.uint8) % classes,
    }
    for part, rows in (('train', 12), ('test', 7))
  }
  directory.mkdir(exist_ok=True)
  for name, (magic, part, key) in _IDX.items():
    array = parts[part][key]
    header = struct.pack(f'>{1 + array.ndim}I', magic, *array.shape)
    content = header + array.tobytes()
    if zipped:
      name, content = name + '.gz', gzip.compress(content)
    (directory / name).write_bytes(content)
  return parts


@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('name', ['idx', 'mnist', 'fashion_mnist', 'mine'])
def test_idx_round_trip(tmp_path, zipped, name):
  parts = _write_idx(tmp_path / 'letters', zipped)
  dataset = data.load(name, str(tmp_path / 'letters'))
  assert dataset.name == ('letters' if name == 'idx' else name)
  for part in ('train', 'test'):
    got = getattr(dataset, part)
    np.testing.assert_array_equal(got['image'][..., 0], parts[part]['image'])
    np.testing.assert_array_equal(got['label'], parts[part]['label'])
    assert got['image'].dtype == np.uint8
    assert got['label'].dtype == np.int32
  if name == 'fashion_mnist':
    assert dataset.classes[9] == 'Ankle boot'
    assert (dataset.mean, dataset.std) == ((0.2860,), (0.3530,))
  elif name == 'mnist':
    assert dataset.classes == tuple('0123456789')
    assert (dataset.mean, dataset.std) == ((0.1307,), (0.3081,))
  else:
    assert dataset.classes == ('0', '1', '2')
    images = parts['train']['image'] / 255
    assert dataset.mean == pytest.approx((images.mean(),))
    assert dataset.std == pytest.approx((images.std(),))


def test_idx_takes_names_with_a_dot_and_gzip_by_content(tmp_path):
  _write_idx(tmp_path)
  for file in list(tmp_path.iterdir()):
    file.rename(tmp_path / file.name.replace('-idx', '.idx'))
  file = tmp_path / 'train-images.idx3-ubyte'
  file.write_bytes(gzip.compress(file.read_bytes()))
  assert len(data.load('idx', str(tmp_path)).train['image']) == 12


@pytest.mark.parametrize('name', _IDX)
@pytest.mark.parametrize('zipped', [False, True])
def test_idx_missing_file(tmp_path, name, zipped):
  _write_idx(tmp_path, zipped)
  (tmp_path / (name + '.gz' * zipped)).unlink()
  assert name in _fails('mnist', str(tmp_path))


@pytest.mark.parametrize('name', _IDX)
def test_idx_wrong_size(tmp_path, name):
  _write_idx(tmp_path)
  file = tmp_path / name
  whole = file.read_bytes()
  for content in (whole[:-1], whole + b'\0', whole[:9] + whole[10:]):
    file.write_bytes(content)
    message = _fails('mnist', str(tmp_path))
    assert name in message
    assert re.search(rf'holds {len(content)} bytes, expected \d+', message)
  for size in (0, 3, 7):
    file.write_bytes(whole[:size])
    assert f'holds {size} bytes' in _fails('mnist', str(tmp_path))


def test_idx_truncated_gzip_states_both_sizes(tmp_path):
  _write_idx(tmp_path, zipped=True)
  file = tmp_path / 'train-images-idx3-ubyte.gz'
  file.write_bytes(file.read_bytes()[:-60])
  message = _fails('mnist', str(tmp_path))
  assert file.name in message
  found, expected = map(
    int, re.search(r'holds (\d+) bytes, expected (\d+)', message).groups()
  )
  assert found < expected == 16 + 12 * 5 * 4


def test_idx_damaged_gzip(tmp_path):
  _write_idx(tmp_path, zipped=True)
  file = tmp_path / 't10k-images-idx3-ubyte.gz'
  content = bytearray(file.read_bytes())
  content[-8:-4] = b'\0\0\0\0'  # the checksum
  file.write_bytes(content)
  assert 'damaged gzip' in _fails('mnist', str(tmp_path))
  file.write_bytes(b'\x1f\x8b\x08\0\0\0\0\0\0\xff' + b'\xff' * 40)
  assert 'damaged gzip' in _fails('mnist', str(tmp_path))


def test_idx_wrong_magic(tmp_path):
  _write_idx(tmp_path)
  labels = tmp_path / 't10k-labels-idx1-ubyte'
  labels.write_bytes((tmp_path / 't10k-images-idx3-ubyte').read_bytes())
  message = _fails('mnist', str(tmp_path))
  assert labels.name in message
  assert '0x00000803' in message
  assert '0x00000801' in message


def test_idx_files_that_do_not_fit_together(tmp_path):
  _write_idx(tmp_path)
  images = tmp_path / 'train-images-idx3-ubyte'
  rest = images.read_bytes()[16:]
  images.write_bytes(struct.pack('>4I', 0x803, 11, 5, 4) + rest[:220])
  message = _fails('mnist', str(tmp_path))
  assert '11 images' in message
  assert '12 labels' in message
  images.write_bytes(struct.pack('>4I', 0x803, 12, 4, 5) + rest)
  assert '(4, 5, 1)' in _fails('mnist', str(tmp_path))


def test_idx_labels_without_a_class_and_empty_files(tmp_path):
  _write_idx(tmp_path, classes=12)
  assert '0 to 11' in _fails('fashion_mnist', str(tmp_path))
  image, label = 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'
  (tmp_path / image).write_bytes(struct.pack('>4I', 0x803, 0, 5, 4))
  (tmp_path / label).write_bytes(struct.pack('>2I', 0x801, 0))
  assert 'test split holds no images' in _fails('idx', str(tmp_path))


def _packed(directory, name, content):
  path = directory / name
  path.unlink()
  (directory / f'{name}.gz').write_bytes(content)


def test_idx_gzip_that_unpacks_to_more_than_it_says(tmp_path):
  _write_idx(tmp_path)
  name = 'train-images-idx3-ubyte'
  more = gzip.compress((tmp_path / name).read_bytes() + bytes(10**8))
  _packed(tmp_path, name, more)
  tracemalloc.start()
  assert 'and perhaps more' in _fails('idx', str(tmp_path))
  assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
  tracemalloc.stop()


@pytest.mark.parametrize('count', [2**32 - 1, 10**8])
def test_idx_that_says_it_is_very_large(tmp_path, count):
  _write_idx(tmp_path)
  path = tmp_path / 't10k-images-idx3-ubyte'
  path.write_bytes(struct.pack('>4I', 0x803, count, 28, 28))
  assert 'at most 2147483648 are read' in _fails('idx', str(tmp_path))


@pytest.mark.parametrize('rest', [b'', bytes(99)])
def test_idx_gzip_of_several_members(tmp_path, rest):
  parts = _write_idx(tmp_path)
  name = 'train-images-idx3-ubyte'
  content = (tmp_path / name).read_bytes()
  halves = gzip.compress(content[:50]), gzip.compress(content[50:])
  _packed(tmp_path, name, b''.join(halves) + rest)
  found = data.load('idx', str(tmp_path)).train['image']
  np.testing.assert_array_equal(found[..., 0], parts['train']['image'])


@pytest.mark.parametrize('name', ['idx', 'mine'])
def test_idx_labels_use_the_whole_byte(tmp_path, name):
  _write_idx(tmp_path)
  file = tmp_path / 't10k-labels-idx1-ubyte'
  file.write_bytes(file.read_bytes()[:-1] + b'\xff')
  assert len(data.load(name, str(tmp_path)).classes) == 256


def test_fashion_mnist_of_the_shared_folder():
  dataset = data.load('fashion_mnist', str(_shared('data/fashion_mnist')))
  assert dataset.train['image'].shape == (60000, 28, 28, 1)
  assert dataset.test['image'].shape == (10000, 28, 28, 1)
  mean, std = statistics(dataset.train['image'])
  assert dataset.mean == pytest.approx(mean, abs=1e-4)
  assert dataset.std == pytest.approx(std, abs=1e-4)


# -------------------------------------------------------------------- tfds


def _pictures(shape=(6, 5, 3), form='PNG'):
  """Two splits of random images: as arrays, and as `write_tfds` takes them."""
  random = np.random.default_rng(0)
  arrays = {
    part: random.integers(0, 256, (rows, *shape), dtype=np.uint8)
    for part, rows in (('train', 9), ('test', 5))
  }
  rows = {
    part: [(encode(image, form), i % 3) for i, image in enumerate(images)]
    for part, images in arrays.items()
  }
  return arrays, rows


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('chunk', [4, 1024])
def test_tfds_round_trip(tmp_path, monkeypatch, channels, chunk):
  monkeypatch.setattr(tfds_reader, '_CHUNK', chunk)
  shape = (6, 5, channels)
  arrays, rows = _pictures(shape)
  folder = write_tfds(tmp_path, rows, shape=shape)
  # The data_dir, the folder of the set, the folder of the version.
  for path in (tmp_path, folder.parent, folder):
    dataset = data.load('cifar10', str(path))
    assert dataset.name == 'cifar10'
    assert dataset.classes == ('cat', 'dog', 'ship')
    for part in ('train', 'test'):
      got = getattr(dataset, part)
      np.testing.assert_array_equal(got['image'], arrays[part])
      assert got['label'].tolist() == [i % 3 for i in range(len(arrays[part]))]
      assert got['image'].dtype == np.uint8
      assert got['label'].dtype == np.int32
  if channels == 3:
    assert dataset.mean == (0.491, 0.482, 0.447)
    assert dataset.std == (0.247, 0.243, 0.262)


def test_tfds_default_directory_newest_version_and_own_name(
  tmp_path, monkeypatch
):
  arrays, rows = _pictures()
  old = {part: rows[part][:4] for part in rows}
  write_tfds(tmp_path, old, name='cifar100', version='3.0.2')
  write_tfds(tmp_path, rows, name='cifar100', version='3.0.10')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  dataset = data.load('cifar100')
  np.testing.assert_array_equal(dataset.train['image'], arrays['train'])
  write_tfds(tmp_path, rows, name='pets')
  dataset = data.load('pets', str(tmp_path))
  mean = tuple(arrays['train'].mean(axis=(0, 1, 2)) / 255)
  assert dataset.mean == pytest.approx(mean)


def test_tfds_reads_jpeg_too(tmp_path):
  arrays, rows = _pictures(form='JPEG')
  write_tfds(tmp_path, rows)
  image = data.load('cifar10', str(tmp_path)).test['image']
  assert image.shape == arrays['test'].shape


def test_tfds_not_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  for arguments in (('cifar10',), ('cifar10', str(tmp_path))):
    message = _fails(*arguments)
    assert str(tmp_path) in message
    assert 'pip install tensorflow' in message
    assert "tfds.builder('cifar10'" in message
    assert "download_and_prepare(file_format='array_record')" in message


def test_tfds_other_layout(tmp_path):
  import tensorflow_datasets as tfds

  _, rows = _pictures()
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(6, 5, 3)),
      'label': tfds.features.Text(),
    }
  )
  write_tfds(tmp_path, rows, features=features)
  message = _fails('cifar10', str(tmp_path))
  assert "'label': Text" in message
  assert "'image': uint8 [H, W, C]" in message


def test_tfds_other_splits(tmp_path):
  _, rows = _pictures()
  write_tfds(tmp_path, {'train': rows['train'], 'dev': rows['test']})
  assert "['dev', 'train']" in _fails('cifar10', str(tmp_path))


def test_tfds_images_of_different_sizes(tmp_path):
  _, rows = _pictures()
  rows['train'][5] = (encode(np.zeros((7, 5, 3), np.uint8)), 0)
  write_tfds(tmp_path, rows, shape=(None, None, 3))
  message = _fails('cifar10', str(tmp_path))
  assert '(6, 5, 3)' in message
  assert '(7, 5, 3)' in message
  assert '--data.stream --data.size N' in message


def test_tfds_format_that_needs_tensorflow(tmp_path):
  _, rows = _pictures()
  write_tfds(tmp_path, rows, file_format='tfrecord')
  message = _fails('cifar10', str(tmp_path))
  assert 'tfrecord' in message
  assert 'convert_format' in message


def test_tfds_converted_beside_the_format_that_needs_tensorflow(tmp_path):
  arrays, rows = _pictures()
  file = write_tfds(tmp_path, rows) / 'dataset_info.json'
  info = json.loads(file.read_text())
  # What `convert_format` leaves when it writes into the same folder.
  info |= {
    'fileFormat': 'tfrecord',
    'alternativeFileFormats': ['array_record'],
  }
  file.write_text(json.dumps(info))
  train = data.load('cifar10', str(tmp_path)).train
  np.testing.assert_array_equal(train['image'], arrays['train'])


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'info'])
def test_tfds_damaged(tmp_path, damage):
  _, rows = _pictures()
  folder = write_tfds(tmp_path, rows)
  shard = folder / 'cifar10-train.array_record-00001-of-00002'
  if damage == 'missing':
    shard.unlink()
  elif damage == 'truncated':
    shard.write_bytes(shard.read_bytes()[:100])
  elif damage == 'info':
    (folder / 'dataset_info.json').write_text('{"name": ')
  message = _fails('cifar10', str(tmp_path))
  assert str(folder) in message
  assert 'cannot be read' in message
  assert 'download_and_prepare' in message


@pytest.mark.once
def test_cifar10_of_the_shared_folder():
  _shared('data/cifar10')
  dataset = data.load('cifar10', str(_shared('data')))
  assert dataset.classes[0] == 'airplane'
  assert dataset.classes[9] == 'truck'
  for part, count in ((dataset.train, 50000), (dataset.test, 10000)):
    assert part['image'].shape == (count, 32, 32, 3)
    assert np.bincount(part['label']).tolist() == [count // 10] * 10
  mean, std = statistics(dataset.train['image'])
  # The reference's rounded constants, over JPEG copies.
  assert dataset.mean == pytest.approx(mean, abs=2e-3)
  assert dataset.std == pytest.approx(std, abs=2e-3)


# ------------------------------------------------------------------- names


def test_unknown_names_and_missing_directories(tmp_path):
  for arguments in (('cats',), ('cats', str(tmp_path))):
    message = _fails(*arguments)
    assert 'cats' in message
    assert all(name in message for name in data.names())
  missing = str(tmp_path / 'nothing')
  for name in ('mnist', 'cifar10', 'idx', 'cats'):
    assert missing in _fails(name, missing)
  file = tmp_path / 'file'
  file.write_text('')
  assert 'not a directory' in _fails('mnist', str(file))
  assert 'path' in _fails('idx')


def test_a_data_set_of_ones_own_has_a_name(monkeypatch):
  monkeypatch.setattr(data.named, '_OWN', {})
  part = {'image': np.zeros((4, 8, 8, 1), np.uint8), 'label': np.arange(4)}
  paths = []

  def load(path):
    paths.append(path)
    return {'train': part, 'test': part}

  fs.register_dataset('blank', load)
  found = open_data(fs.Experiment('small_resnet8', fs.Data('blank', 'there')))
  assert (found.name, found.classes, paths) == (
    'blank',
    tuple('0123'),
    ['there'],
  )
  with pytest.raises(UserError, match='dict is no function'):
    fs.register_dataset('blank', {'train': part, 'test': part})


# ------------------------------------------------------------------- split


@given(
  st.integers(2, 200),
  st.floats(0, 1, exclude_min=True, exclude_max=True),
  st.integers(0, 2**32),
)
def test_split_is_disjoint_complete_and_repeats(rows, fraction, seed):
  images = np.arange(2 * rows).reshape(rows, 2, 1, 1)
  arrays = data.Arrays({'image': images, 'label': images[:, 0, 0, 0] // 2})
  train, held_out = arrays.split(fraction, seed)
  again = arrays.split(fraction, seed)
  assert len(held_out) == min(max(round(rows * fraction), 1), rows - 1)
  labels = np.concatenate([train['label'], held_out['label']])
  assert sorted(labels.tolist()) == list(range(rows))
  for part, same in zip((train, held_out), again, strict=True):
    np.testing.assert_array_equal(part['image'][:, 0, 0, 0] // 2, part['label'])
    np.testing.assert_array_equal(part['label'], same['label'])


def test_split_follows_the_seed_for_good():
  first, second = (split_rows(8, 0.5, seed)[1] for seed in (0, 1))
  # Written down: a new NumPy must not change which rows are held out.
  assert first.tolist() == [3, 2, 1, 6]
  assert second.tolist() != first.tolist()


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5, float('nan')])
def test_split_refuses_a_fraction(fraction):
  with pytest.raises(UserError, match='a share of'):
    split_rows(4, fraction, 0)


def test_split_refuses_other_input():
  with pytest.raises(UserError, match='the seed -1'):
    split_rows(4, 0.5, -1)
  with pytest.raises(UserError, match='1 examples'):
    split_rows(1, 0.5, 0)
  with pytest.raises(UserError, match='same number'):
    data.Arrays({'label': np.arange(4), 'image': np.zeros((3, 1, 1, 1))})
