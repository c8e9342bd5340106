"""How long the steps of a stage take, and a trace of some of them."""

import concurrent.futures
import contextlib
import time

import jax

from fastsnn_jax import distributed

_TRACED = range(3, 13)  # steps of the first epoch


class Meter:
  """Measures a stage of `batch` images a step, an epoch at a time.

  A trace of some steps is written to the directory `trace`, if there is one.
  """

  def __init__(self, batch: int, trace=None):
    self._batch, self._trace, self._tracing = batch, trace, False
    self._steps, self._seen, self._idle = 0, set(), None
    # Its one thread waits for the devices, to know when they fell idle.
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self.start_epoch()

  def start_epoch(self) -> None:
    """Time runs again, after an evaluation."""
    self._began, self._first = time.perf_counter(), self._steps
    self._spent, self._waited = {'compile': 0.0, 'start': 0.0}, 0.0

  @contextlib.contextmanager
  def reading(self):
    """Around the reading of a batch: was it late?"""
    began = time.perf_counter()
    yield
    now = time.perf_counter()
    if self._idle is None:
      self._spent['start'] += now - began
    elif self._idle.done():
      self._waited += now - max(began, self._idle.result())

  @contextlib.contextmanager
  def stepping(self, side):
    """Around the start of a step; the first one of a side is compiled."""
    if self._trace is not None and self._steps == _TRACED.start:
      jax.profiler.start_trace(str(self._trace))
      self._tracing = True
    began = time.perf_counter()
    yield
    if side not in self._seen:
      self._seen.add(side)
      self._spent['compile'] += time.perf_counter() - began
    self._steps += 1
    if self._steps == _TRACED.stop:
      self._end_trace()

  def running(self, result) -> None:
    """The devices work until this array is there."""
    self._idle = self._pool.submit(_when_ready, result)

  def epoch(self) -> dict[str, float]:
    """What was measured since the epoch began: columns of metrics.jsonl.

    Neither evaluation nor compilation nor the start of the input counts as time
    of its steps. 'input_wait' is the share of the time in which the devices had
    done all that they were given, and the next batch was not there.
    """
    self._end_trace()
    seconds = time.perf_counter() - self._began - sum(self._spent.values())
    seconds = max(seconds, 1e-9)
    took = seconds / max(self._steps - self._first, 1)
    rate = self._batch / took
    row = {
      'images_per_second': round(rate, 1),
      'step_seconds': took,
      'input_wait': min(self._waited / seconds, 1.0),
    }
    if (devices := distributed.mesh().size) > 1:
      row['images_per_second_per_device'] = round(rate / devices, 1)
    if memory := jax.local_devices()[0].memory_stats():  # None on a CPU
      row['peak_device_bytes'] = memory.get('peak_bytes_in_use', 0)
    return row | {f'{k}_seconds': v for k, v in self._spent.items() if v}

  def close(self) -> None:
    self._end_trace()
    self._pool.shutdown()

  def _end_trace(self):
    if self._tracing:
      jax.profiler.stop_trace()
      self._trace, self._tracing = None, False


def _when_ready(result):
  jax.block_until_ready(result)
  return time.perf_counter()
