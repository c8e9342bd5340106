"""The gradients of one optimiser step, and the ways to compute them.

The plain way is `jax.grad` on the whole batch: over several devices, batch norm
then takes the statistics of the global batch. Accumulation runs parts of the
batch one after another, each with its own statistics, for the memory of one
part. Statistics per device do the same side by side. In both, a part counts by
its real rows, so the gradient is that of the mean over the whole batch.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fastsnn_jax.distributed import AXIS, mesh
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
  per_device: bool = False,
):
  """Gradients, sums and batch statistics of one batch.

  Args:
    variables: {'params': …, 'batch_stats': …}.
    batch: normalised images [B, H, W, C], the task's labels, and 'mask'.
    network, task: static.
    dtype: in which the layers compute; parameters, statistics, neurons and the
      loss stay in float32 at least.
    accumulate: parts of the batch, one after another; divides B (over the
      devices).
    remat: compute each layer's insides again in the backward pass.
    per_device: batch norm takes statistics of its own on each device, in place
      of those of the whole batch.

  Returns:
    (gradients of the mean loss, the task's sums, new batch_stats).
  """

  def loss_of(params, statistics, batch):
    images = batch['image']
    if dtype != 'float32':
      images = images.astype(dtype)
    output, _, statistics = network.apply(
      {'params': params, 'batch_stats': statistics},
      images,
      train=True,
      remat=remat,
    )
    loss, sums = task.loss(output, batch)
    return loss, (sums, statistics)

  def whole(params, statistics, batch):
    found = jax.grad(loss_of, has_aux=True)(params, statistics, batch)
    grads, (sums, statistics) = found
    return grads, sums, statistics

  if per_device:
    grads, sums, statistics = jax.shard_map(
      functools.partial(_on_one_device, whole, accumulate),
      mesh=mesh(),
      in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
      out_specs=PartitionSpec(),
      check_vma=False,
    )(variables['params'], variables['batch_stats'], batch)
  elif accumulate > 1:
    grads, sums, statistics = _in_parts(
      whole, accumulate, variables['params'], variables['batch_stats'], batch
    )
  else:
    return whole(variables['params'], variables['batch_stats'], batch)
  count = jnp.where(sums['count'] > 0, sums['count'], 1)
  return jax.tree.map(lambda g: g / count, grads), sums, statistics


def _on_one_device(whole, accumulate, params, statistics, batch):
  grads, sums, statistics = _in_parts(
    whole, accumulate, params, statistics, batch
  )
  grads, sums = jax.lax.psum((grads, sums), AXIS)
  return grads, sums, jax.lax.pmean(statistics, AXIS)


def _in_parts(whole, parts, params, statistics, batch):
  """Summed gradients, each part's times its count; statistics in turn."""

  def split(x):  # row i goes to part i mod parts: each device keeps its rows
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

  def part(statistics, batch):
    grads, sums, statistics = whole(params, statistics, batch)
    return statistics, (
      jax.tree.map(lambda g: g * sums['count'], grads),
      sums,
    )

  def step(carry, batch):
    statistics, total = carry
    statistics, found = part(statistics, batch)
    return (statistics, jax.tree.map(jnp.add, total, found)), None

  batches = jax.tree.map(split, batch)
  one = jax.tree.map(lambda x: x[0], batches)
  if parts == 1:
    statistics, (grads, sums) = part(statistics, one)
    return grads, sums, statistics
  shapes = jax.eval_shape(part, statistics, one)[1]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (statistics, (grads, sums)), _ = jax.lax.scan(
    step, (statistics, zeros), batches
  )
  return grads, sums, statistics
