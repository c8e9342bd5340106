"""Passes over data in batches: what is evaluated, and how it is summed up.

Batches are cut out of arrays, or come from a loader; the last is padded and
masked, so that every image counts once. Each is one call of a jitted function;
its sums are fetched while the next one runs, and added up in float64. What is
no sum of numbers, as average precision, keeps something of every image.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from fastsnn_jax import distributed as devices
from fastsnn_jax.data import Loader
from fastsnn_jax.errors import UserError


def batches(data, size: int) -> Iterator[dict[str, np.ndarray]]:
  """Consecutive batches, the last padded, with a 'mask': this process's rows.

  Args:
    data: dict of arrays, or a `Loader`, which has a batch size of its own.
    size: images per batch, of all processes together.
  """
  if isinstance(data, Loader):
    yield from data.evaluation()
    return
  total = len(data['image'])
  if total < 1 or size < 1:
    raise UserError(
      f'{total} images in batches of {size}: at least one of each is needed'
    )
  mine = size // jax.process_count()
  first = mine * jax.process_index()
  for start in range(first, first + total, size):
    rows = np.arange(start, start + mine)
    batch = {key: value[rows % total] for key, value in data.items()}
    yield {**batch, 'mask': (rows < total).astype(np.float32)}


def collect(loader: Loader) -> dict[str, np.ndarray]:
  """All examples of a loader that can be decoded, in memory, once."""
  arrays, filled = {}, 0
  for batch in loader.evaluation():
    real = batch.pop('mask') > 0
    for name, x in batch.items():
      if name not in arrays:
        shape = len(loader.source), *x.shape[1:]
        arrays[name] = np.empty(shape, x.dtype)
      arrays[name][filled : filled + real.sum()] = x[real]
    filled += real.sum()
  return {name: x[:filled] for name, x in arrays.items()}


def count(data) -> int:
  """How many images there are."""
  return len(data.source if isinstance(data, Loader) else data['image'])


def first_image(data) -> np.ndarray:
  """The first image as it is; of a loader, for the first process."""
  if isinstance(data, Loader):
    return next(data.evaluation())['image'][0]
  return data['image'][0]


def image_shape(data) -> tuple[int, int, int]:
  """(H, W, C) of every image."""
  return data.shape if isinstance(data, Loader) else data['image'].shape[1:]


def even(size: int, mesh: Mesh | None) -> int:
  """The batch size, or the next one that the devices can share out."""
  return size if mesh is None else -(-size // mesh.size) * mesh.size


def accumulate(
  function: Callable,
  data,
  size: int,
  *,
  mesh: Mesh | None = None,
  advance: Callable[[], None] = lambda: None,
):
  """Sums the 'sums' of every batch, takes the largest 'max', keeps the 'rows'.

  Args:
    function: batch -> {'sums': tree, 'max': tree, 'rows': tree}, jitted; the
      latter two where there are any. 'rows' has a row per image first, and is
      given back with those of all images, without the padded ones.
    data: see `batches`.
    size: images per batch.
    mesh: over whose devices the rows are shared out; None for one device.
    advance: called after each batch.
  """
  total, waiting, kept = None, None, []

  def fetch(running, mask):
    running = dict(running)
    if running.get('rows'):
      rows, mask = devices.whole((running.pop('rows'), mask))
      kept.append(jax.tree.map(lambda x: x[mask > 0], rows))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), running)

  def add(total, tree):
    if total is None:
      return tree
    result = {'sums': jax.tree.map(np.add, total['sums'], tree['sums'])}
    if 'max' in tree:
      result['max'] = jax.tree.map(np.maximum, total['max'], tree['max'])
    return result

  for batch in batches(data, even(size, mesh)):
    if mesh is not None:
      batch = devices.by_row(batch, mesh)
    running = function(batch)  # while it runs, the one before is fetched
    if waiting is not None:
      total = add(total, fetch(*waiting))
    waiting = running, batch['mask']
    advance()
  total = add(total, fetch(*waiting))
  if kept:
    total['rows'] = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
  return total
