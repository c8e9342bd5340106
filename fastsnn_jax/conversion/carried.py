"""Activities of both networks, carried down a table row by row.

Who goes through the rows in order so runs each of them once for all images,
O(L) rows in place of O(L^2). Rows get names of their own, so equal ones share a
compiled program.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from fastsnn_jax import distributed
from fastsnn_jax.nn.integrate_and_fire import at_each_step
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.tables.table import IMAGE, Layer, own_variables
from fastsnn_jax.tracing.function import FunctionNetwork

BYTES = 4 * 10**9  # of activities that are kept, on each device
ROW = 'row'


def carries(network: Network) -> bool:
  """Whether a spiking network's rows can be run one by one for all steps."""
  return not isinstance(network, FunctionNetwork) and not network.until_quiet


def alone(layer: Layer) -> Layer:
  """The row under names that say nothing of its place."""
  names = [
    name if name == IMAGE else f'input{i}'
    for i, name in enumerate(layer.inputs)
  ]
  return dataclasses.replace(layer, name=ROW, inputs=tuple(names))


def part_of(layer: Layer, variables):
  """The variables of the row, and the thetas of what feeds it, for `alone`."""
  mine = own_variables(variables, layer.name)
  part = {kind: {ROW: tree} for kind, tree in mine.items()}
  part.setdefault('batch_stats', {})
  for ours, name in zip(alone(layer).inputs, layer.inputs, strict=True):
    if (theta := variables['params'].get(name, {}).get('theta')) is not None:
      part['params'][ours] = {'theta': theta}
  return part


def put_back(layer: Layer, variables, part):
  """The variables with the row of a part."""
  own = own_variables(part, ROW)
  return {
    kind: {**tree, layer.name: own[kind]} if kind in own else tree
    for kind, tree in variables.items()
  }


def respond(network, row, part, inputs):
  """[B, …] or [B, T, …] of a row `alone`, as `network.apply` has it."""
  run = network.currents(row, part, inputs[0])
  static = tuple(name == IMAGE for name in row.inputs)
  theta = part['params'][ROW].get('theta')
  return network.neuron.respond(run, inputs, theta, static=static)


def trains(row, part, coded):
  """{name: activity} of coded inputs, and of the row if its spikes are there.

  Spikes are kept as -1, 0, 1 in a byte each.
  """
  found = {}
  for name, x in zip((*row.inputs, ROW), coded, strict=False):
    if name != IMAGE:
      theta = part['params'][name]['theta']
      x = x.astype(theta.dtype)
      x = x * at_each_step(theta, x)
    found[name] = x
  return found


class Carried:
  """What the rows give for [batches, B, …] images, as far as it is needed."""

  def __init__(self, ann: Network, snn: Network, images):
    self.ann, self.snn = ann, snn
    self.targets, self.spikes = {IMAGE: images}, {IMAGE: images}

  def target(self, layer, frozen):
    inputs = tuple(self.targets[name] for name in layer.inputs)
    part, row = part_of(layer, frozen), alone(layer)
    return _levels(part, inputs, network=self.ann, row=row)

  def fired(self, layer, tuned):
    """Spikes -1, 0, 1 of the row, behind what is kept."""
    part, row = part_of(layer, tuned), alone(layer)
    return _spikes(part, self.inputs(layer), network=self.snn, row=row)

  def inputs(self, layer):
    return tuple(self.spikes[name] for name in layer.inputs)

  def keep(self, layer, target, spikes):
    """Goes on to the next row; what no later one needs is let go."""
    later = _later(self.snn, layer)
    for kept, x in (self.targets, target), (self.spikes, spikes):
      kept[layer.name] = x
      for name in kept.keys() - later:
        del kept[name]


def _later(network, layer) -> set[str]:
  rows = network.firing
  rest = rows[rows.index(layer) + 1 :]
  return {name for row in rest for name in row.inputs}


def needed(ann, snn, variables, shape) -> float:
  """Bytes of what is kept at most for an image [H, W, C]."""
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  _, found = jax.eval_shape(ann.apply, variables, image)
  sizes = {name: math.prod(x.shape) for name, x in found.items()}
  each = {name: (4 + snn.neuron.total_steps) * n for name, n in sizes.items()}
  each[IMAGE] = 4 * math.prod(shape)
  if not carries(snn):
    return sum(each.values())
  alive, most = {IMAGE}, 0
  for layer in snn.firing:
    alive.add(layer.name)
    most = max(most, sum(each[name] for name in alive))
    alive &= _later(snn, layer)
  return most


@functools.partial(jax.jit, static_argnames=('network', 'row'))
def _levels(part, inputs, *, network, row):
  def run(inputs):
    return respond(network, row, part, distributed.keep_by_row(inputs))

  return jax.lax.map(run, inputs)


@functools.partial(jax.jit, static_argnames=('network', 'row'))
def _spikes(part, inputs, *, network, row):
  def run(inputs):
    given = trains(row, part, distributed.keep_by_row(inputs)).values()
    return jnp.sign(respond(network, row, part, tuple(given))).astype(jnp.int8)

  return jax.lax.map(run, inputs)
