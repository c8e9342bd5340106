"""COCO directories: clean ones, others like it, and as they are found."""

import numpy as np
import pytest
from support.coco import CAT, DOG, write
from support.jobs import one_line

import fastsnn_jax as fs
from fastsnn_jax.data import records, squares
from fastsnn_jax.data.readers import coco


def both(root, train, test=None):
  write(root, 'train2017', train)
  write(root, 'val2017', test or {'b': [CAT]})
  return root


def test_classes_are_the_sorted_ids_and_boxes_end_a_pixel_earlier(tmp_path):
  both(tmp_path / 'COCO', {'a': [DOG, CAT], 'none': []}, {'b': [CAT, DOG]})
  for directory in (tmp_path, tmp_path / 'COCO'):
    assert coco.has_annotations(directory)
    found = coco.read_boxes(directory)
    assert found.classes == ('cat', 'dog')
    record, bare = found.train
    assert record.size == (20, 10)
    assert record.label.tolist() == [1, 0]
    assert record.crowd.tolist() == [True, False]
    assert record.area.tolist() == [20, 30.5]
    expected = [[4.5 / 20, 0.2, 11.5 / 20, 0.5], [0, 0, 9 / 20, 0.4]]
    np.testing.assert_allclose(record.boxes, expected, rtol=1e-6)
    assert bare.boxes.shape == (0, 4)
    exact = [[0, 0, 0.5, 0.5], [4.5 / 20, 0.2, 12.5 / 20, 0.6]]
    np.testing.assert_allclose(found.test[0].boxes, exact, rtol=1e-6)
    (line,) = records.lines(found.repairs)
    assert line.startswith('1 pictures without objects, kept as such (first')
    assert line.endswith('none.png)')
  labels = squares.box_labels(found.train)
  assert labels['label'].tolist() == [[1, 0], [-1, -1]]
  assert labels['crowd'].tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
  ('box', 'repairs', 'short', 'exact'),
  [
    ((0, 0, 20, 10), '', (0, 0, 19, 9), (0, 0, 20, 10)),
    ((19.5, 2, 0.5, 4), 'empty', None, (19.5, 2, 20, 6)),
    ((3, 2, 1, 4), 'empty', None, (3, 2, 4, 6)),
    ((3, 2, 0, 4), 'empty', None, None),
    # The official code moves such a box in, rather than to cut it off.
    ((-2, 1, 6, 4), 'outside', (0, 1, 5, 4), (0, 1, 4, 5)),
    ((15, 5, 30, 30), 'outside', (15, 5, 19, 9), (15, 5, 20, 10)),
    ((30, 5, 4, 4), 'outside empty', None, None),
    ((9, 8, -4, -6), 'swapped', (5, 2, 8, 7), (5, 2, 9, 8)),
    ((1, 2, 3), 'no_box', None, None),
    ((1, 2, 3, None), 'no_box', None, None),
    (None, 'no_box', None, None),
  ],
)
def test_a_box_is_mended_or_left_out_and_counted(
  tmp_path, box, repairs, short, exact
):
  odd = {'category_id': 3, 'bbox': box}
  for part, expected in (('train', short), ('test', exact)):
    pictures = {'a': [CAT, odd]}
    both(tmp_path, **{'train': {'a': [CAT]}, part: pictures})
    found = coco.read_boxes(tmp_path)
    (record,) = getattr(found, part)
    boxes = record.boxes[1:] * [20, 10, 20, 10]
    expected = np.reshape([] if expected is None else expected, (-1, 4))
    np.testing.assert_allclose(boxes, expected, atol=1e-5)
    changed = {'empty'} if part == 'test' and exact else set()
    assert set(found.repairs) == set(repairs.split()) - changed
    if part == 'test' and exact:  # no area was given: that of the box
      sides = expected[0, 2:] - expected[0, :2]
      assert record.area[1] == pytest.approx(sides.prod(), rel=1e-5)


def test_objects_are_left_out_and_counted(tmp_path):
  pictures = {
    'a': [
      CAT,
      {**CAT, 'category_id': 99},
      {'bbox': [0, 0, 1, 1]},
      {**CAT, 'image_id': 404},
      {**CAT, 'area': 0},
    ],
    'broken': [DOG],
    'gone': [DOG],
  }
  both(tmp_path, pictures)
  (tmp_path / 'train2017' / 'broken.png').write_bytes(b'no picture')
  (tmp_path / 'train2017' / 'gone.png').unlink()
  found = coco.read_boxes(tmp_path)
  assert [record.label.tolist() for record in found.train] == [[0, 0]]
  where = tmp_path / 'train2017'
  path = tmp_path / 'annotations' / 'instances_train2017.json'
  assert records.lines(found.repairs) == [
    '1 pictures that are listed, but not there, left out (first: gone.png)',
    '1 pictures left out that, or whose annotations, cannot be read (first: '
    f'{where / "broken.png"})',
    '1 objects of no picture that is listed left out (first: '
    f'{path}, annotation None)',
    '2 objects of an unknown class left out (first: '
    f'{where / "a.png"}, object 2)',
  ]


def test_boxes_are_shares_of_the_size_they_were_drawn_on(tmp_path):
  both(tmp_path, {'a': [CAT]})
  said = {'id': 5, 'file_name': 'a.png', 'width': 40, 'height': 20}
  nothing = {'id': 6, 'file_name': 'a.png'}
  nameless = {'id': 7}
  images = [said, nothing, nameless]
  path = write(tmp_path, 'train2017', {'a': [CAT]}, images=images)
  found = coco.read_boxes(tmp_path)
  assert [record.size for record in found.train] == [(20, 10)] * 2
  np.testing.assert_allclose(found.train[0].boxes, [[0, 0, 0.225, 0.2]])
  assert found.train[0].area.tolist() == [30.5 / 4]
  where = tmp_path / 'train2017' / 'a.png'
  assert found.repairs == {
    'said_size': [f'{where}, 40 x 20 and not 20 x 10'],
    'bare': [str(where)],
    'gone': [f'{path}, image 7'],
  }


def test_test_categories_are_found_by_name(tmp_path):
  write(tmp_path, 'train2017', {'a': [CAT, DOG]})
  other = [{'id': 0, 'name': 'Dog'}, {'id': 1, 'name': 'horse'}]
  objects = [{**CAT, 'category_id': i} for i in (0, 1)]
  write(tmp_path, 'val2017', {'b': objects}, categories=other)
  found = coco.read_boxes(tmp_path)
  assert found.test[0].label.tolist() == [1]
  assert len(found.repairs['unknown']) == 1


@pytest.mark.parametrize('read', [coco.read_boxes, coco.read_masks])
@pytest.mark.parametrize('name', ['cat', 'CAT'])
def test_two_categories_of_one_name_are_refused(tmp_path, read, name):
  twice = [{'id': 3, 'name': 'cat'}, {'id': 4, 'name': name}]
  write(tmp_path, 'train2017', {'a': [CAT]}, categories=twice)
  write(tmp_path, 'val2017', {'b': [CAT]})
  with pytest.raises(fs.UserError, match=f"2017.json: .* 'cat' and '{name}'"):
    read(tmp_path)


@pytest.mark.parametrize(
  ('annotations', 'folder', 'splits'),
  [
    ('annotations/instances_{}.json', '{}', ('train', 'test')),
    ('annotations/{}.json', 'images/{}', ('train', 'val')),
    ('annotations/{}.json', 'images', ('train', 'validation')),
    ('{}/_annotations.coco.json', '{}', ('train', 'valid')),
    ('annotations/instances_{}.json', '.', ('train2017', 'val2017')),
  ],
)
def test_directories_in_that_layout(tmp_path, annotations, folder, splits):
  for split, name in zip(splits, 'ab', strict=True):
    write(
      tmp_path,
      split,
      {name: [CAT]},
      annotations=annotations.format(split),
      folder=folder.format(split),
    )
  found = coco.read_boxes(tmp_path)
  assert [record.picture.stem for record in found.train] == ['a']
  assert [record.picture.stem for record in found.test] == ['b']


def test_other_layouts_are_refused(tmp_path):
  def refused(match):
    with pytest.raises(fs.UserError, match=match) as error:
      coco.read_boxes(tmp_path)
    one_line(error)

  assert not coco.has_annotations(tmp_path)
  refused('no annotations to train on')
  path = write(tmp_path, 'train2017', {'a': [CAT]})
  refused('no annotations to test on')
  write(tmp_path, 'val2017', {'b': [DOG]})
  cat = [{'id': CAT['category_id'], 'name': 'cat'}]
  write(tmp_path, 'train2017', {'a': [CAT]}, categories=cat)
  refused(r"val2017.json has no picture .* shows one of the classes \['cat'\]")
  for content, match in (
    ('{"images": [', 'cannot be read'),
    ('[' * 100_000, 'cannot be read'),
    ('[]', "no list of objects 'images'"),
    ('{"images": [], "annotations": {}}', "no list of objects 'annotations'"),
    ('{"images": [1]}', "no list of objects 'images'"),
  ):
    path.write_text(content)
    refused(match)
