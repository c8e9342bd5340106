"""Batches on their way to the device while it works on the ones before."""

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any


class Prefetched:
  """An iterator of batches on the device; see `prefetch_to_device`.

  Attributes:
    wait_seconds: time in which the next batch was waited for, those of the
      start not counted.
    start_seconds: time until the first batches were there.
  """

  def __init__(self, iterator, put, depth):
    self._iterator, self._put, self._depth = iterator, put, depth
    self._ready = collections.deque()
    self._began = None
    self.wait_seconds = self.start_seconds = 0.0

  def __iter__(self):
    return self

  def __next__(self):
    asked = time.perf_counter()
    while len(self._ready) < self._depth:
      try:
        batch = next(self._iterator)
      except StopIteration:
        break
      self._ready.append(self._put(batch))
    now = time.perf_counter()
    if self._began is None:
      self._began, self.start_seconds = now, now - asked
    else:
      self.wait_seconds += now - asked
    if not self._ready:
      raise StopIteration
    return self._ready.popleft()

  @property
  def wait_share(self) -> float:
    """Share of the time since the start that was waiting, 0 to 1."""
    if self._began is None:
      return 0.0
    return self.wait_seconds / max(time.perf_counter() - self._began, 1e-9)

  def close(self) -> None:
    """Ends the iterator that it takes from, with its threads or workers."""
    self._ready.clear()
    getattr(self._iterator, 'close', lambda: None)()


def prefetch_to_device(
  iterator: Iterator[Any], put: Callable[[Any], Any], depth: int = 2
) -> Prefetched:
  """Keeps `depth` batches on the device or on their way to it.

  The next one is fetched when the caller asks for one, so after it has set the
  device to work on the one before. Waiting is measured where the caller would
  wait. It is time lost by the device only if the caller keeps in step with it,
  such as by fetching the loss of step n - 1 before asking for batch n + 1.

  Args:
    iterator: of batches on the host, made ahead of time (`Loader.training`).
    put: host batch -> device batch, at once or in the background, such as
      `functools.partial(jax.device_put, device=sharding)`.
    depth: 1 or more.

  Returns:
    `Prefetched`.

  >>> list(prefetch_to_device(iter(range(3)), float))
  [0.0, 1.0, 2.0]
  """
  return Prefetched(iter(iterator), put, depth)
