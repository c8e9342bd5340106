"""A split on disk: records are read, decoded and batched ahead by grain.

What a batch holds depends on the seed and its number only: not on the number of
processes or workers, nor on where a run was cut. grain is imported where it is
used: 1.6 s that other runs save.
"""

import functools
import gc
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Mapping

import numpy as np
from absl import flags

from fastsnn_jax.data.dataset import Split, batch_shapes, own_rows
from fastsnn_jax.data.decode import Undecodable, cores
from fastsnn_jax.errors import UserError

_ENDLESS = 2**50  # examples; more than a run can see
_PATIENCE = 100  # records that are tried before none can be decoded
_SHARED = '/dev/shm'  # where Linux keeps what processes share


def as_it_is(record, draws=None) -> dict:
  """The `prepare` of records that are examples already."""
  del draws
  if not isinstance(record, Mapping) or 'image' not in record:
    raise UserError(
      f'an example of type {type(record).__name__}; it must be a dict with '
      "'image' and labels, {'image': …, 'label': …}"
    )
  return {name: stacked(name, x) for name, x in record.items()}


def stacked(name, rows) -> np.ndarray:
  """An array, or a UserError that names it."""
  try:
    return np.asarray(rows)
  except ValueError as error:  # NumPy's text does not say which
    raise UserError(
      f'{name!r} has rows of several shapes, which make no array; bring '
      'images to one size, and fill up lists of boxes with label -1'
    ) from error


class Stream(Split):
  """Examples that are made of records when they are needed.

  Args:
    source: has `len` and `[i]`, which gives a record, in any order and from
      several threads; and if it can `name(i)`, for messages, and `column(name)`
      with the labels of all records. It can be pickled if there are workers.
    prepare: (record, `Draws` in training, else None) -> {'image': [H, W, C],
      labels}, on the host; raises `Undecodable` if there is no picture.
    training: the `prepare` of training batches, if it is another.
    workers: processes that decode; 0 for threads of this one. Pillow lets
      threads run side by side, so workers pay off on many cores only.
    rows: which records, in which order; all if not given.
  """

  def __init__(self, source, prepare, training=None, *, workers=0, rows=None):
    self._source, self._workers = source, workers
    self._prepare, self._training = prepare, training or prepare
    self._rows = np.arange(len(source)) if rows is None else rows
    if not len(self._rows):
      raise UserError('the split has no examples; it needs at least one')
    self._skipped, self._told, self._blanks = {}, 0, {}

  def __len__(self):
    return len(self._rows)

  @property
  def shape(self):
    return self._blank(False)['image'].shape

  def shapes(self, size):
    return batch_shapes(self._blank(True), size)

  def column(self, name):
    columns = getattr(self._source, 'column', lambda name: None)(name)
    return None if columns is None else columns[self._rows]

  def take(self, rows):
    what = self._source, self._prepare, self._training
    return Stream(*what, workers=self._workers, rows=self._rows[rows])

  def name(self, index: int) -> str:
    """What an example is called in messages."""
    name = getattr(self._source, 'name', 'example {}'.format)
    return name(self._rows[index])

  def complaints(self):
    names = [self.name(index) for index in self._skipped][self._told :]
    if not names:
      return []
    again = 'more ' if self._told else ''
    self._told += len(names)
    listed = ', '.join(names[:3]) + (', …' if names[3:] else '')
    return [
      f'{len(names)} {again}of {len(self)} pictures cannot be decoded and '
      f'count nothing ({listed})'
    ]

  def _example(self, shuffle, size, start, mine, number):
    """This process's `number`th example from `start` on, and 'skipped'."""
    step, row = divmod(number, mine)
    number = start + step * size + row  # of all processes, from 0 on
    step, row = divmod(number, size)
    epoch, step = divmod(step, self.steps(size))
    position = step * size + row
    index, draws = position % len(self), None
    if shuffle is not None:
      index = int(permutation(shuffle.seed, epoch, len(self))[index])
      draws = Draws(shuffle.seed, number)
    blank, skipped = self._blank(shuffle is not None), -1
    try:
      example = self._prepared(index, draws)
    except Undecodable:
      example, skipped = blank, index
    shapes, before = (
      {k: np.shape(x) for k, x in e.items()} for e in (example, blank)
    )
    if shapes != before:
      raise UserError(
        f'{self.name(index)} has the shapes {shapes}, those before {before}; '
        'give a size to bring images to, and fill up lists of boxes'
      )
    counts = position < len(self) and skipped < 0
    return {**example, 'mask': np.float32(counts), 'skipped': np.int64(skipped)}

  def _prepared(self, index, draws):
    prepare = self._training if draws else self._prepare
    return prepare(self._source[self._rows[index]], draws)

  def _blank(self, training):
    """A grey example, in the place of those that cannot be decoded."""
    if training not in self._blanks:
      self._blanks[training] = self._grey(training)
    return self._blanks[training]

  def _grey(self, training):
    for index in range(min(len(self), _PATIENCE)):
      try:
        example = self._prepared(index, Draws(0, 0) if training else None)
        return {**example, 'image': np.full_like(example['image'], 127)}
      except Undecodable as error:
        reason = error
    raise UserError(
      f'{self.name(0)} and {index} more are no pictures ({reason}); pictures '
      'must be JPEG, PNG or the like, so look at the files'
    )

  def __getstate__(self):
    return {**self.__dict__, '_skipped': {}, '_told': 0}

  def batches(self, size, *, shuffle=None, start=0, shared=True):
    import grain

    mine, first = own_rows(size, shared)
    count = _ENDLESS if shuffle else (self.steps(size) - start) * mine
    begin = int(start) * size + first
    example = functools.partial(self._example, shuffle, size, begin, mine)
    # `mp_prefetch` deals elements out to the workers: they have to be batches.
    # Threads take single examples, so that the first batch comes soonest.
    data = grain.MapDataset.range(count).map(example)
    if self._workers:
      self._check_room(mine, shuffle is not None)
      if not flags.FLAGS.is_parsed():  # grain reads its own, even in a library
        flags.FLAGS.mark_as_parsed()
      options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      data = data.batch(mine).to_iter_dataset(options)
      several = grain.MultiprocessingOptions(num_workers=self._workers)
      data = data.mp_prefetch(several, worker_init_fn=_start_worker)
    else:
      options = grain.ReadOptions(cores(), max(2 * mine, cores()))
      data = data.to_iter_dataset(options).batch(mine)
    return self._counted(iter(data), mine, size)

  def _counted(self, batches, mine, size):
    seen = failed = 0
    try:
      for batch in batches:
        if self._workers:  # out of shared memory, which is little, at once
          batch = {name: np.array(x) for name, x in batch.items()}
        indices = batch.pop('skipped')
        indices = indices[indices >= 0].tolist()
        self._skipped.update(dict.fromkeys(indices))
        seen, failed = seen + mine, failed + len(indices)
        if 2 * failed > seen >= min(_PATIENCE, len(self) * mine // size):
          names = ', '.join(self.name(i) for i in list(self._skipped)[:3])
          raise UserError(
            f'{failed} of {seen} pictures could not be decoded ({names}, …); '
            'most must be JPEG, PNG or the like, so look at these files'
          )
        yield batch
    except RuntimeError as error:
      if not self._workers or isinstance(error, UserError):
        raise
      raise UserError(
        f'one of {self._workers} worker processes that decode ended ({error}), '
        'as happens where memory is short; use fewer workers, or none (threads '
        'decode too), then the same command goes on'
      ) from error
    finally:
      batches.close()
      if self._workers:
        # What grain raised at its end still holds batches, in a circle, which
        # would stay in shared memory.
        gc.collect()

  def _check_room(self, mine, training):
    """Writing to more shared memory than there is kills without a word."""
    if not os.path.isdir(_SHARED):
      return
    example = sum(np.asarray(x).nbytes for x in self._blank(training).values())
    # Each worker has a batch in the making and two on their way.
    needed = 3 * self._workers * mine * example
    if (free := shutil.disk_usage(_SHARED).free) < needed:
      raise UserError(
        f'{_SHARED} has {free / 1e6:.0f} MB free, the batches of the workers '
        f'need {needed / 1e6:.0f} MB; use fewer workers, or none (threads '
        'decode too), or give the container more (docker: --shm-size)'
      )


# --- random numbers, fixed by the seed for good ------------------------------

# NumPy promises that the raw stream of a bit generator stays; not so what its
# `Generator` makes of it.
_lock = threading.Lock()


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of the examples in an epoch, shared: do not write to it."""
  with _lock:  # else every thread would work it out as an epoch begins
    return _permutation(seed, epoch, size)


@functools.lru_cache(maxsize=4)
def _permutation(seed, epoch, size):
  return np.argsort(_raw(seed, 0, epoch).random_raw(size), kind='stable')


class Draws:
  """Numbers uniform in [0, 1), four at each call, for one example.

  `number` is that of the example, counted through all epochs.
  """

  def __init__(self, seed: int, number: int):
    self._stream = _raw(seed, 1, number)

  def __call__(self) -> list[float]:
    return ((self._stream.random_raw(4) >> 11) * 2.0**-53).tolist()


def _raw(seed, *key):
  return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))


# --- worker processes ---------------------------------------------------------


def _start_worker(index: int, count: int) -> None:
  del index, count
  # A signal to the whole job is the training's affair, which saves first and
  # then tells the workers to stop.
  for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, signal.SIG_IGN)
  # Killed, it tells nobody; workers would wait for it for ever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)
