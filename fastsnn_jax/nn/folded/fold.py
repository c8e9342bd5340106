"""From a network to the same one with kernels that are ready, for inference."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.network import Network, check_network, own_variables
from fastsnn_jax.nn.quantizers import (
  apot_denominator,
  divide,
  quantize_weight,
  wider,
)
from fastsnn_jax.nn.synapses import Chain, Concat, Residual
from fastsnn_jax.nn.weights import Apot, EightBit


def fold(network: Network, variables):
  check_network(network, variables)
  if network.folded:
    return network, variables
  ready = _computed(variables, network=network)
  return packed(network, _narrowed(ready))


def packed(network, variables):
  """(the table of `Folded` rows for such variables, these)."""
  rows = []
  for layer in network.layers:
    own = variables['params'].get(layer.name, {}).get('synapse', {})
    synapse = _synapse(layer.synapse, own)
    rows.append(dataclasses.replace(layer, synapse=synapse))
  return dataclasses.replace(network, layers=tuple(rows)), variables


def _inner(part):
  """[(name, part)] of what a synapse is made of."""
  match part:
    case Residual():
      named = {'body': part.body, 'shortcut': part.shortcut}
    case Chain() | Concat():
      named = {f'parts_{i}': inner for i, inner in enumerate(part.parts)}
    case _:
      named = {}
  return {name: inner for name, inner in named.items() if inner is not None}


def _foldable(part):
  return type(part) in (Conv, Dense)


def _synapse(part, tree):
  if part is None:
    return None
  if _foldable(part):
    return Folded(part, _base(tree['kernel']))
  inner = {k: _synapse(x, tree.get(k, {})) for k, x in _inner(part).items()}
  match part:
    case Residual():
      return Residual(inner['body'], inner.get('shortcut'))
    case Chain() | Concat():
      count = range(len(part.parts))
      return type(part)(tuple(inner.get(f'parts_{i}') for i in count))
  return part


def _base(kernel) -> int:
  """The power of two above twice the largest sum of an output channel."""
  if not jnp.issubdtype(kernel.dtype, jnp.integer):
    return 0
  whole = np.abs(np.asarray(kernel, np.int64))
  most = whole.sum(tuple(range(whole.ndim - 1))).max(initial=0)
  return 2 ** int(2 * most).bit_length()


@functools.partial(jax.jit, static_argnames='network')
def _computed(variables, *, network):
  """The folded variables, but for the type of their whole numbers."""
  folded = {'params': {}, 'batch_stats': {}}
  for layer in network.layers:
    own = own_variables(variables, layer.name)
    if 'params' in own:
      folded['params'][layer.name] = dict(own['params'])
    for kind, tree in _tree(layer.synapse, _own(own, 'synapse')).items():
      folded[kind].setdefault(layer.name, {})['synapse'] = tree
  return folded


def _own(tree, name):
  return {kind: part[name] for kind, part in tree.items() if name in part}


def _tree(part, tree):
  """{'params': …, 'batch_stats': …} of a synapse, folded."""
  if _foldable(part):
    return {'params': _ready(part, **tree)}
  if not (inner := _inner(part)):
    return tree
  found = {name: _tree(x, _own(tree, name)) for name, x in inner.items()}
  kinds = {kind for own in found.values() for kind in own}
  return {kind: _own_of(found, kind) for kind in kinds}


def _own_of(found, kind):
  return {name: own[kind] for name, own in found.items() if kind in own}


def _ready(part, params, batch_stats=None):
  """kernel or, of whole numbers, 'whole'; scale and offset a channel."""
  kernel = params['kernel']
  kernel = kernel.astype(wider(kernel.dtype, jnp.float32))
  match part.weights:
    case EightBit():
      step = jnp.max(kernel)
      codes = jnp.round(divide(kernel, step) * 127)
      ready, step = {'whole': codes}, step / 127
    case Apot(bits, gradient):
      alpha = params['weight_alpha'].astype(kernel.dtype)
      step = alpha / apot_denominator(bits)
      values = quantize_weight(kernel, alpha, bits, gradient)
      ready = {'whole': jnp.round(values / step)}
    case _:
      ready, step = {'kernel': kernel}, jnp.ones((), kernel.dtype)
  if not part.norm:
    bias = params['bias']
    return {**ready, 'scale': jnp.full(bias.shape, step), 'offset': bias}
  norm, stats = params['norm'], batch_stats['norm']
  factor = norm['scale'] / jnp.sqrt(stats['var'] + 1e-5)
  offset = norm['bias'] - stats['mean'] * factor
  return {**ready, 'scale': step * factor, 'offset': offset}


def _narrowed(tree):
  """Whole numbers in the smallest type that holds them."""
  if not isinstance(tree, Mapping):
    return tree
  tree = {name: _narrowed(part) for name, part in tree.items()}
  if 'whole' not in tree:
    return tree
  kernel = tree.pop('whole')
  if not isinstance(kernel, jax.core.Tracer):
    largest = float(jnp.max(jnp.abs(kernel), initial=0))
    for dtype in (jnp.int8, jnp.int16):
      if largest <= jnp.iinfo(dtype).max:  # NaN is not
        kernel = kernel.astype(dtype)
        break
  return {'kernel': kernel, **tree}
