r"""The mean of the sequential error, taken away by the biases.

For a firing layer behind the first, y the quantised network's activation and r
the spiking layer's rate, both over images and places of a channel c:

    bias_c <- bias_c + mean(y_c) - mean(r_c)

in the order of the layers, each behind those that are corrected already. There
is no gradient and no label in it. (Li et al. calibrate conversion errors by
biases too, of other neurons: https://arxiv.org/abs/2106.06984.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.conversion.carried import Carried
from fastsnn_jax.nn.integrate_and_fire import at_each_step
from fastsnn_jax.nn.tables.table import IMAGE
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.spiking import local

IMAGES = 512  # enough for a mean over images and places of a channel


class Bias(NamedTuple):
  """A parameter that moves a layer's current by itself, channel by channel."""

  leaf: int  # its number in the tree of params
  axis: int  # of the current, [B, …], that has the channels


def biases(network, variables, images) -> dict[str, Bias]:
  """{layer behind the first: its bias}, of those that have one of their own.

  Found by moving each vector at random: a bias moves the current by just that
  much, at every place of a channel and for every input, and no other layer.
  """
  names = [layer.name for layer in network.firing[1:]]
  params = variables['params']
  leaves = jax.tree_util.tree_leaves_with_path(params)
  random = np.random.default_rng(0)
  mine = _vectors(network, params, names)
  shifts = {
    i: np.asarray(random.uniform(1, 2, np.shape(leaves[i][1])), np.float32)
    for own in mine.values()
    for i in own
  }
  rounds = max(map(len, mine.values()), default=0)
  found: dict[str, Bias] = {}
  for turn in range(rounds):
    tried = {
      name: own[turn]
      for name, own in mine.items()
      if len(own) > turn and name not in found
    }
    if not tried:
      break
    moves = _moves(
      variables,
      images,
      {i: shifts[i] for i in tried.values()},
      network=network,
      names=tuple(tried),
    )
    for name, leaf in tried.items():
      if (axis := _channels(moves[name], shifts[leaf])) is not None:
        found[name] = Bias(leaf, axis)
  return found


def _vectors(network, params, names):
  """{layer: vectors of it alone, what is called a bias first}."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  if isinstance(network, FunctionNetwork):
    named = zip(network.layers, network.segments, strict=True)
    owned = {site.name: own for site, own in named}
  else:
    owned = {layer.name: [] for layer in network.layers}
    for i, (path, _) in enumerate(leaves):
      if path[-1].key != 'theta' and path[0].key in owned:
        owned[path[0].key].append(i)
  uses = [i for own in owned.values() for i in own]

  def rank(i):
    word = jax.tree_util.keystr(leaves[i][0], simple=True, separator='/')
    return word.rpartition('/')[2] not in ('bias', 'b', 'beta', 'offset')

  def is_vector(i):
    shape = np.shape(leaves[i][1])
    return shape and max(shape) == np.prod(shape) and uses.count(i) == 1

  return {
    name: sorted(filter(is_vector, owned[name]), key=rank) for name in names
  }


@functools.partial(jax.jit, static_argnames=('network', 'names'))
def _moves(variables, images, shifts, *, network, names):
  """{layer: how its current moves, [B, …]}."""
  leaves, tree = jax.tree.flatten(variables['params'])
  _, activities = jax.eval_shape(network.apply, variables, images)
  draw = functools.partial(np.random.default_rng(1).uniform, 0, 1)
  rates = {
    k: jnp.asarray(draw(x.shape), x.dtype) for k, x in activities.items()
  }

  def currents(moving):
    params = jax.tree.unflatten(
      tree, [moving.get(i, x) for i, x in enumerate(leaves)]
    )
    mine = {**variables, 'params': params}
    if isinstance(network, FunctionNetwork):
      return local.currents(network, mine, images, rates)[0]
    given = {IMAGE: images, **rates}
    return {
      layer.name: network.currents(layer, mine, images, decoded=True)(
        *(given[name] for name in layer.inputs)
      )
      for layer in network.firing
      if layer.name in names
    }

  at = {i: leaves[i] for i in shifts}
  tangents = {i: x.astype(at[i].dtype) for i, x in shifts.items()}
  moved = jax.jvp(currents, (at,), (tangents,))[1]
  return {name: moved[name] for name in names}


def _channels(move, shift) -> int | None:
  """The axis along which, and along it alone, a current moved by the shift."""
  value, move = shift.ravel(), np.asarray(move)
  for axis in reversed(range(1, move.ndim)):
    if move.shape[axis] == value.size:
      shape = [1] * move.ndim
      shape[axis] = -1
      if np.allclose(move, value.reshape(shape), rtol=1e-4, atol=1e-4):
        return axis
  return None


def corrected(ann, snn, frozen, tuned, images, real=None):
  """One sweep: (variables, {layer behind the first: errors}).

  Args:
    ann, snn: the quantised network and its spiking twin.
    frozen, tuned: their variables.
    images: [batches, B, …], normalised.
    real: [batches, B], 1, and 0 for images that only fill up a batch.

  The errors are mean squares before and after the layer's correction; (None,
  None) where it has no bias of its own.
  """
  found = biases(ann, frozen, images[0, :1])
  walk = _of_function if isinstance(ann, FunctionNetwork) else _of_table
  real = jnp.ones(images.shape[:2]) if real is None else jnp.asarray(real)
  return walk(ann, snn, frozen, tuned, images, real, found)


def _of_table(ann, snn, frozen, tuned, images, real, found):
  carried, errors = Carried(ann, snn, images), {}
  for layer in snn.firing:
    target = carried.target(layer, frozen)
    spikes, errors[layer.name] = carried.fired(layer, tuned), (None, None)
    if bias := found.get(layer.name):
      theta = tuned['params'][layer.name]['theta']
      measure = functools.partial(
        _gap,
        target,
        real=real,
        theta=theta,
        axis=bias.axis,
        steps=snn.neuron.steps,
      )
      gap, before = measure(spikes)
      tuned = _moved(tuned, bias.leaf, gap)
      spikes = carried.fired(layer, tuned)
      errors[layer.name] = float(before), float(measure(spikes)[1])
    carried.keep(layer, target, spikes)
  del errors[snn.firing[0].name]
  return tuned, errors


def _of_function(ann, snn, frozen, tuned, images, real, found):
  """One walk, with all images at once."""
  shown = images.reshape(-1, *images.shape[2:])
  axes = tuple((name, bias.axis) for name, bias in found.items())
  real = real.ravel()
  gaps = _walked(frozen, tuned, shown, real, ann=ann, snn=snn, axes=axes)
  errors = {site.name: (None, None) for site in snn.firing[1:]}
  for name, (gap, before, after) in gaps.items():
    tuned = _moved(tuned, found[name].leaf, gap)
    errors[name] = float(before), float(after)
  return tuned, errors


def _moved(variables, leaf, gap):
  leaves, tree = jax.tree.flatten(variables['params'])
  old = leaves[leaf]
  leaves[leaf] = old + gap.reshape(old.shape).astype(old.dtype)
  return {**variables, 'params': jax.tree.unflatten(tree, leaves)}


@functools.partial(jax.jit, static_argnames=('axis', 'steps'))
def _gap(target, spikes, *, real, theta, axis, steps):
  """(mean of target - rate per channel, mean of its square)."""
  rate = jnp.sum(spikes, 2, dtype=target.dtype)
  theta = at_each_step(theta, rate)
  real = real.reshape(*real.shape, *(1,) * (rate.ndim - 2))
  error = (target - rate * theta / steps) * real
  axes = tuple(i for i in range(error.ndim) if i != axis + 1)
  share = jnp.mean(real)
  return jnp.mean(error, axes) / share, jnp.mean(jnp.square(error)) / share


@functools.partial(jax.jit, static_argnames=('ann', 'snn', 'axes'))
def _walked(frozen, tuned, images, real, *, ann, snn, axes):
  _, targets = ann.apply(frozen, images)
  return local.corrections(snn, tuned, images, real, targets, dict(axes))
