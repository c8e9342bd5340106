"""Prepared TFDS detection sets, written and read without TensorFlow."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.jobs import one_line
from support.pictures import encode, smooth, write_tfds

from fastsnn_jax import data
from fastsnn_jax.data import records, squares
from fastsnn_jax.data.readers import tfds
from fastsnn_jax.errors import UserError

SIZE = (40, 20)
# (corners in pixels counted from 0, label, mark)
CAT, DOG = ((0, 0, 20, 10), 0, False), ((4, 2, 40, 20), 1, True)


def features(mark='is_difficult', names=('cat', 'dog'), **changes):
  import tensorflow_datasets as tfds

  each = {
    'bbox': tfds.features.BBoxFeature(),
    'label': tfds.features.ClassLabel(names=list(names)),
    'pose': tfds.features.ClassLabel(num_classes=3),
    mark: np.bool_,
  }
  if mark == 'is_crowd':
    each['area'] = np.int64
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(),
      'image/filename': tfds.features.Text(),
      'mask': tfds.features.Image(),
      'objects': tfds.features.Sequence(each),
      **changes,
    }
  )


def row(objects, mark='is_difficult', shift=0, picture=None):
  scale = np.array([*SIZE, *SIZE])
  image = smooth(*SIZE[::-1], seed=len(objects))
  boxes = [(np.array(box) + shift)[[1, 0, 3, 2]] for box, *_ in objects]
  values = {
    'image': [picture or encode(image, 'JPEG')],
    'image/filename': [b'a.jpg'],
    'mask': [b'what is not asked for is not decoded'],
    'objects/bbox': [box / scale[[1, 0, 3, 2]] for box in boxes],
    'objects/label': [label for _, label, _ in objects],
    'objects/pose': [0 for _ in objects],
    f'objects/{mark}': [int(hard) for *_, hard in objects],
  }
  if mark == 'is_crowd':
    values['objects/area'] = [77 for _ in objects]
  return values


def shares(*objects):
  return np.array([box for box, *_ in objects]) / [*SIZE, *SIZE]


def test_a_set_of_one_s_own(tmp_path):
  rows = {
    'train': [row([CAT, DOG]), row([]), row([DOG])],
    'validation': [row([CAT])],
    'test': [row([]), row([DOG, CAT])],
  }
  folder = write_tfds(tmp_path, rows, name='pets', features=features())
  for path in (tmp_path, folder.parent, folder):
    found = tfds.read_boxes('pets', path)
    assert found.classes == ('cat', 'dog')
    labels = [record.label.tolist() for record in found.train]
    assert labels == [[0, 1], [], [1]]
    assert [len(record.label) for record in found.test] == [0, 2]
    record = found.train[0]
    assert record.size == SIZE
    assert record.difficult.tolist() == [False, True]
    assert record.crowd.tolist() == [False, False]
    np.testing.assert_allclose(record.boxes, shares(CAT, DOG), atol=1e-6)
    assert records.lines(found.repairs) == [
      f'2 pictures without objects, kept as such (first: {folder} train[1])'
    ]


def test_pictures_are_read_when_asked_for(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds, '_CHUNK', 2)
  monkeypatch.setattr(records, 'cores', lambda: 4)
  rows = {
    'train': [row([CAT] * count) for count in (1, 2, 3, 4, 5)],
    'test': [row([CAT])],
  }
  folder = write_tfds(tmp_path, rows, name='pets', features=features())
  rows_read = tfds.read_boxes('pets', tmp_path).train
  # A worker process opens the files itself.
  for train in (rows_read, pickle.loads(pickle.dumps(rows_read))):
    files = [records.encoded(record.picture) for record in train]
    assert files == [values['image'][0] for values in rows['train']]
    assert str(train[3].picture) == f'{folder} train[3]'
  images = squares.box_arrays(rows_read, 20)['image']
  from_bytes = [
    record._replace(picture=lambda file=values['image'][0]: file)
    for record, values in zip(rows_read, rows['train'], strict=True)
  ]
  np.testing.assert_array_equal(
    images, squares.box_arrays(from_bytes, 20)['image']
  )


def test_voc_of_both_years_counts_pixels_from_one(tmp_path):
  # Its smallest coordinate is 1, and a box of the whole ends at the last pixel.
  rows = {
    '2007': {
      'train': [row([CAT], shift=1)],
      'validation': [row([DOG, CAT], shift=1)],
      'test': [row([DOG], shift=1)],
    },
    '2012': {
      'train': [row([CAT, CAT], shift=1)],
      'validation': [row([CAT, CAT, DOG], shift=1)],
      'test': [row([])],
    },
  }
  for year, parts in rows.items():
    write_tfds(tmp_path, parts, name=f'voc/{year}', features=features())
  for path in (tmp_path, tmp_path / 'voc'):
    found = tfds.read_boxes('voc', path)
    assert [len(record.label) for record in found.train] == [1, 2, 2, 3]
    assert [len(record.label) for record in found.test] == [1]
    np.testing.assert_allclose(found.test[0].boxes, shares(DOG), atol=1e-6)
    assert not found.repairs
  # 2012 alone has no annotated test.
  for name, path in (
    ('voc/2012', tmp_path),
    ('voc', tmp_path / 'voc' / '2012'),
  ):
    found = tfds.read_boxes(name, path)
    assert [len(record.label) for record in found.train] == [2]
    assert [len(record.label) for record in found.test] == [3]


def test_coco_of_2017(tmp_path):
  rows = {
    'train': [row([CAT, DOG], 'is_crowd')],
    'validation': [row([DOG], 'is_crowd')],
    'test': [row([], 'is_crowd')],
  }
  crowds = features('is_crowd')
  write_tfds(tmp_path, rows, name='coco/2017', features=crowds)
  rows['train'] *= 3
  write_tfds(tmp_path, rows, name='coco/2014', version='9.0.0', features=crowds)
  found = tfds.read_boxes('coco', tmp_path)
  (record,) = found.train
  short = shares(CAT, DOG) - [0, 0, 1 / SIZE[0], 1 / SIZE[1]]
  np.testing.assert_allclose(record.boxes, short, atol=1e-6)
  assert record.crowd.tolist() == [False, True]
  assert record.area.tolist() == [77, 77]
  np.testing.assert_allclose(found.test[0].boxes, shares(DOG), atol=1e-6)
  assert len(tfds.read_boxes('coco/2014', tmp_path).train) == 3


def test_what_cannot_be_used_is_counted(tmp_path):
  flat = ((4, 2, 4, 20), 0, False)
  lost = ((0, 0, 20, 10), -1, False)
  rows = {
    'train': [row([CAT, flat, lost]), row([DOG], picture=b'no picture')],
    'test': [row([CAT])],
  }
  write_tfds(tmp_path, rows, name='pets', features=features())
  found = tfds.read_boxes('pets', tmp_path)
  assert [record.label.tolist() for record in found.train] == [[0]]
  where = tmp_path / 'pets' / '3.0.2'
  assert found.repairs == {
    'unreadable': [f'{where} train[1]'],
    'unknown': [f'{where} train[0], object 3'],
    'empty': [f'{where} train[0], object 2'],
  }


def _fails(*arguments):
  with pytest.raises(UserError) as error:
    tfds.read_boxes(*arguments)
  return one_line(error)


@pytest.mark.parametrize('name', ['pets', 'voc', 'coco'])
def test_sets_that_are_not_prepared(tmp_path, name):
  message = _fails(name, tmp_path)
  full = {'voc': 'voc/2007', 'coco': 'coco/2017'}.get(name, name)
  assert f"tfds.builder('{full}'" in message


def test_other_layouts_are_shown(tmp_path):
  import tensorflow_datasets as tfds

  box = tfds.features.BBoxFeature
  label = tfds.features.ClassLabel(names=['cat'])
  other = tfds.features.bounding_boxes.bb_utils.BBoxFormat.XYWH
  for i, objects in enumerate(
    (
      {'bbox': box(), 'label': tfds.features.Text()},
      {'bbox': box(bbox_format=other), 'label': label},
      {'box': box(), 'label': label},
      tfds.features.Text(),
    )
  ):
    if isinstance(objects, dict):
      objects = tfds.features.Sequence(objects)
    name = f'set{i}'
    wrong = tfds.features.FeaturesDict(
      {'image': tfds.features.Image(), 'objects': objects}
    )
    write_tfds(tmp_path, {'train': []}, name=name, features=wrong)
    message = _fails(name, tmp_path)
    assert ' '.join(repr(wrong).split()) in message
    assert "{'bbox': (ymin, xmin, ymax, xmax) in shares" in message


def test_other_splits_and_damaged_files(tmp_path):
  def written(name, parts, **options):
    return write_tfds(
      tmp_path, parts, name=name, features=features(), **options
    )

  one, none = [row([CAT])], [row([])]
  written('alone', {'train': one, 'test': none})
  assert 'annotated examples in train, and in test or validation' in _fails(
    'alone', tmp_path
  )
  written('dev', {'dev': one, 'test': one})
  assert "['dev', 'test']" in _fails('dev', tmp_path)
  written('bare', {'train': none, 'test': one})
  assert 'bare/3.0.2 train has no picture that can be read and shows' in _fails(
    'bare', tmp_path
  )
  written('form', {'train': one, 'test': one}, file_format='tfrecord')
  assert 'convert_format' in _fails('form', tmp_path)
  folder = written('cut', {'train': one, 'test': one})
  shard = folder / 'cut-train.array_record-00001-of-00002'
  shard.write_bytes(shard.read_bytes()[:50])
  assert 'cannot be read' in _fails('cut', tmp_path)


# --------------------------------------------------------------------- labels


def pictures(count, labels=None):
  """Rows of pictures of varying sizes; see `write_tfds`."""
  return [
    (
      encode(smooth(20 + 3 * i, 45 - 2 * i, seed=i), 'JPEG'),
      i % 3 if labels is None else labels,
    )
    for i in range(count)
  ]


def test_pictures_stay_encoded_for_threads_and_processes(tmp_path):
  rows = {'train': pictures(9), 'test': pictures(4)}
  folder = write_tfds(tmp_path, rows, shape=(None, None, 3))
  for path in (tmp_path, folder.parent, folder):
    *parts, classes = tfds.records('cifar10', path)
    assert classes == ('cat', 'dog', 'ship')
    for part, name in zip(parts, ('train', 'test'), strict=True):
      for copy in (part, pickle.loads(pickle.dumps(part))):
        with ThreadPoolExecutor(8) as pool:
          got = list(pool.map(copy.__getitem__, list(range(len(copy))) * 9))
        got = [(encoded, labels['label']) for encoded, labels in got]
        assert got == rows[name] * 9
      assert part.channels == 3
      assert part.name(2) == f'{folder} {name}[2]'
      assert part[0][1]['label'].dtype == np.int32


@pytest.mark.parametrize('unlabelled', [None, -1])
def test_validation_where_test_has_no_labels(tmp_path, unlabelled):
  rows = {'train': pictures(5), 'validation': pictures(3)}
  if unlabelled:
    rows['test'] = pictures(2, unlabelled)
  write_tfds(tmp_path, rows, name='imagenet2012', shape=(None, None, 3))
  assert len(tfds.records('imagenet2012', tmp_path)[1]) == 3
  rows = {'train': pictures(2, -1), 'test': pictures(2)}
  write_tfds(tmp_path, rows, name='bare', shape=(None, None, 3))
  with pytest.raises(UserError, match='annotated examples in train'):
    tfds.records('bare', tmp_path)


# --------------------------------------------- files that are not to be trusted


@pytest.mark.parametrize(
  'change',
  [
    {'pythonClassName': 'harmless_marker.Image'},
    {'python_class_name': 'harmless_marker.Image'},
    {'type': 'harmless_marker.Image', 'content': {}},
    {'pythonClassName': 'tensorflow_datasets.scripts.cli.main.Image'},
    {'pythonClassName': 'tensorflow_datasets.core.features.x.Foo'},
    {'pythonClassName': 'tensorflow_datasets_of_mine.Image'},
    {'pythonClassName': 'os'},
  ],
)
@pytest.mark.parametrize('inner', [False, True])
def test_nothing_is_imported_that_a_file_names(
  tmp_path, monkeypatch, change, inner
):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'harmless_marker.py').write_text("open('EXECUTED', 'w').close()")
  monkeypatch.chdir(tmp_path)
  folder = write_tfds(tmp_path, {'train': pictures(2), 'test': pictures(2)})
  path = folder / 'features.json'
  content = json.loads(path.read_text())
  node = content['featuresDict']['features']['image'] if inner else content
  node.update(change)
  path.write_text(json.dumps(content))
  for read in (tfds.records, tfds.read_boxes):
    with pytest.raises(UserError, match=r'features\.json names the class'):
      read('cifar10', tmp_path)
  assert not (tmp_path / 'EXECUTED').exists()


@pytest.mark.parametrize(
  ('count', 'shard'), [(10**12, 0), (10**12, 1), (10**6, 0), (3, 1)]
)
def test_examples_that_are_claimed_and_not_there(tmp_path, count, shard):
  folder = write_tfds(tmp_path, {'train': pictures(4), 'test': pictures(2)})
  path = folder / 'dataset_info.json'
  content = json.loads(path.read_text())
  content['splits'][0]['shardLengths'][shard] = str(count)
  path.write_text(json.dumps(content))
  for read in (tfds.records, tfds.load):
    with pytest.raises(UserError, match='cannot be read') as error:
      read('cifar10', tmp_path)
    one_line(error)


@pytest.mark.parametrize('up', ['../', '../../other/', '{root}/other/'])
def test_shards_are_read_below_the_set_only(tmp_path, up):
  up = up.format(root=tmp_path)
  folder = write_tfds(tmp_path, {'train': pictures(4), 'test': pictures(2)})
  path = folder / 'dataset_info.json'
  content = path.read_text()
  path.write_text(content.replace('"{DATASET}', f'"{up}{{DATASET}}'))
  other = folder / up  # where the shards would be found
  other.mkdir(exist_ok=True)
  for shard in folder.glob('*.array_record*'):
    shutil.copy(shard, other)
  with pytest.raises(UserError, match=r'outside'):
    tfds.records('cifar10', tmp_path)


def test_classes_that_are_claimed(tmp_path):
  folder = write_tfds(tmp_path, {'train': pictures(4), 'test': pictures(2)})
  path = folder / 'features.json'
  content = path.read_text()
  assert '"numClasses": "3"' in content
  path.write_text(
    content.replace('"numClasses": "3"', f'"numClasses": {10**12}')
  )
  with pytest.raises(UserError, match=r'numClasses 1000000000000; at most'):
    tfds.records('cifar10', tmp_path)


@pytest.mark.parametrize('label', [3, 10**9, -7])
def test_labels_beyond_the_classes(tmp_path, label):
  one = pictures(1)[0]
  rows = {'train': [one, (one[0], label)], 'test': [one]}
  write_tfds(tmp_path, rows, shape=(None, None, 3))
  train, *_ = tfds.records('cifar10', tmp_path)
  with pytest.raises(
    UserError, match=rf'train\[1\] has the label {label}, .*3'
  ):
    train[1]
  with pytest.raises(UserError, match=r'must be 0 to 2'):
    tfds.load('cifar10', tmp_path)


def test_labels_of_boxes_beyond_the_classes(tmp_path):
  odd = [(CAT[0], label, False) for label in (2, 99, -5)]
  rows = {'train': [row([CAT, *odd])], 'test': [row([CAT])]}
  write_tfds(tmp_path, rows, name='pets', features=features())
  found = tfds.read_boxes('pets', tmp_path)
  assert found.train[0].label.tolist() == [0]
  assert len(found.repairs['unknown']) == 3


@pytest.mark.parametrize(
  'name', ['', '..', '../cifar10', '{root}/cifar10', '/', '[x]', 'a\0b']
)
def test_names_that_are_no_sets(tmp_path, name):
  write_tfds(tmp_path, {'train': pictures(1), 'test': pictures(1)})
  assert tfds.find('cifar10', tmp_path)
  (tmp_path / 'beside').mkdir()
  assert not tfds.find(name.format(root=tmp_path), tmp_path / 'beside')


def test_a_damaged_picture_is_left_out_and_counted(tmp_path):
  image = encode(smooth(6, 5), 'JPEG')
  rows = [(image, 0), (image[: len(image) // 2], 1), (image, 2)]
  folder = write_tfds(tmp_path, {'train': rows, 'test': rows[:1]})
  found = data.load('cifar10', str(tmp_path))
  assert found.train['label'].tolist() == [0, 2]
  (note,) = found.notes
  assert note.startswith('1 pictures left out that, or')
  assert note.endswith(f'{folder} train[1])')
  write_tfds(tmp_path / 'x', {'train': rows[1:2], 'test': rows})
  with pytest.raises(UserError, match='cannot be read'):
    data.load('cifar10', str(tmp_path / 'x'))
