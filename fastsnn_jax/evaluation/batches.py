"""One pass over a split: a jitted call a batch, and what is summed up of them.

The sums of a batch are fetched while the next one runs, and added up in
float64. What is no sum of numbers, as average precision, keeps something of
every image.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed
from fastsnn_jax.errors import UserError, check_whole
from fastsnn_jax.tasks.pixels import Pixels

_JOIN = {'sums': np.add, 'max': np.maximum}


def accumulate(function, split, size: int, task, *, advance=lambda: None):
  """Sums the 'sums' of every batch, takes the largest 'max', keeps the 'rows'.

  Args:
    function: batch -> {'sums': tree, 'max': tree, 'rows': tree}, jitted; the
      latter two if it has any. 'rows' has a row per image first; the result has
      those of all images, without the filled-up ones.
    split: of a data set.
    size: images per batch, or the next number that the devices can share out.
    task: whose labels each batch must have.
    advance: called without arguments after each batch.

  Each batch is checked on the host, on its way to the devices, see
  `tasks.pixels.Pixels`: there is no pass for that.
  """
  check_whole('batch', size, 1)
  total, kept, pixels = {}, [], Pixels()

  def started():
    for batch in split.batches(distributed.even(size)):
      task.check_labels('data', batch)
      (image,) = pixels(batch['image'])
      batch = distributed.by_row({**batch, 'image': image})
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
  if not total:
    raise UserError('the data have 0 images: at least one is needed')
  if kept:
    total['rows'] = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
  return total


def applied(network, variables, images):
  """What `network.apply` gives; no device waits for images of another."""
  alone = distributed.each_alone if network.until_quiet else lambda run: run
  return alone(network.apply)(variables, images)


def spiked(network, variables, images):
  """(activations, how often each neuron fired, the last step at which any
  neuron of an image did, 0 for none, and whether the image was quiet then)."""
  if network.until_quiet:
    run = distributed.each_alone(network.settle)
    _, activations, fired, last, quiet = run(variables, images)
  else:
    _, activations = network.apply(variables, images)
    spikes = {name: a != 0 for name, a in activations.items()}
    fired = {name: jnp.sum(x, 1) for name, x in spikes.items()}
    active = [x.reshape(*x.shape[:2], -1).any(-1) for x in spikes.values()]
    active, steps = jnp.stack(active).any(0), network.most_steps
    last = jnp.max(active * jnp.arange(1, steps + 1), 1)
    quiet = last < steps
  fired = {name: x.astype(jnp.float32) for name, x in fired.items()}
  return activations, fired, last, quiet


def kept_rows(task, batch, **rows):
  """What is kept of each image, if the task keeps anything."""
  truth = task.truth(batch)
  return {'truth': truth, **rows} if truth else {}
