"""One pass over a split: a jitted call a batch, and what is summed up of them.

The sums of a batch are fetched while the next one runs, and added up in
float64. What is no sum of numbers, as average precision, keeps something of
every image.
"""

from collections.abc import Callable

import jax
import numpy as np

from fastsnn_jax import distributed
from fastsnn_jax.data import Split


def accumulate(
  function: Callable,
  split: Split,
  size: int,
  *,
  advance: Callable[[], None] = lambda: None,
):
  """Sums the 'sums' of every batch, takes the largest 'max', keeps the 'rows'.

  Args:
    function: batch -> {'sums': tree, 'max': tree, 'rows': tree}, jitted; the
      latter two if it has any. 'rows' has a row per image first; the result has
      those of all images, without the filled-up ones.
    split: of a data set.
    size: images per batch, or the next number that the devices can share out.
    advance: called after each batch.
  """
  total, waiting, kept = None, None, []

  def fetch(running, mask):
    running = dict(running)
    if running.get('rows'):
      rows, mask = distributed.whole((running.pop('rows'), mask))
      kept.append(jax.tree.map(lambda x: x[mask > 0], rows))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), running)

  def add(total, tree):
    if total is None:
      return tree
    result = {'sums': jax.tree.map(np.add, total['sums'], tree['sums'])}
    if 'max' in tree:
      result['max'] = jax.tree.map(np.maximum, total['max'], tree['max'])
    return result

  for batch in split.batches(distributed.even(size)):
    batch = distributed.by_row(batch)
    running = function(batch)  # while it runs, the one before is fetched
    if waiting is not None:
      total = add(total, fetch(*waiting))
    waiting = running, batch['mask']
    advance()
  total = add(total, fetch(*waiting))
  if kept:
    total['rows'] = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
  return total


def kept_rows(task, batch, **rows):
  """What is kept of each image, if the task keeps anything."""
  truth = task.truth(batch)
  return {'truth': truth, **rows} if truth else {}
