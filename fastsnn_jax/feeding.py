"""Where a stage's batches come from: data on the device, or a stream.

A feed advances the training state by some steps and starts no step twice: both
kinds draw what a step's number says, so they can begin anywhere.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import devices, training
from fastsnn_jax.data import Loader, prefetch_to_device

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


class Resident:
  """Data that live on every device; many steps are one call.

  Args:
    data: dict of arrays.
    **static: network, task and recipe.
  """

  def __init__(self, data, key, **static):
    mesh = static['recipe'].mesh
    put = functools.partial(devices.everywhere, on=mesh) if mesh else _put
    self._sides = _Sides(key, static['recipe'])
    self._data, self._key, self._static = put(data), put(key), static

  wait_share = 0.0

  def advance(self, state, step: int, stop: int):
    """(state, sums, bad_step) after step number `stop` - 1."""
    for end, side in self._sides.runs(step, stop):
      state, sums, bad = training.train_chunk(
        state, self._data, self._key, end, side=side, **self._static
      )
    return state, sums, bad

  def warnings(self) -> list[str]:
    return []

  def close(self) -> None:
    pass


def _put(tree):
  return jax.tree.map(jnp.asarray, tree)


class Streaming:
  """Batches of a loader, each put on the devices while those before run.

  Args:
    loader: of the training split.
    key, static: as for `Resident`.
  """

  def __init__(self, loader: Loader, key, **static):
    self._mesh = static['recipe'].mesh or devices.mesh()
    self._loader, self._static = loader, static
    self._sides = _Sides(key, static['recipe'])
    self._key = devices.everywhere(key, self._mesh)
    self._batches, self._at = None, None
    self._running = collections.deque()
    self._told = 0

  @property
  def wait_share(self) -> float:
    """Share of the time in which the device waited for input."""
    return self._batches.wait_share if self._batches else 0.0

  def advance(self, state, step: int, stop: int):
    """(state, sums, bad_step) after step number `stop` - 1."""
    if self._at != step:
      self.close()
      self._batches = prefetch_to_device(
        self._loader.training(step),
        functools.partial(devices.by_row, on=self._mesh),
      )
    for end, side in self._sides.runs(step, stop):
      for _ in range(step, end):
        if len(self._running) > 1:  # no more batches on the device than that
          jax.block_until_ready(self._running.popleft())
        state, sums, bad = training.train_batch(
          state, next(self._batches), self._key, side=side, **self._static
        )
        self._running.append(bad)
      step = end
    self._at = stop
    return state, sums, bad

  def warnings(self) -> list[str]:
    """What the user should know, each thing once."""
    found, count = [], self._loader.skipped
    if count > self._told:
      names = ', '.join(self._loader.skipped_names[self._told :][:3])
      found.append(
        f'{count - self._told} more pictures cannot be decoded and are left '
        f'out ({names}{", …" if count - self._told > 3 else ""})'
      )
      self._told = count
    return found

  def close(self) -> None:
    if self._batches is not None:
      self._batches.close()
      self._batches = None
