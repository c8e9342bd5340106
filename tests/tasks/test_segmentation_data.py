"""Sets with masks by name, in memory and streamed: the same pixels."""

import dataclasses
import functools
import pickle
import re
from types import SimpleNamespace

import grain
import jax
import numpy as np
import pytest
from support.coco import CAT
from support.coco import write as write_coco
from support.masks import mask, palette, write
from support.pictures import encode, smooth
from support.shared import find_shared

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.data import Shuffle, as_split, decode, squares
from fastsnn_jax.data.readers import scenes
from fastsnn_jax.experiment.config import Data
from fastsnn_jax.experiment.train import held_out
from fastsnn_jax.tasks.segmentation import data as segmentation
from fastsnn_jax.tasks.segmentation.augment import augment_masks

SIZES = {'a': (8, 6), 'b': (5, 12), 'c': (12, 12), 'd': (3, 3), 'e': (7, 2)}
SPLITS = {'train': 'abc', 'val': 'd', 'test': 'de'}
FILL = (124, 116, 104)


@pytest.fixture
def directory(tmp_path):
  labels = {
    name: mask(*size, 3, seed=i) for i, (name, size) in enumerate(SIZES.items())
  }
  write(tmp_path, {k: {x: labels[x] for x in v} for k, v in SPLITS.items()})
  return tmp_path


def read(name='streets', path=None, *, stride=4, **settings):
  """The data of a network with these cells, for images of 13 x 13."""
  model = SimpleNamespace(stride=stride, size=13)
  settings = Data(name, path and str(path), **settings)
  return segmentation.open_data(settings, model)


def test_in_memory(directory):
  found = read(path=directory)
  assert found.name == 'streets'
  assert found.classes == ('sky', 'road', 'car')
  assert found.mean == (0.485, 0.456, 0.406)
  assert found.notes == ()
  for part, names in (('train', 'abc'), ('validation', 'd'), ('test', 'de')):
    arrays = getattr(found, part)
    assert arrays['image'].shape == (len(names), 13, 13, 3)
    assert arrays['label'].shape == (len(names), 13, 13)
    assert arrays['size'].tolist() == [list(SIZES[name]) for name in names]
  assert (found.train['image'][0, 6:] == FILL).all()
  assert (found.train['label'][0, :, 8:] == 255).all()
  larger = read(path=directory, size=17)
  assert larger.test['label'].shape == (2, 17, 17)
  for size, match in ((16, 'does not fit'), (9, r'b\.png has 5 x 12')):
    for stream in (False, True):
      with pytest.raises(fs.UserError, match=match):
        read(path=directory, size=size, stream=stream)


def test_a_stream_shows_what_is_in_memory(directory):
  whole = read(path=directory)
  stream = read(path=directory, stream=True)
  assert (stream.classes, stream.mean) == (whole.classes, whole.mean)
  for part in ('train', 'validation', 'test'):
    arrays, split = getattr(whole, part), getattr(stream, part)
    assert split.shape == (13, 13, 3)
    split = pickle.loads(pickle.dumps(split))  # as worker processes get it
    got = split.in_memory()
    for key, value in arrays.arrays.items():
      np.testing.assert_array_equal(got[key], value)
      assert got[key].dtype == value.dtype
  shown = stream.train.batches(2, shuffle=Shuffle(1))
  batch = next(shown)
  shown.close()
  assert batch['label'].shape == (2, 13, 13)
  augment = functools.partial(augment_masks, side=9, fill=FILL)
  new = jax.eval_shape(augment, jax.random.key(0), batch)
  assert new['image'].shape == (2, 9, 9, 3)
  assert new['label'].shape == (2, 9, 9)


@pytest.mark.parametrize('stream', [False, True])
def test_a_part_without_a_label_cannot_select_an_epoch(directory, stream):
  task = tasks.named('segmentation')(classes=3)
  part = read(path=directory, stream=stream).train
  assert task.labelled(part)
  path = directory / 'SegmentationClass' / 'b.png'
  path.write_bytes(palette(np.full((12, 5), 255)))
  part = read(path=directory, stream=stream).train
  assert task.labelled(part)
  assert not task.labelled(part.take(np.array([1])))
  whole = read(path=directory, stream=stream)
  held = dataclasses.replace(whole, validation=whole.train.take(np.array([1])))
  config = fs.Experiment('small_deeplab')
  assert held_out(config, whole)[1] is whole.validation
  none = r'none of the images .* has a label'
  with pytest.raises(fs.UserError, match=f'data.validation: {none}'):
    held_out(config, held)
  held = dataclasses.replace(whole, test=held.validation)
  with pytest.raises(fs.UserError, match=f"select='test': {none}"):
    held_out(dataclasses.replace(config, select='test'), held)


def test_a_stream_of_ones_own_is_taken_to_have_labels():
  task = tasks.named('segmentation')(classes=3)
  example = {'image': np.zeros((4, 4, 3), np.uint8), 'label': np.zeros((4, 4))}
  assert task.labelled(as_split(grain.MapDataset.source([example])))


def test_what_breaks_later_is_skipped(directory):
  stream = read(path=directory, stream=True).train
  (directory / 'SegmentationClass' / 'a.png').write_bytes(b'')
  (batch,) = stream.batches(3)
  assert batch['mask'].tolist() == [0, 1, 1]
  (line,) = stream.complaints()
  assert re.fullmatch(r'1 of 3 pictures .* \(\S*a\.png\)', line)
  (directory / 'JPEGImages' / 'b.png').unlink()
  with pytest.raises(fs.UserError, match=r'2 of 3 pictures.*a\.png.*b\.png'):
    list(stream.batches(3))
  path = directory / 'JPEGImages' / 'c.png'
  path.write_bytes(encode(smooth(14, 3)))
  with pytest.raises(fs.UserError, match=r'c\.png has 3 x 14 .* of 14 or more'):
    list(stream.batches(3))


def test_repairs_are_told(directory):
  path = directory / 'SegmentationClass' / 'b.png'
  path.write_bytes(palette(np.full((12, 5), 3)))
  (directory / 'SegmentationClass' / 'c.png').unlink()
  whole = read(path=directory, stride=1)
  stream = read(path=directory, stride=1, size=12, stream=True)
  assert whole.train['image'].shape == (2, 12, 12, 3)
  assert (whole.train['label'][1] == 255).all()
  assert whole.notes == stream.notes
  assert [note.partition(' (')[0] for note in whole.notes] == [
    '1 pictures without a mask left out',
    '1 masks with labels of no class; these pixels are ignored',
  ]
  picture = directory / 'JPEGImages' / 'a.png'
  picture.write_bytes(picture.read_bytes()[:60])
  notes = read(path=directory, stride=1).notes
  assert any('cannot be read (first: ' in note for note in notes)


def test_binary_masks_of_0_and_255_are_told(directory):
  (directory / 'classes.txt').write_text('background\nobject')
  for path in (directory / 'SegmentationClass').iterdir():
    labels = decode.indices(path.read_bytes())
    path.write_bytes(palette(np.where(labels == 0, 0, 255)))
  whole = read(path=directory)
  stream = read(path=directory, stream=True)
  assert whole.notes == stream.notes
  assert whole.notes == (
    "no training mask has the index of 'object'; 255 means ignored",
  )


def test_coco(tmp_path):
  square = [[2, 1, 8, 1, 8, 6, 2, 6]]
  cat = {**CAT, 'segmentation': square}
  crowd = {**cat, 'iscrowd': 1}
  write_coco(tmp_path, 'train', {'a': [cat]})
  write_coco(tmp_path, 'test', {'b': [crowd]})
  for crowds, label in (('background', 0), ('ignored', 255)):
    settings = {'stride': 8, 'crowd': crowds}
    whole = read('pets', tmp_path, **settings)
    assert whole.classes == ('background', 'dog', 'cat')
    assert whole.train['label'].shape == (1, 25, 25)
    assert whole.train['label'][0, 3, 5] == 2
    assert whole.test['label'][0, 3, 5] == label
    assert whole.validation is None
    stream = read('pets', tmp_path, size=25, stream=True, **settings)
    (batch,) = stream.test.batches(1)
    np.testing.assert_array_equal(batch['label'], whole.test['label'])
    assert stream.validation is None
    for notes in (whole.notes, stream.notes):
      assert notes[-1].startswith("no training mask has the index of 'dog';")


def test_scenes_are_padded(monkeypatch):
  draw = scenes.segmentation
  monkeypatch.setattr(scenes, 'segmentation', lambda size: draw(size, 2, 1, 1))
  for stride, size, side in ((8, None, 96), (64, None, 96), (16, 81, 64)):
    found = read('scenes', stride=stride, size=size)
    drawn = draw(side, 2, 1, 1)
    padded = size or squares.fitting_size(96, stride)
    for part, count in (('train', 2), ('validation', 1), ('test', 1)):
      arrays, own = getattr(found, part), getattr(drawn, part)
      assert arrays['image'].shape == (count, padded, padded, 3)
      assert (arrays['size'] == side).all()
      for key in ('image', 'label'):
        inside = arrays[key][:, :side, :side]
        np.testing.assert_array_equal(inside, own[key])
      assert (arrays['label'][:, side:] == 255).all()
      assert (arrays['image'][:, :, side:] == squares.fill_of(drawn.mean)).all()
    assert (found.mean, found.classes) == (drawn.mean, drawn.classes)
  for size, match in ((96, 'does not fit'), (17, 'scenes need 33')):
    with pytest.raises(fs.UserError, match=match):
      read('scenes', stride=8, size=size)


def test_what_is_refused(tmp_path):
  for arguments, match in (
    (('scenes',), 'drawn in memory'),
    (('voc',), "data set 'voc' needs the path"),
    (('voc', tmp_path / 'none'), 'is not a directory'),
    (('voc', tmp_path), r'neither ImageSets/Segmentation/train\.txt nor'),
  ):
    with pytest.raises(fs.UserError, match=match):
      read(*arguments, stream=True)


def test_real_pictures_streamed():
  path = find_shared('data', 'camvid')
  stream = read('camvid', path, stride=8, size=241, stream=True)
  assert [len(x) for x in (stream.train, stream.validation, stream.test)] == [
    *(367, 101, 233)
  ]
  batches = stream.train.batches(4, shuffle=Shuffle(1))
  batch = next(batches)
  batches.close()
  assert batch['image'].shape == (4, 241, 241, 3)
  assert (batch['image'][:, 180:] == FILL).all()
  assert (batch['size'] == [240, 180]).all()
  known = batch['label'][batch['label'] != 255]
  assert 0.5 < known.size / (4 * 240 * 180) <= 1
  assert known.max() < 11
