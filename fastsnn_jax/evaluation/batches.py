"""One pass over a split: a jitted call a batch, and what is summed up of them.

The sums of a batch are fetched while the next one runs, and added up in
float64. What is no sum of numbers, as average precision, keeps something of
every image.
"""

import itertools

import jax
import numpy as np

from fastsnn_jax import distributed

_JOIN = {'sums': np.add, 'max': np.maximum}


def accumulate(function, split, size: int, *, advance=lambda: None):
  """Sums the 'sums' of every batch, takes the largest 'max', keeps the 'rows'.

  Args:
    function: batch -> {'sums': tree, 'max': tree, 'rows': tree}, jitted; the
      latter two if it has any. 'rows' has a row per image first; the result has
      those of all images, without the filled-up ones.
    split: of a data set.
    size: images per batch, or the next number that the devices can share out.
    advance: called without arguments after each batch.
  """
  total, kept = {}, []

  def started():
    for batch in split.batches(distributed.even(size)):
      batch = distributed.by_row(batch)
      yield function(batch), batch['mask']

  runs = itertools.chain(started(), [None])
  for (found, mask), _ in itertools.pairwise(runs):  # the next one runs already
    if rows := found.pop('rows', None):
      rows, mask = distributed.whole((rows, mask))
      kept.append(jax.tree.map(lambda x, real=mask > 0: x[real], rows))
    for part, tree in found.items():
      tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
      if part in total:
        tree = jax.tree.map(_JOIN[part], total[part], tree)
      total[part] = tree
    advance()
  if kept:
    total['rows'] = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
  return total


def kept_rows(task, batch, **rows):
  """What is kept of each image, if the task keeps anything."""
  truth = task.truth(batch)
  return {'truth': truth, **rows} if truth else {}
