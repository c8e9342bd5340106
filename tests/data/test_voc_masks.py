"""Directories in VOC's layout for segmentation."""

import numpy as np
import pytest
from support.jobs import one_line
from support.masks import mask, palette, write
from support.shared import find_shared

import fastsnn_jax as fs
from fastsnn_jax.data import decode, records, squares
from fastsnn_jax.data.readers import voc

A, B, C = (mask(8, 6, 3, seed=i) for i in range(3))


def stems(records):
  return records and [record.mask.stem for record in records]


def splits_of(directory):
  found = voc.read_masks(directory)
  return stems(found.train), stems(found.validation), stems(found.test)


@pytest.mark.parametrize(
  ('lists', 'expected'),
  [
    ('train val test', (['train'], ['val'], ['test'])),
    ('train test', (['train'], None, ['test'])),
    ('train val', (['train'], None, ['val'])),
    ('train trainval trainaug val', (['train'], None, ['val'])),
  ],
)
def test_splits_of_one_s_own(tmp_path, lists, expected):
  write(tmp_path, {name: {name: A} for name in lists.split()})
  assert voc.has_masks(tmp_path)
  assert splits_of(tmp_path) == expected


@pytest.mark.parametrize('up', [0, 1, 2])
@pytest.mark.parametrize('train', ['train', 'trainaug'])
def test_splits_of_voc(tmp_path, up, train):
  lists = {'train', 'trainval', 'val', 'test', train}
  root = tmp_path / 'VOCdevkit' / 'VOC2012'
  write(root, {name: {name: A} for name in lists}, classes=None)
  directory = [root, *root.parents][up]
  assert splits_of(directory) == ([train], None, ['val'])
  classes = voc.read_masks(directory).classes
  assert classes == voc.MASK_CLASSES
  assert [classes[i] for i in (0, 1, 15, 20)] == [
    *('background', 'aeroplane', 'person', 'tvmonitor'),
  ]


def test_masks_and_classes(tmp_path):
  write(tmp_path, {'train': {'a': A, 'b': B}, 'val': {'c': C}})
  found = voc.read_masks(tmp_path)
  assert found.classes == ('sky', 'road', 'car')
  assert not records.lines(found.repairs)
  got = [
    records.picture_and_mask(item, 3)[1] for item in (*found.train, *found.test)
  ]
  np.testing.assert_array_equal(got, [A, B, C])
  (tmp_path / 'classes.txt').write_text('sky\nrest')
  found = voc.read_masks(tmp_path)
  assert found.classes == ('sky', 'rest')
  assert len(found.repairs['no_class']) == 3
  np.testing.assert_array_equal(
    records.picture_and_mask(found.train[0], 2)[1], np.where(A < 2, A, 255)
  )


def test_encoded_masks_are_preferred(tmp_path):
  write(tmp_path, {'train': {'a': A, 'b': B}, 'val': {'c': C}})
  folder = tmp_path / 'EncodeSegmentationClass'
  folder.mkdir()
  (folder / 'b.png').write_bytes(decode.index_png(C))
  train = voc.read_masks(tmp_path).train
  got = [records.picture_and_mask(item, 3)[1] for item in train]
  np.testing.assert_array_equal(got, [A, C])


def test_pictures_are_left_out_and_counted(tmp_path):
  train = {name: A for name in ('good', 'gone', 'bare', 'broken', 'turned')}
  train['turned'] = A.T
  other = np.vstack([C[:1], C[1:] | 8])
  write(tmp_path, {'train': train, 'val': {'c': other}})
  (tmp_path / 'JPEGImages' / 'gone.png').unlink()
  (tmp_path / 'SegmentationClass' / 'bare.png').unlink()
  (tmp_path / 'JPEGImages' / 'broken.png').write_bytes(b'')
  (tmp_path / 'SegmentationClass' / 'turned.png').write_bytes(palette(A))
  found = voc.read_masks(tmp_path)
  assert stems(found.train) == ['good']
  lines = records.lines(found.repairs)
  assert [line.partition(' (first: ')[0] for line in lines] == [
    '1 pictures that are listed, but not there, left out',
    '1 pictures without a mask left out',
    '1 pictures left out that, or whose annotations, cannot be read',
    '1 pictures left out whose masks have another size',
    '1 masks with labels of no class; these pixels are ignored',
  ]
  assert 'turned.png, 8 x 6 and not 6 x 8' in lines[3]


@pytest.mark.parametrize(
  ('line', 'hint'),
  [
    ('a.png', '.png; names in lists have no folder and no ending: a'),
    (
      'JPEGImages/a.png SegmentationClass/a.png',
      '.png; names in lists have no folder and no ending: a',
    ),
    ('JPEGImages/a', '/a; names in lists have no folder and no ending: a'),
    ('a.b', 'a.b'),
    ('other/a', 'other/a'),
  ],
)
def test_lists_of_files_are_not_lists_of_names(tmp_path, line, hint):
  write(tmp_path, {'train': {'a': A}, 'val': {'c': C}})
  listed = tmp_path / voc.MASK_LISTS / 'train.txt'
  listed.write_text(f'{line}\n')
  with pytest.raises(fs.UserError, match=r'train\.txt has no pic') as error:
    voc.read_masks(tmp_path)
  assert f'{hint})); a split needs' in str(error.value)
  listed.write_text(f'c\n{line}\n')
  (said,) = records.lines(voc.read_masks(tmp_path).repairs)
  assert said.endswith(f'{hint})')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_split_without_a_pixel_of_a_class_is_refused(tmp_path, split):
  splits = {'train': {'a': A}, 'val': {'b': B}, 'test': {'c': C}}
  write(tmp_path, splits | {split: {'x': A | 255, 'y': A | 255}})
  match = (
    rf'{split}\.txt has no picture that can be read and shows .*2 pictures'
  )
  with pytest.raises(fs.UserError, match=match):
    voc.read_masks(tmp_path)
  write(tmp_path, {split: {'x': A | 4}})
  with pytest.raises(fs.UserError, match=r'has no picture .* of no class'):
    voc.read_masks(tmp_path)
  write(tmp_path, {split: {'x': A | 255, 'y': A}})
  voc.read_masks(tmp_path)


def test_other_layouts_are_refused(tmp_path):
  def refused(match):
    with pytest.raises(fs.UserError, match=match) as error:
      voc.read_masks(tmp_path)
    one_line(error)

  assert not voc.has_masks(tmp_path)
  refused('has no ImageSets/Segmentation with train.txt')
  write(tmp_path, {'train': {'a': A}}, classes=None)
  refused('has no ImageSets/Segmentation with train.txt')
  write(tmp_path, {'val': {'b': A}}, classes=None)
  refused(r'classes\.txt: no such file')
  write(tmp_path, {}, classes='sky\n\nroad\n')
  refused(r'classes\.txt has an empty line 2')
  write(tmp_path, {'val': {}}, classes='sky\r\nroad\r\ncar\r\n\r\n')
  refused(r'val\.txt has no picture.*0 pictures')
  assert voc.names_in(tmp_path / voc.MASK_LISTS / 'train.txt') == ['a']
  (tmp_path / 'VOC2012').mkdir()
  refused(r'VOC2012 has no ImageSets')


def test_real_masks():
  found = voc.read_masks(find_shared('data', 'camvid'))
  parts = found.train, found.validation, found.test
  assert [len(part) for part in parts] == [367, 101, 233]
  assert not records.lines(found.repairs)
  assert found.classes[:4] == ('sky', 'building', 'pole', 'road')
  assert len(found.classes) == 11
  assert squares.side_for(found.train + found.test, 16) == 241
  some = found.test[::60]
  arrays = squares.mask_arrays(some, 241, 0, classes=11, repairs=found.repairs)
  assert (arrays['size'] == [240, 180]).all()
  assert (arrays['label'][:, 180:] == 255).all()
  shown = np.unique(arrays['label'][:, :180, :240])
  assert shown.tolist() == [*range(11), 255]
