"""A quantised network and its spiking twin: what feeds each of their sites.

A site is a row of a table that has a neuron, or a call of
`fs.quantize_activation` in a function.
"""

import dataclasses

import jax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import (
  IMAGE,
  check_network,
  own_variables,
  plain_products,
)
from fastsnn_jax.tracing.connections import OUTPUT
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.spiking import local


def check_ann(ann, variables) -> None:
  """Raises a UserError for what is no quantised network."""
  check_network(ann, variables, 'ann')
  if ann.spiking:
    raise UserError(
      'ann is spiking, but it must be the quantised network; the spiking one '
      'stands behind its variables'
    )


def check_twin(ann, network, variables, name) -> None:
  """Raises a UserError for what is no spiking twin of `ann`."""
  check_network(network, variables, name)
  rows, known = ([x.name for x in n.layers] for n in (network, ann))
  if not network.spiking or (rows, len(network.classes)) != (
    known,
    len(ann.classes),
  ):
    raise UserError(
      f'{name} must be a spiking twin of ann, as fs.to_spiking gives it, but '
      f'its neuron is {network.neuron}, its rows are {rows}, those of ann '
      f'{known}'
    )


def fed(network, variables, images, given):
  """({site: its current}, the output) for given activations, without time.

  Products are of the plain numbers, in full precision: what is given need not
  be a multiple of this network's own thetas.
  """
  if isinstance(network, FunctionNetwork):
    return local.currents(network, variables, images, given)
  exact, found = dataclasses.replace(network, precision='highest'), {}
  with plain_products():
    for layer in network.layers:
      inputs = [images if x == IMAGE else given[x] for x in layer.inputs]
      current = exact.currents(layer, variables, images, decoded=True)
      found[layer.name] = current(*inputs)
  return found, found.pop(network.layers[-1].name)


def readout_name(network) -> str:
  """What stands behind the last site."""
  if isinstance(network, FunctionNetwork):
    return OUTPUT
  return network.layers[-1].name


def leaves_between(network, variables, name) -> dict:
  """{path: array} of the parameters that lie between a site and those before.

  Of a table all variables of the row; theta is among them. Of a function all
  that no site before has for itself, where `name` is its output.
  """
  if not isinstance(network, FunctionNetwork):
    own = own_variables(variables, name)
    return {
      '/'.join(key.key for key in path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(own)
    }
  leaves = jax.tree.leaves(variables['params'])
  named = zip(network.layers, network.segments, strict=True)
  segments = {site.name: own for site, own in named}
  taken = {i for own in segments.values() for i in own}
  rest = [i for i in range(len(leaves)) if i not in taken]
  paths = [path for path, _ in network.leaves]
  return {paths[i]: leaves[i] for i in segments.get(name, rest)}
