"""The gradients of one optimiser step, and the ways to compute them.

The plain way is `jax.grad` on the whole batch: over several devices, batch norm
then takes the statistics of the global batch. Accumulation runs parts of the
batch one after another, each with its own statistics, for the memory of one
part; statistics per device do the same side by side. A part counts by its real
rows, so the gradient is that of the mean over the whole batch.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fastsnn_jax import distributed
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks import Task


def gradients(
  variables,
  batch,
  *,
  network: Network,
  task: Task,
  dtype: str = 'float32',
  accumulate: int = 1,
  remat: bool = False,
  batch_stats: str = 'global',
  sparsity: float = 0.0,
):
  """Gradients, sums and batch statistics of one batch.

  Args:
    variables: {'params': …, 'batch_stats': …}.
    batch: normalised images [B, H, W, C], the task's labels, and 'mask'.
    network, task: static.
    dtype, accumulate, remat, batch_stats: as of the config's `Compute`;
      parameters, statistics, neurons and the loss stay in float32 at least.
    sparsity: weight of `mean_levels` in the loss, not in the sums.

  Returns:
    (gradients of the mean loss, the task's sums, new batch_stats).
  """

  def loss_of(params, statistics, batch):
    variables = {'params': params, 'batch_stats': statistics}
    images = batch['image']
    if dtype != 'float32':
      images = images.astype(dtype)
    output, activations, statistics = network.apply(
      variables, images, train=True, remat=remat
    )
    loss, sums = task.loss(output, batch)
    if sparsity:
      loss += sparsity * mean_levels(network, variables, activations)
    return loss, (sums, statistics)

  differentiate = jax.grad(loss_of, has_aux=True)
  arguments = variables['params'], variables['batch_stats'], batch
  per_device = batch_stats == 'device'
  if accumulate == 1 and not per_device:
    grads, (sums, statistics) = differentiate(*arguments)
    return grads, sums, statistics
  total = functools.partial(_total, differentiate, accumulate)
  if per_device:
    total = jax.shard_map(
      functools.partial(_over_devices, total),
      mesh=distributed.mesh(),
      in_specs=(P(), P(), P(distributed.AXIS)),
      out_specs=P(),
      check_vma=False,
    )
  grads, sums, statistics = total(*arguments)
  count = jnp.where(sums['count'] > 0, sums['count'], 1)
  return jax.tree.map(lambda g: g / count, grads), sums, statistics


def mean_levels(network, variables, activations):
  """The sum over the sites of their mean level, or rate, from 0 to 1."""
  thetas, total = network.thetas(variables), 0.0
  for name, activity in activations.items():
    level = network.neuron.decode(activity).astype(thetas[name].dtype)
    total += jnp.mean(level / thetas[name])
  return total


def _over_devices(total, params, statistics, batch):
  grads, sums, statistics = total(params, statistics, batch)
  grads, sums = jax.lax.psum((grads, sums), distributed.AXIS)
  return grads, sums, jax.lax.pmean(statistics, distributed.AXIS)


def _total(differentiate, parts, params, statistics, batch):
  """Summed gradients, each part's times its count; statistics in turn."""

  def part(statistics, batch):
    grads, (sums, statistics) = differentiate(params, statistics, batch)
    grads = jax.tree.map(lambda g: g * sums['count'], grads)
    return statistics, (grads, sums)

  def add(carry, batch):
    statistics, total = carry
    statistics, summand = part(statistics, batch)
    return (statistics, jax.tree.map(jnp.add, total, summand)), None

  def split(x):  # row i goes to part i mod parts: each device keeps its rows
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

  if parts == 1:
    statistics, (grads, sums) = part(statistics, batch)
    return grads, sums, statistics
  batches = jax.tree.map(split, batch)
  one = jax.tree.map(lambda x: x[0], batches)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, statistics, one)[1])
  (statistics, (grads, sums)), _ = jax.lax.scan(
    add, (statistics, zeros), batches
  )
  return grads, sums, statistics
