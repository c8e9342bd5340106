"""From a function to a network: `from_function`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu
from fastsnn_jax.tracing import dependence
from fastsnn_jax.tracing.function import FunctionNetwork, leaves_of
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.spiking.over_time import OverTime
from fastsnn_jax.tracing.walk import trace


def from_function(
  fn: Callable,
  params,
  images,
  *,
  task: str = 'classification',
  classes=None,
  mean: tuple[float, ...] = (),
  std: tuple[float, ...] = (),
  allow_differences: bool = True,
  **fields,
) -> tuple[FunctionNetwork, dict[str, Any]]:
  """A JAX function as a network, which `fs.to_spiking` takes.

  Each `fs.quantize_activation` in the function is a neuron with theta = alpha.
  What lies between two of them may be linear in what comes of spikes, and then
  runs on spikes; a bias is shown for T steps and then withdrawn. Of any other
  operation the difference to the step before is sent (docs/own_network.md).

  Args:
    fn: (params, images) -> an array, or a tree of arrays, with the batch first:
      any framework's apply function at inference, hashable.
    params: its parameters, a tree of arrays of any kind.
    images: an example, [B, …], normalised floats.
    task: what it is for, by its registered name.
    classes: their number or names; None for as many as a classifier's output.
    mean, std: per channel, of images in 0..1.
    allow_differences: False refuses all graded messages but max pooling's.
    **fields: further ones of `fs.Network`: stride, remainder, anchors, overlap,
      size, precision.

  Returns:
    (network, {'params': params}).

  Raises:
    UserError: no site, sites of several bit widths, or an operation that has no
      meaning for spikes, with its file and line.

  >>> import fastsnn_jax as fs
  >>> def model(params, x):
  ...   x = x @ params['w']
  ...   x = fs.quantize_activation(x, params['alpha'], 2, name='hidden')
  ...   return x @ params['w'].T
  >>> params = {'w': jnp.eye(3), 'alpha': jnp.array(3.0)}
  >>> images = jnp.array([[0.3, 0.9, 5.0]])
  >>> network, variables = fs.from_function(model, params, images)
  >>> network.apply(variables, images)[0].tolist()
  [[0.0, 1.0, 3.0]]
  >>> spiking = fs.to_spiking(network, 'settled')
  >>> output, spikes = spiking.apply(variables, images)
  >>> spikes['hidden'].shape, output.tolist()
  ((1, 4, 3), [[0.0, 1.0, 3.0]])
  """
  _check_function(fn)
  images = jnp.asarray(images)
  if images.ndim < 2 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(
      f'images of shape {images.shape} and dtype {images.dtype}, but they must '
      'be a batch of normalised floats, [B, …]'
    )
  jaxpr, constants, tree = trace(fn, params, images)
  count = len(jax.tree.leaves(params))
  walk, needed = dependence.of(jaxpr, constants, count)
  sites = tuple(walk.sites)
  bits = _bits(sites)
  operations, output = _operations(jaxpr, constants, tree, params, images, bits)
  network = FunctionNetwork(
    sites,
    QuantRelu(bits),
    bits=fields.pop('bits', 32),
    classes=_classes(classes, task, output),
    mean=mean,
    std=std,
    task=task,
    function=fn,
    image=(images.shape[1:], images.dtype.name),
    leaves=leaves_of(params),
    sees_images=dependence.IMAGES in needed,
    segments=_segments(walk),
    operations=operations,
    **fields,
  )
  check_differences(network, allow_differences)
  return network, {'params': params}


def check_differences(network, allowed: bool) -> None:
  """Raises a UserError for graded messages where they are not allowed."""
  if network.differences and not allowed:
    line = network.differences[0]
    raise UserError(
      f'{line.place}: {line.name}: it is neither a site nor linear in the '
      'spikes, so it sends graded differences, which allow_differences=False '
      'refuses; put fs.quantize_activation there, or an affine operation'
    )


def _check_function(fn):
  if isinstance(fn, Network):
    raise UserError(
      'from_function: a Network, but a function (params, images) -> output is '
      'needed; fs.to_spiking takes the network as it is'
    )
  try:
    hash(fn)
    usable = callable(fn)
  except TypeError:
    usable = False
  if not usable:
    raise UserError(
      f'fn of type {type(fn).__name__}, but it must be a hashable function '
      '(params, images) -> output; define one with def'
    )


def _bits(sites):
  levels = {site.levels for site in sites}
  if not levels:
    raise UserError(
      'the function has no fs.quantize_activation, so no neuron; put one in '
      'place of each rectifier, or let fs.calibrate do it'
    )
  if len(levels) > 1:
    named = {site.levels: site.name for site in sites}
    raise UserError(
      'sites of several bit widths, '
      + ', '.join(
        f'{name!r} with {n + 1} levels' for n, name in sorted(named.items())
      )
      + '; all neurons share T, so give them the same bits'
    )
  return (levels.pop() + 1).bit_length() - 1


def _operations(jaxpr, constants, tree, params, images, bits):
  """(all operations over time, shapes of the output)."""
  neuron = IntegrateAndFire(2**bits - 1, settle=1)
  walk = OverTime(neuron, record=True, whole=neuron)

  def run(leaves, images):
    found = walk.run(jaxpr, constants, [*leaves, images])
    return [x.value if isinstance(x, Timed) else x for x in found]

  jax.eval_shape(run, jax.tree.leaves(params), images)
  shapes = [x.aval for x in jaxpr.outvars]
  return tuple(walk.operations), jax.tree.unflatten(tree, shapes)


def _segments(walk):
  clips = frozenset().union(*walk.clips.values())
  return tuple(
    tuple(sorted(i for i in walk.inputs[site.name] - clips if type(i) is int))
    for site in walk.sites
  )


def _classes(classes, task, output) -> tuple[str, ...]:
  if classes is None:
    leaves = jax.tree.leaves(output)
    one = len(leaves) == 1 and len(leaves[0].shape) == 2
    classes = leaves[0].shape[-1] if one else 0
  if isinstance(classes, int | np.integer):
    return tuple(map(str, range(classes)))
  return tuple(map(str, classes))
