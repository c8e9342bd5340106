"""Where a stage's batches come from: data on the device, or a stream.

A feed advances the training state by some steps and starts no step twice: both
kinds draw what a step's number says, so they can begin anywhere.
"""

import collections
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed as devices
from fastsnn_jax.data import Loader, prefetch_to_device
from fastsnn_jax.training import step as training

SIDE_STEPS = 10  # between two changes of the images' side (detection.md 3.7)


class _Sides:
  """Which side the images of a step have, the same on every process."""

  def __init__(self, key, recipe):
    self._recipe, self._seed = recipe, 0
    if recipe.sides:
      self._seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1])

  def runs(self, step: int, stop: int):
    """Yields (stop, side) of the runs of steps that have one side."""
    sides = self._recipe.sides
    while sides and step < stop:
      block = step // SIDE_STEPS
      step = min(stop, (block + 1) * SIDE_STEPS)
      drawn = np.random.PCG64([self._seed, block]).random_raw()
      yield step, sides[drawn % len(sides)]
    if not sides:
      yield stop, None


class _Feed:
  """What both kinds share: the program of a step, and what it cost to make."""

  def __init__(self, key, static):
    self._sides = _Sides(key, static['recipe'])
    self._static, self._seen = static, set()
    self._spent = {'compile': 0.0}

  def _run(self, function, *arguments, side):
    """One call; it returns at once, but for the first of each side."""
    began = time.perf_counter()
    result = function(*arguments, side=side, **self._static)
    if side not in self._seen:  # then it was compiled, or taken from the cache
      self._seen.add(side)
      self._spent['compile'] += time.perf_counter() - began
    return result

  def spent(self) -> dict[str, float]:
    """Seconds so far: 'compile', and of a stream 'start' and 'wait'.

    The start is that until the first batch was there, waiting the time in
    which the devices had nothing to do because the next one was not.
    """
    return dict(self._spent)

  def warnings(self) -> list[str]:
    """What the user should know, each thing once."""
    return []

  def close(self) -> None:
    """Ends threads and processes."""


class Resident(_Feed):
  """Data that live on every device; many steps are one call.

  Args:
    data: dict of arrays.
    **static: network, task and recipe.
  """

  def __init__(self, data, key, **static):
    super().__init__(key, static)
    mesh = static['recipe'].mesh
    put = functools.partial(devices.everywhere, on=mesh) if mesh else _put
    self._data, self._key = put(data), put(key)

  def advance(self, state, step: int, stop: int):
    """(state, sums, bad_step) after step number `stop` - 1."""
    for end, side in self._sides.runs(step, stop):
      state, sums, bad = self._run(
        training.train_chunk, state, self._data, self._key, end, side=side
      )
    return state, sums, bad


def _put(tree):
  return jax.tree.map(jnp.asarray, tree)


class Streaming(_Feed):
  """Batches of a loader, each put on the devices while those before run.

  Args:
    loader: of the training split.
    key, static: as for `Resident`.
  """

  def __init__(self, loader: Loader, key, **static):
    super().__init__(key, static)
    self._spent |= {'start': 0.0, 'wait': 0.0}
    self._mesh = static['recipe'].mesh or devices.mesh()
    self._loader = loader
    self._key = devices.everywhere(key, self._mesh)
    self._batches, self._at = None, None
    self._running = collections.deque()

  def spent(self) -> dict[str, float]:
    spent = super().spent()
    if self._batches is not None:
      spent['start'] += self._batches.start_seconds
      spent['wait'] += self._batches.wait_seconds
    return spent

  def advance(self, state, step: int, stop: int):
    """(state, sums, bad_step) after step number `stop` - 1."""
    if self._at != step:
      self._open(step)
    for end, side in self._sides.runs(step, stop):
      for _ in range(step, end):
        if len(self._running) > 1:  # no more batches on the device than that
          jax.block_until_ready(self._running.popleft())
        batch = next(self._batches)
        state, sums, bad = self._run(
          training.train_batch, state, batch, self._key, side=side
        )
        self._running.append(bad)
      step = end
    self._at = stop
    return state, sums, bad

  def _open(self, step):
    began = time.perf_counter()
    self.close()
    self._batches = prefetch_to_device(
      self._loader.training(step),
      functools.partial(devices.by_row, on=self._mesh),
      busy=self._busy,
    )
    self._spent['start'] += time.perf_counter() - began

  def _busy(self):
    return bool(self._running) and not self._running[-1].is_ready()

  def warnings(self) -> list[str]:
    return self._loader.complaints()

  def close(self) -> None:
    if self._batches is not None:
      self._spent = self.spent()
      self._batches.close()
      self._batches = None
