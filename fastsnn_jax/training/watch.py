"""How long the steps of a stage take, and a trace of some of them."""

import contextlib
import time

import jax


class Watch:
  """Measures a stage, an epoch at a time.

  Args:
    recipe: of the stage.
    step: at which it begins, or goes on.
    trace: directory for a trace of some steps, or None.
  """

  def __init__(self, recipe, step: int, trace=None):
    self._recipe, self._trace = recipe, trace
    self._chunks = 0
    self.resume(step, {})

  def resume(self, step: int, spent: dict[str, float]) -> None:
    """Time runs again, after an evaluation; `spent` as for `epoch`."""
    self._last = self._epoch_start = time.monotonic()
    self._epoch_step, self._spent = step, spent

  @contextlib.contextmanager
  def starting(self):
    """Around the start of a chunk."""
    if self._trace is not None and self._chunks == 2:
      jax.profiler.start_trace(str(self._trace))
    yield
    self._chunks += 1

  def took(self, count: int) -> float:
    """Seconds a step of the chunk that has just ended."""
    now = time.monotonic()
    took, self._last = max(now - self._last, 1e-9) / count, now
    if self._trace is not None and self._chunks >= 4:
      self._end_trace()
    return took

  def _end_trace(self):
    if self._chunks > 2:
      jax.profiler.stop_trace()
    self._trace = None

  def epoch(self, step: int, spent: dict[str, float]) -> dict[str, float]:
    """What was measured since the epoch began, or the run went on.

    Neither evaluation nor compilation nor the start of the input counts as
    time of its steps.

    Args:
      step: reached.
      spent: seconds since the stage began, see `feeding`.

    Returns:
      The columns of metrics.jsonl.
    """
    if self._trace is not None:
      self._end_trace()
    spent = {name: s - self._spent.get(name, 0) for name, s in spent.items()}
    seconds = time.monotonic() - self._epoch_start
    seconds -= spent['compile'] + spent.get('start', 0)
    took = max(seconds, 1e-9) / (step - self._epoch_step)
    rate = self._recipe.batch / took
    row = {'images_per_second': round(rate, 1), 'step_seconds': took}
    if self._recipe.mesh is not None:
      row['images_per_second_per_device'] = round(
        rate / self._recipe.mesh.size, 1
      )
    if 'wait' in spent:
      share = spent['wait'] / max(seconds, 1e-9)
      row['input_wait'] = min(share, 1.0)
    if memory := jax.local_devices()[0].memory_stats():  # None on a CPU
      row['peak_device_bytes'] = memory.get('peak_bytes_in_use', 0)
    for name in ('compile', 'start'):
      if spent.get(name):
        row[f'{name}_seconds'] = spent[name]
    return row
