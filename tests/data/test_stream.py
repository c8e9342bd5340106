"""Data sets on disk: order, resuming, processes, workers, what is skipped."""

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import grain
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jobs import one_line
from support.pictures import encode, smooth, write_tfds

import fastsnn_jax as fs
from fastsnn_jax import data, tasks
from fastsnn_jax.data import stream as streaming
from fastsnn_jax.data.named import records
from fastsnn_jax.data.stream import Draws, Stream, permutation
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.config import Data
from fastsnn_jax.tasks.classification.data import Decode, open_data


class Pictures:
  """Records in memory; the label is the number of the example."""

  def __init__(self, encoded):
    self._encoded = encoded

  def __len__(self):
    return len(self._encoded)

  def __getitem__(self, index):
    return self._encoded[index], {'label': np.int32(index)}

  def name(self, index):
    return f'picture {index}'


_SMOOTH = smooth(40, 40)


def _source(count, damaged=(), shape=(12, 10)):
  """Pictures that differ; some of them damaged."""
  encoded = []
  for i in range(count):
    y, x = i % 20, i % 7
    picture = _SMOOTH[y : y + shape[0], x : x + shape[1]]
    encoded.append(b'damaged' if i in damaged else encode(picture))
  return Pictures(encoded)


def _stream(source, size=8, *, cut=False, channels=3, workers=0):
  return Stream(
    source,
    Decode(size, channels, cut=False),
    Decode(size, channels, cut=cut),
    workers=workers,
  )


def _training(stream, start=0, *, batch=6, seed=1, process=0, count=1):
  """Batches of training, as a process of several would see them."""
  return _batches(
    stream, batch, process, count, shuffle=data.Shuffle(seed), start=start
  )


def _evaluation(stream, batch=6, process=0, count=1):
  return list(_batches(stream, batch, process, count))


def _batches(stream, batch, process, count, **options):
  with _process(process, count):
    return stream.batches(batch, **options)


def _process(index, count):
  """What JAX says in one of several processes."""
  return mock.patch.multiple(
    jax, process_index=lambda: index, process_count=lambda: count
  )


def _take(iterator, count):
  batches = list(itertools.islice(iterator, count))
  iterator.close()
  return batches


def _same(one, two):
  assert len(one) == len(two)
  for a, b in zip(one, two, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


# -------------------------------------------------------------------- order


@given(st.integers(0, 2**70), st.integers(0, 1000), st.integers(1, 300))
def test_an_epoch_is_a_permutation(seed, epoch, size):
  order = permutation(seed, epoch, size)
  assert sorted(order.tolist()) == list(range(size))
  if size > 30:
    assert order.tolist() != permutation(seed, epoch + 1, size).tolist()
    assert order.tolist() != permutation(seed + 1, epoch, size).tolist()


def test_the_order_is_fixed_for_good():
  # Written down: a new NumPy must not change what a resumed run sees.
  assert permutation(0, 0, 8).tolist() == [7, 2, 0, 4, 3, 5, 6, 1]
  assert permutation(0, 1, 8).tolist() == [3, 4, 0, 6, 5, 2, 7, 1]
  assert Draws(0, 0)()[:2] == [0.9453165290142962, 0.41175942424912015]


@settings(max_examples=12)
@given(st.integers(1, 25), st.integers(1, 3), st.sampled_from([1, 2, 3]))
def test_each_example_once_per_epoch(size, share, processes):
  stream, batch = _stream(_source(size)), share * processes
  steps = 2 * stream.steps(batch)
  assert stream.steps(batch) == -(-size // batch)
  epochs = [
    _take(_training(stream, batch=batch, process=i, count=processes), steps)
    for i in range(processes)
  ]
  whole = _take(_training(stream, batch=batch), steps)
  for step, parts in enumerate(zip(*epochs, strict=True)):
    for key, value in whole[step].items():
      joined = np.concatenate([part[key] for part in parts])
      np.testing.assert_array_equal(joined, value)
  for epoch in (whole[: steps // 2], whole[steps // 2 :]):
    labels = np.concatenate([x['label'] for x in epoch])
    mask = np.concatenate([x['mask'] for x in epoch])
    assert sorted(labels[mask > 0].tolist()) == list(range(size))
    # Filled up at the end, with examples of the same epoch.
    assert mask.tolist() == [1.0] * size + [0.0] * (len(mask) - size)
    np.testing.assert_array_equal(labels, np.resize(labels[:size], len(labels)))


@pytest.mark.parametrize('cut', [False, True])
def test_starting_in_mid_epoch_is_going_on(cut):
  stream = _stream(_source(20), cut=cut)
  whole = _take(_training(stream), 9)
  for start in (1, 3, 4, 6):
    again = _take(_training(stream, start), 9 - start)
    _same(again, whole[start:])


def test_far_ahead_positions_do_not_overflow():
  stream = _stream(_source(8), cut=True)
  one = _take(_training(stream, np.int32(2**31 - 1)), 2)
  two = _take(_training(stream, 2**31 - 1), 2)
  _same(one, two)


def test_crops_follow_seed_and_step_not_processes():
  stream = _stream(_source(8), cut=True)
  one, two = (
    _take(_training(stream, batch=4, seed=seed), 4) for seed in (1, 2)
  )
  by_label = [
    {int(y): x for b in epoch for x, y in zip(b['image'], b['label'], strict=1)}
    for epoch in (one[:2], one[2:], two[:2])
  ]
  for a, b in itertools.combinations(by_label, 2):
    assert any((a[label] != b[label]).any() for label in a)
  parts = [
    _take(_training(stream, batch=4, process=i, count=4), 4) for i in range(4)
  ]
  for step, batch in enumerate(one):
    images = np.concatenate([part[step]['image'] for part in parts])
    np.testing.assert_array_equal(images, batch['image'])


def test_what_a_batch_is():
  stream = _stream(_source(20))
  (batch,) = _take(_training(stream, process=1, count=2), 1)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    'image': ((3, 8, 8, 3), 'uint8'),
    'label': ((3,), 'int32'),
    'mask': ((3,), 'float32'),
  }
  assert stream.shape == (8, 8, 3)
  whole = {k: ((6, *v.shape[1:]), v.dtype) for k, v in batch.items()}
  assert {k: (v.shape, v.dtype) for k, v in stream.shapes(6).items()} == whole


def test_training_without_crops_sees_what_evaluation_sees():
  stream = _stream(_source(8))
  shown = {}
  for batch in _evaluation(_stream(_source(8), cut=True), 4):
    shown |= dict(zip(batch['label'].tolist(), batch['image'], strict=True))
  for batch in _take(_training(stream, batch=4), 2):
    for image, label in zip(batch['image'], batch['label'], strict=True):
      np.testing.assert_array_equal(image, shown[int(label)])


def test_evaluation_is_one_pass_in_order():
  stream, parts = _stream(_source(10), cut=True), []
  for process in range(2):
    parts.append(_evaluation(stream, 4, process, 2))
    _same(parts[-1], _evaluation(stream, 4, process, 2))
  labels = [x['label'].tolist() for both in zip(*parts, strict=1) for x in both]
  assert labels == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [0, 1]]
  assert [x['mask'].tolist() for x in parts[0]] == [[1, 1]] * 3
  assert [x['mask'].tolist() for x in parts[1]] == [[1, 1], [1, 1], [0, 0]]


# ------------------------------------------------------------------ skipped


def test_damaged_pictures_keep_their_rows_and_are_told_once():
  stream = _stream(_source(10, damaged=(2, 7)))
  batches = _evaluation(stream, 4)
  mask = np.concatenate([x['mask'] for x in batches])
  assert mask.tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0]
  assert (batches[0]['image'][2] == 127).all()
  labels = np.concatenate([x['label'] for x in batches])
  assert labels[mask > 0].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
  assert stream.complaints() == [
    '2 of 10 pictures cannot be decoded and count nothing '
    '(picture 2, picture 7)'
  ]
  _take(_training(stream, batch=4), 6)
  assert stream.complaints() == []  # each once, however often it was met
  assert stream.in_memory()['label'].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]


def test_pictures_that_mostly_fail_are_an_error():
  stream = _stream(_source(12, damaged=range(9)))
  with pytest.raises(UserError, match=r'8 of 12|9 of 12') as error:
    _evaluation(stream, 4)
  assert 'picture 0' in str(error.value)


# ----------------------------------------------------------- sizes as found


def test_pictures_as_they_are():
  stream = _stream(_source(5), None)
  (batch,) = _evaluation(stream, 5)
  assert stream.shape == (12, 10, 3)
  np.testing.assert_array_equal(batch['image'][0], _SMOOTH[:12, :10])


def test_grey_sets_stay_grey():
  source = Pictures([encode(_SMOOTH[:9, :9, 0]) for _ in range(3)])
  for channels, expected in ((None, 1), (1, 1), (3, 3)):
    (batch,) = _evaluation(_stream(source, None, channels=channels), 3)
    assert batch['image'].shape == (3, 9, 9, expected)
    np.testing.assert_array_equal(
      batch['image'][0, :, :, 0], _SMOOTH[:9, :9, 0]
    )


def test_pictures_as_they_are_must_have_one_shape():
  good = encode(_SMOOTH[:9, :9])
  for other in (_SMOOTH[:9, :8], np.zeros((8, 9), np.uint8)):
    stream = _stream(Pictures([good, good, encode(other)]), None)
    with pytest.raises(UserError, match='picture 2') as error:
      _evaluation(stream, 3)
    assert '(9, 9, 3)' in str(error.value)
    assert 'give a size' in str(error.value)
  with pytest.raises(UserError, match='are no pictures'):
    _ = _stream(_source(3, damaged=range(3)), None).shape


# -------------------------------------------------------------------- parts


def test_splitting_gives_the_rows_of_a_split_in_memory():
  stream = _stream(_source(20))
  arrays = {'image': np.zeros((20, 1, 1, 1)), 'label': np.arange(20)}
  for got, wanted in zip(
    stream.split(0.3, 5), data.Arrays(arrays).split(0.3, 5), strict=True
  ):
    labels = np.concatenate([x['label'] for x in _evaluation(got, 1)])
    assert labels.tolist() == wanted['label'].tolist()
  part = stream.take([4, 2, 9]).take([1, 0])
  assert [int(x['label'][0]) for x in _evaluation(part, 1)] == [2, 4]
  assert part.name(1) == 'picture 4'
  assert len(stream.some(7, 0)) == 7
  with pytest.raises(UserError, match='no examples'):
    stream.take([])


# ------------------------------------------------------------ data of one's own


def _own(count=6, side=4, dtype=np.uint8):
  random = np.random.default_rng(count)
  return {
    'image': random.integers(0, 256, (count, side, side, 1)).astype(dtype),
    'label': np.arange(count) % 3,
  }


def _examples(arrays):
  return [
    {name: x[i] for name, x in arrays.items()}
    for i in range(len(arrays['image']))
  ]


def test_examples_in_any_form_give_the_batches_of_their_arrays():
  arrays = _own()
  examples = _examples(arrays)
  wanted = list(data.as_split(arrays).batches(4))
  source = grain.MapDataset.source(examples)
  for form in (
    examples,
    tuple(examples),
    (example for example in examples),
    source,
    source.to_iter_dataset(),
  ):
    split = data.as_split(form)
    _same(list(split.batches(4)), wanted)
    assert isinstance(split, data.Arrays) != (form is source)
    _take(split.batches(4, shuffle=data.Shuffle(0)), 3)


def test_examples_in_any_form_make_a_data_set():
  arrays = _own(40)
  whole = data.as_dataset({'train': arrays, 'test': arrays})
  assert whole.classes == ('0', '1', '2')
  lazy = grain.MapDataset.source(_examples(arrays))
  with pytest.raises(
    UserError, match=r'the classes are not known.*give their names'
  ):
    data.as_dataset({'train': lazy, 'test': lazy})
  parts = {'train': lazy, 'test': lazy, 'classes': 'abc'}
  streamed = data.as_dataset(parts, 'mine')
  assert (streamed.name, streamed.classes) == ('mine', ('a', 'b', 'c'))
  # Of all images: fewer than are sampled.
  assert streamed.mean == pytest.approx(whole.mean)
  assert streamed.std == pytest.approx(whole.std)


def test_the_statistics_of_a_stream_are_those_of_every_process():
  lazy = data.as_split(grain.MapDataset.source(_examples(_own(50))))
  parts = {'train': lazy, 'test': lazy, 'classes': 'abc'}
  wanted = data.as_dataset(parts)
  for process in range(2):
    with _process(process, 2):
      found = data.as_dataset(parts)
    assert (found.mean, found.std) == (wanted.mean, wanted.std)


def test_masks_boxes_and_floats_of_ones_own():
  image = _own()['image']
  masks = np.full((6, 4, 4), 255, np.uint8)
  masks[0, 0, 0] = 2
  boxes = {'boxes': np.zeros((6, 2, 4)), 'label': np.full((6, 2), -1)}
  boxes['label'][1] = 4
  for labels, classes in (({'label': masks}, 3), (boxes, 5)):
    part = {'image': image, **labels}
    found = data.as_dataset({'train': part, 'test': part})
    assert len(found.classes) == classes
    with pytest.raises(UserError, match=f'there are {classes - 1} classes'):
      data.as_dataset(
        {'train': part, 'test': part, 'classes': 'abcdef'[: classes - 1]}
      )
  part = {'image': image, 'label': np.linspace(-1, 1, 6)}
  names = ['height']
  found = data.as_dataset({'train': part, 'test': part, 'classes': names})
  assert found.classes == ('height',)


def _refused(part, message, **more):
  with pytest.raises(UserError, match=message) as caught:
    data.as_dataset({'train': part, 'test': part, **more})
  one_line(caught)


@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('known', [{}, {'mean': (0.5,), 'std': (0.5,)}])
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x / 255, 'to 1.0; .* multiply .* by 255'),
    (lambda x: (x / 255).astype(ml_dtypes.bfloat16), 'multiply .* by 255'),
    (lambda x: x / 127.5 - 1, 'from -1.0 to .* not normalised'),
    (lambda x: np.where(x == x.max(), np.nan, x), 'nan.* not normalised'),
    (lambda x: np.where(x == x.max(), np.inf, x), 'inf.* not normalised'),
    (lambda x: x.astype(np.uint16) * 257, 'to 65535; .* by 257'),
    (lambda x: x > 7, 'dtype bool'),
    (lambda x: x.astype(str), 'dtype <U'),
  ],
)
def test_what_is_no_pixel_is_refused(change, message, known, streamed):
  image = np.arange(256, dtype=np.uint8).reshape(16, 4, 4, 1)
  good = {'image': image, 'label': np.arange(16) % 3}
  bad = {**good, 'image': change(image)}
  if streamed:
    bad = grain.MapDataset.source(_examples(bad))
  with pytest.raises(UserError, match=f'the test split has .*{message}'):
    data.as_dataset({'train': good, 'test': bad, 'classes': 'abc', **known})


def test_what_is_no_data_set_is_refused():
  arrays = _own()
  image, label = arrays['image'], arrays['label']
  _refused({'label': label}, "a split needs 'image'")
  _refused({'image': image, 'label': label[:3]}, 'the same number of rows')
  _refused({'image': image[..., 0], 'label': label}, r'images\[\.\.\., None\]')
  _refused({'image': image[:0], 'label': label[:0]}, 'holds no images')
  _refused({'image': image, 'label': label - 1}, 'labels run from -1 to 1')
  _refused(arrays, "'val' is no part", val=arrays)
  _refused(arrays, 'give both or neither', mean=(0.5,))
  _refused(arrays, 'one number for each channel', mean=(0.5, 1), std=(1, 1))
  _refused([image[0]], 'of type ndarray')
  _refused([], 'at least one')
  _refused([{'image': image[0]}, _examples(arrays)[0]], 'the same labels')
  _refused(
    [{'image': image[0]}, {'image': image[0, :2]}],
    "'image' has rows of several",
  )
  _refused(7, 'of type int')
  with pytest.raises(UserError, match="'train' and 'test'"):
    data.as_dataset(arrays)
  other = _own(side=5)
  with pytest.raises(UserError, match='must come from one set'):
    data.as_dataset({'train': arrays, 'test': other})
  with pytest.raises(UserError, match='of type tuple'):
    data.as_split(grain.MapDataset.source([(image[0], 1)])).shape  # noqa: B018
  floats = {'image': image.astype(np.float32), 'label': label}
  assert data.as_dataset({'train': floats, 'test': floats}).mean == (
    pytest.approx((image.mean() / 255,), abs=1e-3)
  )


@pytest.mark.parametrize(
  ('model', 'labels', 'message'),
  [
    ('small_resnet8', {'label': np.zeros((6, 1), int)}, "'label', .* 0 dim"),
    ('small_yolo', {'label': np.zeros(6, int)}, "'boxes', .* there are none"),
    ('small_deeplab', {'label': np.zeros(6, int)}, "'label', .* 2 dim"),
  ],
)
def test_labels_that_the_task_cannot_take_are_refused(model, labels, message):
  part = {'image': _own()['image'], **labels}
  found = data.as_dataset({'train': part, 'test': part, 'classes': 'ab'})
  model = fs.architectures.model(model)
  task = tasks.named(model.task)
  with pytest.raises(UserError, match=message):
    task.network_fields(Data(), model, found)


# --------------------------------------------------------------------- tfds


def _jpegs(count, labels=None):
  """Rows of pictures of varying sizes; see `write_tfds`."""
  return [
    (
      encode(smooth(20 + 3 * i, 45 - 2 * i, seed=i), 'JPEG'),
      i % 3 if labels is None else labels,
    )
    for i in range(count)
  ]


def test_tfds_gives_the_encoded_bytes(tmp_path):
  rows = {'train': _jpegs(9), 'test': _jpegs(4)}
  folder = write_tfds(tmp_path, rows, shape=(None, None, 3))
  for path in (tmp_path, folder.parent, folder):
    *parts, classes = records('cifar10', str(path))
    assert classes == ('cat', 'dog', 'ship')
    stream = open_data(Data('cifar10', str(path), stream=True, size=8))
    assert stream.mean == (0.491, 0.482, 0.447)
    for source, wanted in zip(parts, rows.values(), strict=True):
      found = [source[i] for i in range(len(source))]
      assert [(x, labels['label']) for x, labels in found] == wanted
      assert pickle.loads(pickle.dumps(source))[3] == found[3]
    assert parts[0].channels == 3
    assert stream.test.name(2) == f'{folder} test[2]'


def test_streaming_shows_what_is_read_into_memory(tmp_path):
  rows = [(encode(_SMOOTH[i : i + 6, :5], 'JPEG'), i % 3) for i in range(9)]
  write_tfds(tmp_path, {'train': rows, 'test': rows[:5]})
  whole = data.load('cifar10', str(tmp_path))
  stream = open_data(Data('cifar10', str(tmp_path), stream=True)).test
  _same(_evaluation(stream, 2), list(whole.test.batches(2)))


@pytest.mark.parametrize('unlabelled', [None, -1])
def test_tfds_validation_where_test_has_no_labels(tmp_path, unlabelled):
  rows = {'train': _jpegs(5), 'validation': _jpegs(3)}
  if unlabelled:
    rows['test'] = _jpegs(2, unlabelled)
  write_tfds(tmp_path, rows, name='imagenet2012', shape=(None, None, 3))
  stream = open_data(Data('imagenet2012', str(tmp_path), stream=True, size=8))
  assert len(stream.test) == 3
  assert stream.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
  ('name', 'channels', 'size', 'mean'),
  [
    ('cifar10', 3, None, (0.491, 0.482, 0.447)),
    ('cifar10', 1, None, ((0.491 + 0.482 + 0.447) / 3,)),
    ('mine', 1, None, ((0.485 + 0.456 + 0.406) / 3,)),
    ('mine', 1, 8, (0.485, 0.456, 0.406)),
    ('mnist', 1, None, (0.1307,)),
    ('mnist', 1, 8, (0.1307,) * 3),
  ],
)
@pytest.mark.parametrize('layout', ['tfds', 'folder'])
def test_mean_and_deviation_fit_the_images(
  tmp_path, layout, name, channels, size, mean
):
  picture = encode(_SMOOTH[:9, :9] if channels == 3 else _SMOOTH[:9, :9, 0])
  if layout == 'tfds':
    rows = [(picture, i % 3) for i in range(4)]
    parts = {'train': rows, 'test': rows}
    write_tfds(tmp_path, parts, name=name, shape=(9, 9, channels))
  else:
    for part in ('train/cat', 'train/dog', 'test/cat'):
      (tmp_path / part).mkdir(parents=True)
      (tmp_path / part / '1.png').write_bytes(picture)
  settings = Data(name, str(tmp_path), stream=True, size=size)
  found = open_data(settings)
  assert found.mean == pytest.approx(mean)
  shape = found.train.shape
  assert len(found.mean) == len(found.std) == shape[-1]
  network = fs.build('small_resnet8', 2, mean=found.mean, std=found.std)
  (batch,) = _take(_training(found.train, batch=1), 1)
  shown = tasks.for_network(network).present(batch['image'])
  assert shown.shape == (1, *shape)


def _fails(*arguments):
  with pytest.raises(UserError) as error:
    records(*arguments)
  return one_line(error)


def test_tfds_errors(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  rows = {'train': _jpegs(4), 'dev': _jpegs(4)}
  write_tfds(tmp_path, rows, name='splits')
  message = _fails('splits')
  assert "['dev', 'train']" in message
  assert 'test or validation' in message
  features = tfds.features.FeaturesDict(
    {'image': tfds.features.Image(), 'label': tfds.features.Text()}
  )
  write_tfds(tmp_path, rows, name='layout', features=features)
  message = _fails('layout')
  assert "'label': Text" in message
  assert "'image': uint8 [H, W, C]" in message
  rows = {'train': _jpegs(4), 'test': _jpegs(4)}
  write_tfds(tmp_path, rows, name='form', file_format='tfrecord')
  assert 'convert_format' in _fails('form')
  folder = write_tfds(tmp_path, rows, name='cut')
  shard = folder / 'cut-train.array_record-00000-of-00002'
  shard.write_bytes(shard.read_bytes()[:50])
  assert 'cannot be read' in _fails('cut')


# ------------------------------------------------------------------ workers


@pytest.mark.once
def test_worker_processes_give_what_threads_give(tmp_path):
  rows = {'train': _jpegs(9), 'test': _jpegs(4)}
  rows['train'][4] = (b'damaged', 1)
  write_tfds(tmp_path, rows, shape=(None, None, 3))
  source, *_ = records('cifar10', str(tmp_path))
  threads, workers = (
    _stream(source, cut=True, workers=count) for count in (0, 2)
  )
  batches = _training(workers, 1, batch=4)
  got = [next(batches)]
  assert {type(x) for x in got[0].values()} == {np.ndarray}  # none is shared
  # Signals to the whole job do not end the workers before the training.
  children = multiprocessing.active_children()
  assert len(children) == 2
  for child in children:
    os.kill(child.pid, signal.SIGTERM)
    os.kill(child.pid, signal.SIGINT)
  got += [next(batches) for _ in range(5)]
  for child in children:
    os.kill(child.pid, signal.SIGKILL)
  with pytest.raises(UserError, match=r'of 2 worker.*ended .*-9.*fewer worke'):
    _take(batches, 20)
  assert not multiprocessing.active_children()
  _same(got, _take(_training(threads, 1, batch=4), 6))
  _same(_evaluation(workers, 4), _evaluation(threads, 4))
  assert workers.complaints() == threads.complaints() != []
  # What fails in a worker is told as if it had failed here.
  with pytest.raises(UserError, match='give a size'):
    _evaluation(_stream(source, None, workers=1), 4)


def test_workers_need_shared_memory(monkeypatch):
  monkeypatch.setattr(streaming, '_SHARED', '/')
  monkeypatch.setattr(
    streaming.shutil,
    'disk_usage',
    lambda path: SimpleNamespace(free=2_000_000),
  )
  _training(_stream(_source(4), 200)).close()
  with pytest.raises(UserError, match=r'has 2 MB free.*need 4 MB.*--shm-size'):
    _training(_stream(_source(4), 200, workers=2))


def test_tensorflow_and_devices_are_left_alone(tmp_path):
  write_tfds(
    tmp_path, {'train': _jpegs(4), 'test': _jpegs(4)}, shape=(None, None, 3)
  )
  script = f"""
import sys
from jax._src import xla_bridge
from fastsnn_jax import data, evaluation
from fastsnn_jax.experiment.config import Data
from fastsnn_jax.tasks.classification.data import open_data
assert 'grain' not in sys.modules
settings = Data('cifar10', {str(tmp_path)!r}, stream=True, size=8)
next(open_data(settings).train.batches(2, shuffle=data.Shuffle(0)))
assert 'tensorflow' not in sys.modules
assert 'tensorflow' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', script], check=True)
