"""A function until none of its neurons fires, see `nn.until_quiet`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.charge import busy_rows
from fastsnn_jax.nn.folded.static import hoisted
from fastsnn_jax.nn.quantizers import against, quantize_uniform
from fastsnn_jax.nn.quantizers import straight_through as replaced
from fastsnn_jax.nn.until_quiet import Settled, either, go_on
from fastsnn_jax.tracing.spiking import in_words
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
  first = in_words.walk(network, rule, settles=True)
  network.walked(variables, images, first)
  start = first.states, first.sums[: first.lasting]

  def awake(states, thetas):
    charged = (x.fire(thetas[k], rule)[0] for k, x in states.items())
    return either(_of_images(busy_rows(x), size) for x in charged)

  def once(known, past):
    walk = in_words.walk(network, rule, past=past)
    network.walked(*known, walk)
    after = walk.states, walk.sums[: first.lasting]
    return after, _latest(walk, size), awake(walk.states, walk.thetas)

  (states, _), late, loud = go_on(
    hoisted(once, (variables, images), start),
    *(start, awake(first.states, first.thetas), network.bound),
    first.at_once,
  )
  shown, fired, means = {}, {}, {}
  for name, activity in first.activations.items():
    axis = min(activity.ndim - 1, 1)  # of time; a scalar has it first
    net = states[name].net(first.states[name]).astype(activity.dtype)
    theta = jnp.asarray(first.thetas[name], net.dtype)
    theta = against(theta, net.ndim) if theta.size > 1 else theta.ravel()
    net, more = net * theta, states[name].fired
    total = states[name].net().astype(activity.dtype) * theta / neuron.steps
    net, more, total = (x if axis else x[0] for x in (net, more, total))
    means[name] = total
    net = jnp.expand_dims(net, axis)
    shown[name] = jnp.concatenate([activity, net], axis)
    fired[name] = jnp.sum(activity != 0, axis, jnp.int32) + more
  steps = jnp.where(late > 0, neuron.steps + late, _latest(first, size))
  output = network.behind(variables, images, means)
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


def _latest(walk, size):
  """[size]: the last step with a spike of any site, 0 for none."""
  lasts = (_of_images(x, size) for x in walk.lasts.values())
  return functools.reduce(jnp.maximum, lasts)


def _of_images(rows, size):
  """[size] of [N]: a site without a row for each image counts for all."""
  rows = rows if rows.shape[0] == size else jnp.max(rows, keepdims=True)
  return jnp.broadcast_to(rows, (size,))
