"""Each site by itself, with given activations: current, loss, missing bias."""

import jax
import jax.numpy as jnp

from fastsnn_jax.nn.integrate_and_fire import along_time
from fastsnn_jax.nn.quantizers import quantize_uniform, straight_through
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.spiking.over_time import OverTime
from fastsnn_jax.tracing.walk import Walk


class _Local(Walk):
  """Every site starts anew from the rates of the spiking network.

  So one reverse pass gives each parameter the gradient of its own sites.
  """

  def __init__(self, rates, targets, names):
    super().__init__()
    self.rates, self.targets, self.names = rates, targets, names
    self.losses = {}

  def site(self, site, x, theta):
    name = site.name
    rate = jax.lax.stop_gradient(self.rates[name])
    if name in self.names:
      theta = jax.lax.stop_gradient(theta)
      theta = theta.reshape(()) if theta.size == 1 else theta
      twin = quantize_uniform(x, theta, site.levels, name)
      error = straight_through(rate, twin) - self.targets[name]
      self.losses[name] = jnp.mean(jnp.square(error))
    return rate


def losses(network, variables, images, rates, targets, names):
  """{site: mean squared error of its rate}, with the twin's gradient."""
  walk, _ = network.walked(variables, images, _Local(rates, targets, names))
  return walk.losses


class _Fed(Walk):
  """Every site is fed with given activations, and its current is kept."""

  def __init__(self, given):
    super().__init__(given)
    self.currents = {}

  def site(self, site, x, theta):
    self.currents[site.name] = x
    return self.given[site.name]


def currents(network, variables, images, given):
  """({site: its current}, the output), all fed with given activations."""
  walk, output = network.walked(variables, images, _Fed(given))
  return walk.currents, output


class _Corrected(OverTime):
  """Each site gets what it lacks on the mean, behind the corrected ones."""

  def __init__(self, neuron, real, targets, axes):
    super().__init__(neuron)
    self.real, self.targets, self.axes = real, targets, axes
    self.found = {}

  def site(self, site, x, theta):
    answer, name = super().site(site, x, theta), site.name
    if name not in self.axes:
      return answer
    error, axis = self._error(name, answer), self.axes[name]
    axes = tuple(i for i in range(error.ndim) if i != axis)
    share = jnp.mean(self.real)
    lacking = jnp.mean(error, axes, keepdims=True) / share
    x = self.message(x).value if isinstance(x, Timed) else x[:, None]
    shown = jnp.arange(self.neuron.total_steps) < self.neuron.steps
    bias = jnp.where(along_time(shown, x), lacking[:, None], 0)
    answer = super().site(site, Timed(x + bias, graded=True), theta)
    after = jnp.mean(jnp.square(self._error(name, answer))) / share
    before = jnp.mean(jnp.square(error)) / share
    self.found[name] = lacking.ravel(), before, after
    return answer

  def _error(self, name, answer):
    error = self.targets[name] - self.neuron.decode(answer.value)
    return error * self.real.reshape(-1, *(1,) * (error.ndim - 1))


def corrections(network, variables, images, real, targets, axes):
  """{site: (mean error along its axis, mean square before, and after)}, of the
  images that are `real`, [B] of 1 and 0."""
  walk = _Corrected(network.neuron, real, targets, axes)
  return network.walked(variables, images, walk)[0].found


def movable(network, params, names) -> dict[str, jax.Array]:
  """{number of a leaf: its value}: what these sites hang on, without clips."""
  leaves = jax.tree.leaves(params)
  named = zip(network.layers, network.segments, strict=True)
  mine = {i for site, own in named if site.name in names for i in own}
  return {str(i): leaves[i] for i in sorted(mine)}


def moved(params, moving):
  """The parameters with some leaves replaced."""
  leaves, tree = jax.tree.flatten(params)
  for i, value in moving.items():
    leaves[int(i)] = value
  return jax.tree.unflatten(tree, leaves)
