"""Folders of pictures: DIR/train/CLASS/PICTURE."""

import numpy as np
import pytest
from support.jobs import one_line
from support.pictures import PICTURE, write_named

from fastsnn_jax import data
from fastsnn_jax.data import named
from fastsnn_jax.data.readers import folder
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.config import Data
from fastsnn_jax.tasks.classification.data import open_data


def _fails(*arguments):
  with pytest.raises(UserError) as error:
    named.records(*arguments)
  return one_line(error)


def _content(source):
  return [
    (encoded.removeprefix(PICTURE).decode(), labels['label'])
    for encoded, labels in (source[i] for i in range(len(source)))
  ]


@pytest.mark.parametrize('test', ['test', 'val', 'validation'])
def test_classes_are_the_sorted_folders(tmp_path, test):
  write_named(
    tmp_path,
    'train/dog/b.jpg',
    'train/dog/a.JPEG',
    'train/cat/x.png',
    'train/owl/images/é.webp',  # as Tiny ImageNet has them
    f'{test}/owl/1.jpg',
    f'{test}/cat/2.tif',
  )
  train, held_out, classes = folder.read(tmp_path)
  assert classes == ('cat', 'dog', 'owl')
  assert _content(train) == [
    ('train/cat/x.png', 0),
    ('train/dog/a.JPEG', 1),
    ('train/dog/b.jpg', 1),
    ('train/owl/images/é.webp', 2),
  ]
  assert _content(held_out) == [
    (f'{test}/cat/2.tif', 0),
    (f'{test}/owl/1.jpg', 2),
  ]
  assert train.name(3) == str(tmp_path / 'train/owl/images/é.webp')
  assert train.channels is None
  assert train[3][1]['label'].dtype == np.int32
  (again, *_) = named.records('pets', str(tmp_path))
  assert _content(again) == _content(train)


def test_known_sets_bring_their_statistics(tmp_path):
  write_named(tmp_path, 'train/cat/1.png', 'test/cat/1.png')
  for name, mean in (('cifar10', 0.491), ('pets', 0.485)):
    settings = Data(name, str(tmp_path), stream=True)
    assert open_data(settings).mean[0] == mean


def test_what_is_no_picture_is_left_alone(tmp_path):
  write_named(
    tmp_path,
    'README.md',
    'train/labels.csv',
    'train/stray.jpg',
    'train/cat/1.jpg',
    'train/cat/Thumbs.db',
    'train/cat/._1.jpg',  # macOS leaves these
    'train/.cache/1.jpg',
    'train/cat/.cache/1.jpg',
    'test/cat/2.jpg',
  )
  train, _, classes = folder.read(tmp_path)
  assert classes == ('cat',)
  assert _content(train) == [('train/cat/1.jpg', 0)]


def test_pictures_without_a_class_are_not_tested_on(tmp_path):
  # ImageNet's own test split.
  write_named(tmp_path, 'train/cat/1.jpg', 'test/1.jpg', 'val/cat/2.jpg')
  assert _content(folder.read(tmp_path)[1]) == [('val/cat/2.jpg', 0)]


def test_a_class_may_be_missing_in_test(tmp_path):
  write_named(tmp_path, 'train/cat/1.jpg', 'train/dog/1.jpg', 'test/dog/2.jpg')
  (tmp_path / 'test/cat').mkdir()
  assert _content(folder.read(tmp_path)[1]) == [('test/dog/2.jpg', 1)]


def test_a_class_that_train_has_not(tmp_path):
  write_named(tmp_path, 'train/cat/1.jpg', 'test/cat/2.jpg', 'test/owl/2.jpg')
  message = _fails('pets', str(tmp_path))
  assert "['owl']" in message
  assert 'same folders' in message


def test_an_empty_class(tmp_path):
  write_named(
    tmp_path, 'train/cat/1.jpg', 'train/dog/readme.txt', 'test/cat/2.jpg'
  )
  for number in range(7):
    (tmp_path / f'train/empty{number}').mkdir()
  message = _fails('pets', str(tmp_path))
  assert "['dog', 'empty0'" in message
  assert 'and 3 more' in message
  assert 'fill or remove' in message


def test_missing_splits(tmp_path):
  write_named(tmp_path, 'train/cat/1.jpg')
  message = _fails('pets', str(tmp_path))
  assert 'no folder test (nor val or validation)' in message
  assert 'DIR/train/CLASS' in message
  (tmp_path / 'val/cat').mkdir(parents=True)
  assert 'has no pictures' in _fails('pets', str(tmp_path))


def test_in_memory_the_options_are_named_that_it_takes(tmp_path):
  write_named(tmp_path, 'train/cat/a.jpg', 'test/cat/b.jpg')
  with pytest.raises(UserError, match='folder of pictures') as error:
    data.load('pets', str(tmp_path))
  assert '--data.stream --data.size N' in str(error.value)
  one_line(error)


def test_neither_a_set_nor_pictures(tmp_path, monkeypatch):
  for path in (tmp_path, tmp_path / 'nothing'):
    message = _fails('pets', str(path))
    assert str(path) in message
    assert 'DIR/train/CLASS' in message
    assert 'TFDS' in message
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  message = _fails('pets')
  assert "no prepared TFDS data set 'pets'" in message
  assert 'DIR/train/CLASS' in message


def test_a_picture_that_vanishes(tmp_path):
  write_named(tmp_path, 'train/cat/1.jpg', 'test/cat/2.jpg')
  source = folder.read(tmp_path)[0]
  (tmp_path / 'train/cat/1.jpg').unlink()
  with pytest.raises(UserError, match=r'1\.jpg cannot be read \(No such file'):
    source[0]
