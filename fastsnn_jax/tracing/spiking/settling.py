"""A function until none of its neurons fires, see `nn.until_quiet`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.folded.static import hoisted
from fastsnn_jax.nn.quantizers import against, quantize_uniform
from fastsnn_jax.nn.quantizers import straight_through as replaced
from fastsnn_jax.nn.until_quiet import Settled, either, go_on
from fastsnn_jax.tracing.spiking.over_time import OverTime
from fastsnn_jax.tracing.walk import Walk


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def settled(network, variables, images) -> Settled:
  """`FunctionNetwork.settle`.

  The loop carries the state of each neuron, and of each difference the sum of
  what came in and of what was sent. All differences of a step follow its spikes
  in the same step: without a spike none moves, and what is quiet stays so.
  """
  neuron, size = network.neuron, images.shape[0]
  rule = dataclasses.replace(neuron, settle=0)
  first = OverTime(rule, settles=True, **network.products)
  network.walked(variables, images, first)
  start = first.states, first.sums[: first.lasting]

  def awake(states, thetas):
    charged = (x.fire(thetas[k], rule)[0] for k, x in states.items())
    return either(_busy(jnp.expand_dims(x, 1), size)[:, 0] for x in charged)

  def once(known, past):
    walk = OverTime(rule, past=past, **network.products)
    network.walked(*known, walk)
    spikes = walk.activations.values()
    fired = either(_busy(x, size)[:, 0] for x in spikes)
    after = walk.states, walk.sums[: first.lasting]
    return after, fired.astype(jnp.int32), awake(walk.states, walk.thetas)

  (states, _), late, loud = go_on(
    hoisted(once, (variables, images), start),
    *(start, awake(first.states, first.thetas), network.bound),
  )
  shown, fired = {}, {}
  for name, activity in first.activations.items():
    axis = min(activity.ndim - 1, 1)  # of time; a scalar has it first
    net = states[name].net(first.states[name]).astype(activity.dtype)
    theta = jnp.asarray(first.thetas[name], net.dtype)
    net = net * (against(theta, net.ndim) if theta.size > 1 else theta.ravel())
    more = states[name].fired
    net, more = (net, more) if axis else (net[0], more[0])
    net = jnp.expand_dims(net, axis)
    shown[name] = jnp.concatenate([activity, net], axis)
    fired[name] = jnp.sum(activity != 0, axis, jnp.int32) + more
  busy = either(_busy(x, size) for x in first.activations.values())
  times = jnp.arange(1, neuron.steps + 1, dtype=jnp.int32)
  last = jnp.max(jnp.where(busy, times, 0), 1)
  steps = jnp.where(late > 0, neuron.steps + late, last)
  output = network.read_out(variables, images, shown)
  return Settled(output, shown, fired, steps, ~loud)


class _Twin(Walk):
  """The quantised function at the settled activities, for its derivative."""

  def site(self, site, x, theta):
    theta = theta.reshape(()) if theta.size == 1 else theta
    twin = quantize_uniform(x, theta, site.levels, site.name)
    return replaced(self.given[site.name], twin)


@settled.defjvp
def _(network, primals, tangents):
  found, neuron = settled(network, *primals), network.neuron
  means = network.means(found.activations)

  def twin(variables, images):
    walk = _Twin(means, decoded=True, **network.products)
    _, output = network.walked(variables, images, walk)
    return output, walk.activations

  _, (output, dmeans) = jax.jvp(twin, primals, tangents)
  activations = {}
  for name, activity in found.activations.items():
    axis = min(activity.ndim - 1, 1)
    # Decoded, all entries together shall have this tangent.
    part = dmeans[name] * (neuron.steps / neuron.total_steps)
    part = jnp.broadcast_to(jnp.expand_dims(part, axis), activity.shape)
    activations[name] = part.astype(activity.dtype)
  none = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), found[2:])
  return found, Settled(output, activations, *none)


def _busy(spikes, size):
  """[size, T]: which images have a spike at which step, of [N, T, ...].

  A site without a row for each image counts for all of them.
  """
  moved = spikes != 0
  moved = moved[None] if moved.ndim == 1 else moved
  rows = jnp.any(moved, range(2, moved.ndim))
  if rows.shape[0] != size:
    rows = jnp.any(rows, 0, keepdims=True)
  return jnp.broadcast_to(rows, (size, rows.shape[1]))
