"""Batches on their way to the device while it works on the ones before."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_LOOK = 1e-3  # seconds between two looks whether the device is still at work


class Prefetched:
  """An iterator of batches on the device; see `prefetch_to_device`.

  Attributes:
    wait_seconds: time in which the device had nothing to do but to wait for
      the next batch; that before the first one not counted.
    start_seconds: time until the first batch was there.
  """

  def __init__(self, iterator, put, depth, busy):
    self._iterator, self._put, self._busy = iterator, put, busy
    self._ready, self._room = queue.SimpleQueue(), threading.Semaphore(depth)
    self._thread, self._ended = None, False
    self.wait_seconds = self.start_seconds = 0.0

  def __iter__(self):
    return self

  def __next__(self):
    if self._ended:
      raise StopIteration
    if self._thread is None:
      self._thread = threading.Thread(target=self._fill, daemon=True)
      self._thread.start()
      (batch, error), self.start_seconds = take(self._ready, lambda: False)
    else:
      (batch, error), idle = take(self._ready, self._busy)
      self.wait_seconds += idle
    if error is not None:
      self._ended = True
      raise error
    self._room.release()
    return batch

  def _fill(self):
    """What the thread does: the next batch is always in the making."""
    end = StopIteration()
    try:
      for batch in self._iterator:
        self._room.acquire()
        if self._ended:
          return
        self._ready.put((self._put(batch), None))
    except BaseException as error:  # raised where the batch is asked for
      end = error
    self._ready.put((None, end))

  def close(self) -> None:
    """Ends the iterator that it takes from, with its threads or workers."""
    self._ended = True
    self._room.release()
    if self._thread is not None:
      self._thread.join()  # it may be in the iterator, which then cannot close
    self._ready = queue.SimpleQueue()
    getattr(self._iterator, 'close', lambda: None)()


def take(ready, busy: Callable[[], bool]) -> tuple[Any, float]:
  """(next item of a queue, seconds waited for it while nothing was busy).

  >>> full = queue.SimpleQueue()
  >>> full.put('batch')
  >>> take(full, lambda: False)
  ('batch', 0.0)
  """
  with contextlib.suppress(queue.Empty):
    return ready.get_nowait(), 0.0
  while busy():
    with contextlib.suppress(queue.Empty):
      return ready.get(timeout=_LOOK), 0.0
  began = time.perf_counter()
  item = ready.get()
  return item, time.perf_counter() - began


def prefetch_to_device(
  iterator: Iterator[Any],
  put: Callable[[Any], Any],
  depth: int = 2,
  *,
  busy: Callable[[], bool] = lambda: False,
) -> Prefetched:
  """Keeps `depth` batches on the device or on their way to it.

  A thread takes them from the iterator, from the first time that one is asked
  for, while the caller sets the device to work on those that are there.

  Args:
    iterator: of batches on the host, such as `Loader.training`.
    put: host batch -> device batch, at once or in the background, such as
      `functools.partial(jax.device_put, device=sharding)`.
    depth: 1 or more.
    busy: whether the device still has work. Time that passes until a batch is
      there counts as waiting only where it has none.

  Returns:
    `Prefetched`; to be closed, unless it has come to its end.

  >>> list(prefetch_to_device(iter(range(3)), float))
  [0.0, 1.0, 2.0]
  """
  return Prefetched(iter(iterator), put, depth, busy)
