"""Data sets on disk: order, resuming, processes, workers, what is skipped."""

import itertools
import math
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pictures import encode, smooth, write_tfds

from fastsnn_jax import data
from fastsnn_jax.data import prefetch
from fastsnn_jax.data import workers as workers_module
from fastsnn_jax.data.order import Draws, permutation
from fastsnn_jax.data.stream import Source
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation import evaluate as evaluation
from fastsnn_jax.experiment.config import Data
from fastsnn_jax.experiment.opening import network_of, open_data


class Pictures:
  """Records in memory; the label is the number of the example."""

  channels = 3

  def __init__(self, encoded):
    self._encoded = encoded

  def __len__(self):
    return len(self._encoded)

  def __getitem__(self, index):
    return self._encoded[index], int(index)

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
  return Source(Pictures(encoded))


def _loader(source, **options):
  defaults = {'batch': 6, 'seed': 1, 'size': 8, 'train': True}
  return data.Loader(source, **defaults | options)


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
  source, batch = _source(size), share * processes
  epochs = []
  for process in range(processes):
    loader = _loader(
      source, batch=batch, process_index=process, process_count=processes
    )
    steps = 2 * loader.epoch_steps
    epochs.append(_take(loader.training(0), steps))
    assert loader.epoch_steps == -(-size // batch)
  whole = _take(_loader(source, batch=batch).training(0), steps)
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


@pytest.mark.parametrize('crop', ['none', 'random_resized'])
def test_starting_in_mid_epoch_is_going_on(crop):
  source = _source(20)
  whole = _take(_loader(source, crop=crop).training(0), 9)
  for start in (1, 3, 4, 6):
    again = _take(_loader(source, crop=crop).training(start), 9 - start)
    _same(again, whole[start:])


def test_far_ahead_positions_do_not_overflow():
  options = {'crop': 'random_resized'}
  start = np.int32(2**31 - 1)
  one = _take(_loader(_source(8), **options).training(start), 2)
  two = _take(_loader(_source(8), **options).training(2**31 - 1), 2)
  _same(one, two)


def test_crops_follow_seed_and_step_not_processes():
  source = _source(8)
  options = {'batch': 4, 'crop': 'random_resized'}
  one, two = (
    _take(_loader(source, **options, seed=seed).training(0), 4)
    for seed in (1, 2)
  )
  by_label = [
    {int(y): x for b in epoch for x, y in zip(b['image'], b['label'], strict=1)}
    for epoch in (one[:2], one[2:], two[:2])
  ]
  for a, b in itertools.combinations(by_label, 2):
    assert any((a[label] != b[label]).any() for label in a)
  parts = [
    _take(
      _loader(source, **options, process_index=i, process_count=4).training(0),
      4,
    )
    for i in range(4)
  ]
  for step, batch in enumerate(one):
    images = np.concatenate([part[step]['image'] for part in parts])
    np.testing.assert_array_equal(images, batch['image'])


def test_what_a_batch_is():
  loader = _loader(_source(20), process_index=1, process_count=2)
  (batch,) = _take(loader.training(0), 1)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    'image': ((3, 8, 8, 3), 'uint8'),
    'label': ((3,), 'int32'),
    'mask': ((3,), 'float32'),
  }
  assert loader.shape == (8, 8, 3)


def test_training_without_crops_sees_what_evaluation_sees():
  source = _source(8)
  shown = {}
  for batch in _loader(source, batch=4).evaluation():
    shown |= dict(zip(batch['label'].tolist(), batch['image'], strict=True))
  for options in ({}, {'train': False, 'crop': 'random_resized'}):
    loader = _loader(source, batch=4, **options)
    for batch in _take(loader.training(0), 2):
      for image, label in zip(batch['image'], batch['label'], strict=True):
        np.testing.assert_array_equal(image, shown[int(label)])


def test_evaluation_is_one_pass_in_order():
  source = _source(10)
  parts = []
  for process in range(2):
    loader = _loader(
      source, batch=4, process_index=process, process_count=2, train=False
    )
    parts.append(list(loader.evaluation()))
    _same(parts[-1], list(loader.evaluation()))
  labels = [x['label'].tolist() for both in zip(*parts, strict=1) for x in both]
  assert labels == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [0, 1]]
  assert [x['mask'].tolist() for x in parts[0]] == [[1, 1]] * 3
  assert [x['mask'].tolist() for x in parts[1]] == [[1, 1], [1, 1], [0, 0]]


# ------------------------------------------------------------------ skipped


def test_damaged_pictures_keep_their_rows_and_are_counted():
  source = _source(10, damaged=(2, 7))
  loader = _loader(source, batch=4)
  batches = list(loader.evaluation())
  mask = np.concatenate([x['mask'] for x in batches])
  assert mask.tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0]
  assert (batches[0]['image'][2] == 127).all()
  assert batches[0]['label'].tolist() == [0, 1, 2, 3]
  assert loader.skipped == 2
  assert loader.skipped_names == ('picture 2', 'picture 7')
  _take(loader.training(0), 6)
  assert loader.skipped == 2  # each once, however often it was met


def test_pictures_that_mostly_fail_are_an_error():
  loader = _loader(_source(12, damaged=range(9)), batch=4)
  with pytest.raises(UserError, match=r'8 of 12|9 of 12') as error:
    list(loader.evaluation())
  assert 'picture 0' in str(error.value)


# ----------------------------------------------------------- sizes as found


def test_pictures_as_they_are():
  source = _source(5)
  loader = _loader(source, batch=5, size=None)
  (batch,) = loader.evaluation()
  assert loader.shape == (12, 10, 3)
  np.testing.assert_array_equal(batch['image'][0], _SMOOTH[:12, :10])


def test_grey_sets_stay_grey():
  grey = [encode(_SMOOTH[:9, :9, 0]) for _ in range(3)]
  records = Pictures(grey)
  for channels, expected in ((None, 1), (1, 1), (3, 3)):
    records.channels = channels
    loader = _loader(Source(records), batch=3, size=None)
    (batch,) = loader.evaluation()
    assert batch['image'].shape == (3, 9, 9, expected)
    np.testing.assert_array_equal(
      batch['image'][0, :, :, 0], _SMOOTH[:9, :9, 0]
    )


def test_pictures_as_they_are_must_have_one_shape():
  good = encode(_SMOOTH[:9, :9])
  for other in (_SMOOTH[:9, :8], np.zeros((8, 9), np.uint8)):
    records = Pictures([good, good, encode(other)])
    loader = _loader(Source(records), batch=3, size=None)
    with pytest.raises(UserError, match='picture 2') as error:
      list(loader.evaluation())
    assert '(9, 9, 3)' in str(error.value)
    assert 'give a size' in str(error.value)
  with pytest.raises(UserError, match='are no pictures'):
    _loader(_source(3, damaged=range(3)), size=None)


# ------------------------------------------------------------------ sources


def test_splitting_gives_the_rows_of_a_split_in_memory():
  source = _source(20)
  wanted = data.split({'label': np.arange(20)}, 0.3, 5)
  for got, arrays in zip(source.split(0.3, 5), wanted, strict=True):
    labels = [got[i][1] for i in range(len(got))]
    assert labels == arrays['label'].tolist()
  part = source.take([4, 2, 9]).take([1, 0])
  assert [part[i][1] for i in range(2)] == [2, 4]
  assert part.name(1) == 'picture 4'
  for rows in ([3], [-1]):
    with pytest.raises(UserError, match='must be 0 to 1'):
      part.take(rows)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch': 0}, 'batch is 0'),
    ({'batch': 7, 'process_count': 2}, 'multiple of 2'),
    ({'process_index': 2, 'process_count': 2}, 'must be 0 to 1'),
    ({'process_count': 0}, 'process_count is 0'),
    ({'seed': -1}, 'seed is -1'),
    ({'size': 0}, 'size is 0'),
    ({'workers': -1}, 'workers is -1'),
    ({'crop': 'some'}, "crop is 'some'; choose one of none, random_resized"),
    ({'crop': 'random_resized', 'size': None}, 'give a size'),
  ],
)
def test_arguments_out_of_range(options, message):
  with pytest.raises(UserError, match=message):
    _loader(_source(4), **options)


def test_other_misuse():
  with pytest.raises(UserError, match='no examples'):
    _loader(_source(4).take([]))
  with pytest.raises(UserError, match='start_step is -1'):
    _loader(_source(4)).training(-1)


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
    stream = data.open_stream('cifar10', str(path))
    assert stream.classes == ('cat', 'dog', 'ship')
    assert stream.mean == (0.491, 0.482, 0.447)
    for part in ('train', 'test'):
      source = getattr(stream, part)
      assert [source[i] for i in range(len(source))] == rows[part]
      copy = pickle.loads(pickle.dumps(source))
      assert copy[3] == rows[part][3]
    assert stream.train.channels == 3
    assert stream.test.name(2) == f'{folder} test[2]'


def test_streaming_shows_what_is_read_into_memory(tmp_path):
  rows = [(encode(_SMOOTH[i : i + 6, :5], 'JPEG'), i % 3) for i in range(9)]
  write_tfds(tmp_path, {'train': rows, 'test': rows[:5]})
  whole = data.load('cifar10', str(tmp_path))
  source = data.open_stream('cifar10', str(tmp_path)).test
  loader = _loader(source, batch=2, size=None)
  wanted = list(evaluation.batches(whole.test, 2))
  _same(list(loader.evaluation()), wanted)


@pytest.mark.parametrize('unlabelled', [None, -1])
def test_tfds_validation_where_test_has_no_labels(tmp_path, unlabelled):
  rows = {'train': _jpegs(5), 'validation': _jpegs(3)}
  if unlabelled:
    rows['test'] = _jpegs(2, unlabelled)
  write_tfds(tmp_path, rows, name='imagenet2012', shape=(None, None, 3))
  stream = data.open_stream('imagenet2012', str(tmp_path))
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
  found = open_data('small_resnet8', settings)
  assert found.mean == pytest.approx(mean)
  loader = _loader(found.train, batch=1, size=size)
  assert len(found.mean) == len(found.std) == loader.shape[-1]
  network = network_of('small_resnet8', 2, settings, found)
  (batch,) = _take(loader.training(), 1)
  assert data.present(network, batch['image']).shape == (1, *loader.shape)


def _fails(*arguments):
  with pytest.raises(UserError) as error:
    data.open_stream(*arguments)
  assert '\n' not in str(error.value)
  return str(error.value)


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


def test_worker_processes_give_what_threads_give(tmp_path):
  rows = {'train': _jpegs(9), 'test': _jpegs(4)}
  rows['train'][4] = (b'damaged', 1)
  write_tfds(tmp_path, rows, shape=(None, None, 3))
  source = data.open_stream('cifar10', str(tmp_path)).train
  options = {'batch': 4, 'crop': 'random_resized'}
  threads, workers = (
    _loader(source, **options, workers=count) for count in (0, 2)
  )
  batches = workers.training(1)
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
  with pytest.raises(UserError, match=r'of 2 worker.*killed .*-9.*fewer worke'):
    _take(batches, 20)
  assert not multiprocessing.active_children()
  _same(got, _take(threads.training(1), 6))
  _same(list(workers.evaluation()), list(threads.evaluation()))
  assert workers.skipped_names == threads.skipped_names != ()
  # What fails in a worker is told as if it had failed here.
  loader = _loader(source, size=None, workers=1)
  with pytest.raises(UserError, match='give a size'):
    list(loader.evaluation())


def test_workers_need_shared_memory(monkeypatch):
  monkeypatch.setattr(workers_module, '_SHARED', '/')
  monkeypatch.setattr(
    workers_module.shutil,
    'disk_usage',
    lambda path: SimpleNamespace(free=2_000_000),
  )
  _loader(_source(4), size=200, workers=0)
  with pytest.raises(UserError, match=r'has 2 MB free.*need 4 MB.*--shm-size'):
    _loader(_source(4), size=200, workers=2)


def test_tensorflow_and_devices_are_left_alone(tmp_path):
  write_tfds(
    tmp_path, {'train': _jpegs(4), 'test': _jpegs(4)}, shape=(None, None, 3)
  )
  script = f"""
import sys
from jax._src import xla_bridge
from fastsnn_jax import data, evaluation
from fastsnn_jax.config import Data
from fastsnn_jax.data import prefetch
from fastsnn_jax.data import workers as workers_module
assert 'grain' not in sys.modules
source = data.open_stream('cifar10', {str(tmp_path)!r}).train
next(data.Loader(source, batch=2, seed=0, size=8, train=True).training(0))
assert 'tensorflow' not in sys.modules
assert not xla_bridge._backends
"""
  subprocess.run([sys.executable, '-c', script], check=True)


# ----------------------------------------------------------------- prefetch


def test_prefetching_keeps_order_and_depth():
  taken, put = [], []

  def numbers():
    for number in range(9):
      taken.append(number)
      yield {'image': np.full(2, number)}

  def to_device(batch):
    put.append(batch)
    return jax.device_put(batch)

  batches = data.prefetch_to_device(numbers(), to_device)
  assert taken == []
  got = []
  for batch in batches:
    assert isinstance(batch['image'], jax.Array)
    got.append(int(batch['image'][0]))
    time.sleep(0.01)  # for the thread to go too far, were it to
    assert len(put) <= len(got) + 2
    assert len(taken) <= len(put) + 1
  assert got == list(range(9))
  assert list(batches) == []


class Clock:
  """A loader and a device on a clock of their own, for `prefetch.take`.

  Batch n is there `makes` seconds after the one before, or after the loader
  had room for it; the device works `steps` seconds on each.
  """

  def __init__(self, makes, steps, depth=3):
    self.now = self.free = 0.0
    self._makes, self._steps, self._depth = makes, steps, depth
    self._made, self._taken = [], []

  def _next(self):
    number = len(self._taken)
    while len(self._made) <= number:
      room = 0.0
      if (before := len(self._made) - self._depth) >= 0:
        room = self._taken[before]
      last = self._made[-1] if self._made else 0.0
      self._made.append(max(last, room) + self._makes)
    return self._made[number]

  def get_nowait(self):
    return self.get(timeout=0)

  def get(self, timeout=math.inf):
    there = self._next()
    if there > self.now + timeout:
      self.now += timeout
      raise queue.Empty
    self.now = max(self.now, there)
    self._taken.append(self.now)
    return len(self._taken) - 1

  def busy(self):
    return self.now < self.free

  def step(self):
    """Sends a step; two may be on their way, as in `feeding`."""
    self.free = max(self.free, self.now) + self._steps
    self.now = max(self.now, self.free - self._steps)


@pytest.mark.parametrize(
  ('makes', 'share'),
  [(0.5, 0), (0.9, 0), (1.0, 0), (1.02, 0.02), (1.25, 0.2), (2.0, 0.5)],
)
def test_waiting_is_what_the_device_loses(monkeypatch, makes, share):
  clock = Clock(makes, 1.0)
  monkeypatch.setattr(prefetch.time, 'perf_counter', lambda: clock.now)
  monkeypatch.setattr(prefetch, '_LOOK', 0.005)
  prefetch.take(clock, lambda: False)
  began, waited, steps = clock.now, 0.0, 50
  for _ in range(steps):
    clock.step()
    number, idle = prefetch.take(clock, clock.busy)
    waited += idle
  assert number == steps
  assert waited / (clock.now - began) == pytest.approx(share, abs=0.01)
  # Nothing else delays it: a step takes as long as the slower of the two.
  took = (clock.now - began) / steps
  assert took == pytest.approx(max(makes, 1.0), rel=0.03)


def test_the_start_is_no_waiting(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(prefetch.time, 'perf_counter', lambda: now[0])

  def slow():
    now[0] += 3
    yield None
    yield None

  asked = []
  batches = data.prefetch_to_device(
    slow(), lambda x: x, busy=lambda: asked.append(1)
  )
  assert list(batches) == [None, None]
  assert (batches.start_seconds, batches.wait_seconds) in ((3, 0), (0, 0))


def test_what_fails_in_the_thread_is_raised_where_it_is_asked_for():
  def damaged():
    yield 1
    raise UserError('damaged')

  batches = data.prefetch_to_device(damaged(), float)
  assert next(batches) == 1.0
  with pytest.raises(UserError, match='damaged'):
    next(batches)
  assert list(batches) == []


def test_closing_ends_the_iterator():
  ended = []

  def numbers():
    try:
      yield from range(9)
    finally:
      ended.append(True)

  threads = threading.active_count()
  batches = data.prefetch_to_device(numbers(), lambda x: x)
  next(batches)
  batches.close()
  assert ended == [True]
  assert threading.active_count() == threads
  assert list(batches) == []
  data.prefetch_to_device(numbers(), lambda x: x).close()  # not begun
