"""Masks from outlines, against pycocotools and the official rules."""

import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coder
from pycocotools.coco import COCO
from support.coco import write

import fastsnn_jax as fs
from fastsnn_jax.data import records
from fastsnn_jax.data.readers import coco

SIZE = WIDTH, HEIGHT = 20, 10
SQUARE = [[2, 1, 8, 1, 8, 6, 2, 6]]
CAT = {'category_id': 3, 'bbox': [2, 1, 6, 5], 'area': 30, 'iscrowd': 0}
CAT['segmentation'] = SQUARE
DOG = {**CAT, 'category_id': 7, 'segmentation': [[5, 3, 15, 3, 15, 9, 5, 9]]}


def both(root, train, test=None):
  write(root, 'train2017', train)
  write(root, 'val2017', test or {'b': [CAT]})
  return root


def run_lengths(labels, *, text):
  """COCO's code of a mask, bool [h, w]: compressed, or as a list."""
  code = coder.encode(np.asfortranarray(labels, np.uint8))
  if text:
    return {'size': code['size'], 'counts': code['counts'].decode()}
  flat = np.concatenate([[0], labels.T.ravel()])  # it begins with no object
  edges = np.flatnonzero(np.diff(flat)) if flat.any() else []
  runs = np.diff([0, *edges, labels.size]).tolist()
  return {'size': list(labels.shape), 'counts': runs}


def painted(annotations, classes, ignored=False):
  """The mask by pycocotools' own `annToMask`, one annotation after another."""
  tool = COCO()
  tool.imgs = {5: {'height': HEIGHT, 'width': WIDTH}}
  result = np.zeros((HEIGHT, WIDTH), int)
  taken = np.zeros((HEIGHT, WIDTH), bool)
  for item in annotations:
    x, y, w, h = item['bbox']
    beside = x >= WIDTH or y >= HEIGHT or x + w <= 0 or y + h <= 0
    if item.get('ignore') or beside or w < 1 or h < 1:
      continue
    inside = tool.annToMask({'image_id': 5, **item}) > 0
    if item['iscrowd']:
      result[inside & ~taken] = 255 if ignored else 0
      continue
    taken |= inside
    result[inside] = 1 + classes.index(item['category_id'])
  return result


PLACE = st.integers(-20, 160).map(lambda x: x / 7)
POLYGON = st.lists(PLACE, min_size=6, max_size=12).filter(
  lambda found: len(found) % 2 == 0
)
CODE = st.builds(
  lambda seed, text: run_lengths(
    np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.2, text=text
  ),
  st.integers(0, 99),
  st.booleans(),
)
ANNOTATION = st.fixed_dictionaries(
  {
    'category_id': st.sampled_from([3, 7]),
    'bbox': st.tuples(*[st.sampled_from([-5, 0, 0.5, 4, 10, 25])] * 4),
    'area': st.sampled_from([0, 0.5, 40]),
    'iscrowd': st.sampled_from([0, 0, 1]),
    'segmentation': st.one_of(st.lists(POLYGON, min_size=1, max_size=2), CODE),
  },
  optional={'ignore': st.booleans()},
)


@pytest.mark.filterwarnings('ignore:__array__ impl')  # pycocotools, NumPy 2
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
  annotations=st.lists(ANNOTATION, max_size=6),
  crowd=st.sampled_from(coco.CROWDS),
)
def test_masks_by_pycocotools(tmp_path, annotations, crowd):
  both(tmp_path, {'a': annotations, 'good': [CAT]})
  found = coco.read_masks(tmp_path, crowd=crowd)
  assert found.classes == ('background', 'dog', 'cat')  # as they are listed
  record, _ = found.train
  assert record.size == SIZE
  expected = painted(annotations, [7, 3], crowd == 'ignored')
  np.testing.assert_array_equal(
    records.picture_and_mask(record, 3)[1], expected
  )
  copy = pickle.loads(pickle.dumps(record))  # as worker processes get it
  np.testing.assert_array_equal(copy.mask(), expected)


def test_later_objects_are_on_top_and_crowds_below(tmp_path):
  crowd = {**CAT, 'iscrowd': 1, 'segmentation': [[0, 0, 20, 0, 20, 5, 0, 5]]}
  pictures = {'a': [CAT, DOG], 'c': [DOG, crowd, CAT], 'none': []}
  both(tmp_path, pictures)
  for option, rest, repair in (
    ('background', 0, 'crowd'),
    ('ignored', 255, 'crowd_ignored'),
  ):
    found = coco.read_masks(tmp_path, crowd=option)
    first, second, bare = (record.mask() for record in found.train)
    assert [first[2, 4], first[4, 6], first[7, 12]] == [2, 1, 1]
    assert [second[2, 4], second[4, 6], second[7, 12]] == [2, 2, 1]
    assert second[0, 18] == rest
    assert not bare.any()
    assert list(found.repairs) == [repair]
    (line,) = records.lines(found.repairs)
    assert 'instances_train2017.json, annotation ' in line


@pytest.mark.parametrize(
  ('changes', 'repair'),
  [
    ({'ignore': 1}, 'skipped'),
    ({'area': 0}, None),
    ({'area': -3}, None),
    ({'area': '0'}, None),
    ({'bbox': [2, 1, 0.9, 5]}, 'skipped'),
    ({'bbox': [20, 1, 6, 5]}, 'skipped'),
    ({'bbox': [2, -6, 6, 6]}, 'skipped'),
    ({'bbox': None}, None),
    ({'bbox': [1, 2, 3]}, None),
    ({'area': None}, None),
    ({'category_id': 99}, 'unknown'),
    ({'image_id': 404}, 'stray'),
    ({'segmentation': None}, 'no_outline'),
    ({'segmentation': []}, 'no_outline'),
    ({'segmentation': [[2, 1, 8, 1]]}, 'no_outline'),  # else taken for a box
    ({'segmentation': [[2, 1, 8, 1, 8, 6, 2]]}, 'no_outline'),
    ({'segmentation': [2, 1, 8, 1, 8, 6]}, None),
    ({'segmentation': ['2', '1', '8', '1', '8', '6']}, None),
    ({'segmentation': [[2, 1], [8, 1], [8, 6]]}, None),
    ({'segmentation': [2, 1, 8, 1, 8]}, 'no_outline'),
    ({'segmentation': '[2, 1, 8, 1, 8, 6]'}, 'no_outline'),
    ({'segmentation': [[2, 1, 8, 6] * 99_999]}, 'no_outline'),  # a long walk
    ({'segmentation': [[2, 1, 8, 1, 8, float('nan')]]}, 'no_outline'),
    ({'segmentation': [[2, 1, 8, 1, 8, 1e9]]}, 'no_outline'),
    ({'segmentation': [[2, 1, 8, 1, 8, 'x']]}, 'no_outline'),
    ({'segmentation': [[1], *SQUARE]}, None),
    ({'segmentation': {'size': [10, 20]}}, 'no_outline'),
    ({'segmentation': {'size': [10, 20], 'counts': [5, 9]}}, 'no_outline'),
    ({'segmentation': {'size': [10, 20], 'counts': [5, -9]}}, 'no_outline'),
    ({'segmentation': {'size': [10, 20], 'counts': '0h0'}}, 'no_outline'),
    ({'segmentation': {'size': [20, 10], 'counts': [7, 193]}}, 'no_outline'),
    ({'segmentation': {'size': [10, 20], 'counts': [11, 189]}}, None),
  ],
)
def test_objects_are_left_out_and_counted(tmp_path, changes, repair):
  both(tmp_path, {'a': [{**CAT, **changes}], 'good': [CAT]})
  found = coco.read_masks(tmp_path)
  assert list(found.repairs) == [repair] * bool(repair)
  assert found.train[0].mask().any() == (repair is None)


def test_labels_are_known_without_painting_and_crowds_may_hide_all(tmp_path):
  size = {
    'bbox': [0, 0, 20, 10],
    'segmentation': [[0, 0, 20, 0, 20, 10, 0, 10]],
  }
  crowd = {**CAT, 'iscrowd': 1}
  pictures = {
    'a': [CAT, crowd],
    'b': [],
    'c': [crowd],
    'd': [{**crowd, **size}],
  }
  both(tmp_path, pictures)
  found = coco.read_masks(tmp_path, crowd='ignored')
  assert [list(x.label) for x in found.train] == [[0, 2], [0], [0], []]
  for record in found.train:
    assert record.label == records.labels_in(record.mask(), 3)
  both(tmp_path, {'d': [{**crowd, **size}]})
  with pytest.raises(
    fs.UserError,
    match=r'train2017\.json has no picture .*crowds whose pixels are ',
  ):
    coco.read_masks(tmp_path, crowd='ignored')
  assert list(coco.read_masks(tmp_path).train[0].label) == [0]


def test_pictures_are_left_out_and_counted(tmp_path):
  both(tmp_path, {name: [CAT] for name in ('good', 'broken', 'gone')})
  (tmp_path / 'train2017' / 'broken.png').write_bytes(b'no picture')
  (tmp_path / 'train2017' / 'gone.png').unlink()
  found = coco.read_masks(tmp_path)
  assert [record.picture.stem for record in found.train] == ['good']
  broken = str(tmp_path / 'train2017' / 'broken.png')
  assert found.repairs == {'gone': ['gone.png'], 'unreadable': [broken]}
  said = {'id': 5, 'file_name': 'a.png', 'width': 40, 'height': 20}
  silent = {'id': 6, 'file_name': 'a.png'}
  mine = [{**CAT, 'image_id': number} for number in (5, 6)]
  images = {'images': [said, silent], 'annotations': mine}
  path = write(tmp_path, 'train2017', {'a': []})
  path.write_text(json.dumps(json.loads(path.read_text()) | images))
  found = coco.read_masks(tmp_path)
  assert [len(record.mask.shapes) for record in found.train] == [1]
  (where,) = found.repairs['mask_size']
  assert where.endswith('a.png, 40 x 20 and not 20 x 10')


def test_test_categories_are_found_by_name(tmp_path):
  write(tmp_path, 'train', {'a': [CAT]})
  other = [{'id': 7, 'name': 'Cat '}, {'id': 1, 'name': 'horse'}]
  write(tmp_path, 'test', {'b': [DOG]}, categories=other)
  found = coco.read_masks(tmp_path)
  assert found.test[0].mask().max() == 2  # 'cat' is the second to train on


def test_what_is_refused(tmp_path, monkeypatch):
  with pytest.raises(fs.UserError, match='no annotations to train on'):
    coco.read_masks(tmp_path)
  with pytest.raises(fs.UserError, match="crowd is 'some'; choose"):
    coco.read_masks(tmp_path, crowd='some')
  both(tmp_path, {'a': [CAT]})
  (tmp_path / 'val2017' / 'b.png').unlink()
  with pytest.raises(fs.UserError, match=r'val2017\.json has no picture.*b\.p'):
    coco.read_masks(tmp_path)
  many = [{'id': i, 'name': f'{i}'} for i in range(255)]
  write(tmp_path, 'train2017', {'a': []}, categories=many)
  with pytest.raises(fs.UserError, match='256 classes'):
    coco.read_masks(tmp_path)
  monkeypatch.setitem(sys.modules, 'pycocotools', None)
  with pytest.raises(fs.UserError, match=r"'fastsnn_jax\[detection\]'"):
    coco.read_masks(tmp_path)


@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 60))
def test_run_lengths_are_decoded(seed, height, width):
  random = np.random.default_rng(seed)
  labels = random.random((height, width)) < random.random()
  if seed % 2:
    labels = labels.repeat(9, 0).repeat(9, 1)
  code = run_lengths(labels, text=True)
  counts = coco.decode_runs(code['counts'])
  assert counts.tolist() == run_lengths(labels, text=False)['counts']


def test_a_run_that_goes_on_for_ever_is_no_run():
  with pytest.raises(ValueError, match='60 bits'):
    coco.decode_runs('o' * 10**6 + '0')
  assert coco.decode_runs('').tolist() == []
  assert coco.parse({'size': [1, 1], 'counts': '你'}) is None
