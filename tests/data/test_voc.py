"""VOC directories: clean ones, and as they are found."""

import numpy as np
import pytest
from support.shared import find_shared
from support.voc import CAT, write

import fastsnn_jax as fs
from fastsnn_jax.data import records, squares
from fastsnn_jax.data.readers import voc

NOBODY = ('', (1, 1, 11, 6), 0)
DOG = ('Dog', (3, 2, 21, 11), 1)


def test_boxes_are_shares_of_the_picture_counted_from_one(tmp_path):
  write(tmp_path, {'trainval': {'a': [CAT, DOG]}, 'test': {'b': [CAT]}})
  found = voc.read_boxes(tmp_path)
  assert found.classes == ('Dog', 'cat')
  assert not records.lines(found.repairs)
  (record,) = found.train
  assert record.size == (20, 10)
  np.testing.assert_allclose(record.boxes, [[0, 0, 0.5, 0.5], [0.1, 0.1, 1, 1]])
  assert record.label.tolist() == [1, 0]
  assert record.difficult.tolist() == [False, True]
  assert found.test[0].label.tolist() == [1]


def test_classes_are_the_names_but_for_case(tmp_path):
  train = {'a': [CAT, NOBODY], 'c': [('CAT', *CAT[1:]), DOG]}
  write(tmp_path, {'trainval': train, 'test': {'b': [CAT]}})
  found = voc.read_boxes(tmp_path)
  assert found.classes == ('CAT', 'Dog')
  assert [record.label.tolist() for record in found.train] == [[0], [0, 1]]
  assert len(found.repairs['unknown']) == 1


def test_arrays_have_places_for_the_most_objects(tmp_path):
  splits = {'train': {'a': [CAT, DOG], 'c': [CAT]}, 'val': {'b': [CAT]}}
  write(tmp_path, splits, image=np.uint8([[[255, 0, 0]] * 20] * 10))
  (tmp_path / 'classes.txt').write_text('cat\ndog')
  rows = voc.read_boxes(tmp_path).train
  whole = squares.box_arrays(rows, 8)
  assert whole['image'].shape == (2, 8, 8, 3)
  assert (whole['image'] == [255, 0, 0]).all()
  assert whole['label'].tolist() == [[0, 1], [0, -1]]
  assert whole['difficult'].tolist() == [[False, True], [False, False]]
  assert whole['size'].tolist() == [[20, 10], [20, 10]]
  assert not whole['boxes'][1, 1].any()
  easy = squares.box_labels(rows, difficult=False)
  assert easy['label'].tolist() == [[0], [0]]


@pytest.mark.parametrize(
  ('corners', 'repair', 'box'),
  [
    ((5, 5, 5, 9), 'empty', None),
    ((5, 5, 9, 5), 'empty', None),
    ((30, 5, 40, 9), 'outside empty', None),
    ((11, 6, 1, 1), 'swapped', (0, 0, 0.5, 0.5)),
    ((0, 1, 11, 99), 'outside', (0, 0, 0.5, 1)),
    ((1.0, 1, 11, 6), '', (0, 0, 0.5, 0.5)),
    ((2.5, 1, 11, 6), 'fractional', (0.075, 0, 0.5, 0.5)),
    ((1, 1, 11), 'no_box', None),
    ((1, 1, 11, 'wide'), 'no_box', None),
    ((1, 1, 11, 'inf'), 'no_box', None),
  ],
)
def test_a_box_is_mended_or_left_out_and_counted(
  tmp_path, corners, repair, box
):
  pictures = {'a': [CAT, ('cat', corners, 0)]}
  write(tmp_path, {'trainval': pictures, 'test': {'b': [CAT]}})
  found = voc.read_boxes(tmp_path)
  assert {k for k, v in found.repairs.items() if v} == set(repair.split())
  boxes = found.train[0].boxes[1:]
  expected = np.reshape([] if box is None else box, (-1, 4))
  np.testing.assert_allclose(boxes, expected, atol=1e-6)


def test_images_are_kept_or_left_out_and_counted(tmp_path):
  pictures = {
    'a': [CAT],
    'none': [],
    'other': [('zebra', (1, 1, 5, 5), 0)],
    'broken': '<annotation><obj',
    'gone': [CAT],
  }
  write(tmp_path, {'trainval': pictures, 'test': {'b': [CAT]}})
  (tmp_path / 'JPEGImages' / 'gone.png').unlink()
  (tmp_path / 'classes.txt').write_text('cat')
  found = voc.read_boxes(tmp_path)
  assert [len(record.label) for record in found.train] == [1, 0, 0]
  folder = tmp_path / 'JPEGImages'
  xml = tmp_path / 'Annotations' / 'broken.xml'
  assert records.lines(found.repairs) == [
    '1 pictures that are listed, but not there, left out (first: gone)',
    '1 pictures left out that, or whose annotations, cannot be read (first: '
    f'{xml})',
    f'1 pictures without objects, kept as such (first: {folder / "none.png"})',
    '1 objects of an unknown class left out (first: '
    f'{folder / "other.png"}, object 1)',
  ]
  labels = squares.box_arrays(found.train, 4)['label']
  assert labels.tolist() == [[0], [-1], [-1]]


def test_boxes_are_shares_of_the_size_they_were_drawn_on(tmp_path):
  pictures = {'trainval': {'a': [CAT]}, 'test': {'b': [CAT]}}
  write(tmp_path, pictures, said=(40, 20))
  found = voc.read_boxes(tmp_path)
  assert len(found.repairs['said_size']) == 2
  np.testing.assert_allclose(found.train[0].boxes, [[0, 0, 0.25, 0.25]])
  assert found.train[0].size == (20, 10)
  write(tmp_path, pictures, said=(0, 0))  # some tools write no size
  assert not records.lines(voc.read_boxes(tmp_path).repairs)


def test_vocdevkit_and_lists_of_classes(tmp_path):
  person = ('person', (1, 1, 11, 6), 0)
  for year, splits in (
    (2007, {'trainval': {'a': [person]}, 'test': {'b': [person]}}),
    (2012, {'trainval': {'c': [person], 'd': [CAT]}}),
  ):
    write(tmp_path / 'VOCdevkit' / f'VOC{year}', splits)
  for directory in (tmp_path, tmp_path / 'VOCdevkit'):
    found = voc.read_boxes(directory)
    assert [record.picture.stem for record in found.train] == ['a', 'c', 'd']
    assert found.classes == voc.CLASSES
    assert found.train[0].label.tolist() == [14]
  alone = tmp_path / 'VOCdevkit' / 'VOC2007'
  (alone / 'classes.txt').write_text('bike\nPerson\n\n')
  found = voc.read_boxes(alone)
  assert found.classes == ('bike', 'Person')
  assert found.train[0].label.tolist() == [1]


def test_classes_that_differ_in_case_only_are_refused(tmp_path):
  write(tmp_path, {'train': {'a': [CAT]}, 'val': {'b': [CAT]}})
  (tmp_path / 'classes.txt').write_text('Cat\ndog\ncat\n')
  with pytest.raises(fs.UserError, match=r"classes\.txt: .* 'Cat' and 'cat'"):
    voc.read_boxes(tmp_path)


def test_other_layouts_are_refused(tmp_path):
  with pytest.raises(
    fs.UserError, match=r'has no ImageSets/Main with trainval'
  ):
    voc.read_boxes(tmp_path)
  write(tmp_path, {'trainval': {'a': [CAT]}, 'test': {'b': [CAT]}})
  (tmp_path / 'classes.txt').write_text('x')
  with pytest.raises(fs.UserError, match=r"shows one of the classes \['x'\]"):
    voc.read_boxes(tmp_path)
  (tmp_path / 'classes.txt').unlink()
  (tmp_path / 'JPEGImages' / 'a.png').write_bytes(b'no picture')
  with pytest.raises(fs.UserError, match='shows one of the classes'):
    voc.read_boxes(tmp_path)
  (tmp_path / 'VOC2007').mkdir()
  with pytest.raises(fs.UserError, match=r'trainval\.txt: no such file'):
    voc.read_boxes(tmp_path)


def test_a_picture_that_breaks_off_is_named(tmp_path):
  write(tmp_path, {'trainval': {'a': [CAT]}, 'test': {'b': [CAT]}})
  rows = voc.read_boxes(tmp_path).train
  path = tmp_path / 'JPEGImages' / 'a.png'
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(fs.UserError, match=r'a\.png cannot be decoded'):
    squares.box_arrays(rows, 4)


def test_real_annotations():
  found = voc.read_boxes(find_shared('data', 'bccd'))
  assert (len(found.train), len(found.test)) == (292, 72)
  assert found.classes == ('Platelets', 'RBC', 'WBC')
  (line,) = records.lines(found.repairs)
  assert line.startswith('2 boxes of no size left out (first: ')
  for record in (*found.train, *found.test):
    assert (record.boxes >= 0).all()
    assert (record.boxes <= 1).all()
    assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
