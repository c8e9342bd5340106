"""From a network to the same one with kernels that are ready, for inference."""

import dataclasses
import functools
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.folded.together import Packing
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.network import Network, check_network
from fastsnn_jax.nn.quantizers import (
  apot_denominator,
  divide,
  quantize_weight,
  wider,
)
from fastsnn_jax.nn.synapses import Chain, Concat, Residual
from fastsnn_jax.nn.tables.table import own_variables
from fastsnn_jax.nn.weights import Apot, EightBit


def fold(network: Network, variables):
  r"""The same network with its weights ready: for inference, and faster.

    current = scale (x * kernel) + offset

  Quantised kernels become whole numbers, int8 where they fit, whose step is in
  the scale; float kernels stay as they are. Batch norm, gamma (y - mean) /
  sqrt(var + 1e-5) + beta, becomes a scale and an offset a channel. `Conv` and
  `Dense` are folded wherever they stand in a row; a synapse of your own stays.

  Names of rows, thetas and `apply` are as before, and so are the levels and
  spikes, but where a current lies within rounding of a threshold. In a spiking
  network the spikes of all steps travel as words of two bits a step, and where
  the kernel is whole several steps share one float32 product, s_1 + P s_2 + …,
  exactly: P is a power of two above twice the largest sum of magnitudes of an
  output channel. Only activations that are used become trains of floats.

  Of a function all that hangs on its parameters alone is computed once: its
  quantised kernels, the factors of its batch norms. The values stand in the
  variables, in place of the parameters that only they needed; a kernel that is
  whole numbers up to 127 times one step, up to rounding, as those numbers. Its
  spikes travel as words too, and where such a kernel meets spikes of one height
  several steps share a product. Where what is kept has another shape for each
  size of a batch, a function stays as it is.

  `fs.evaluate`, `fs.compare`, `fs.classify`, `fs.detect`, `fs.segment` and
  `fs.convert` fold by themselves; `fs.save` packs whole numbers, and takes no
  folded function. There is no training, and no gradient of the weights, behind
  it.

  Args:
    network, variables: float, quantised or spiking; a folded one stays as it
      is. Under `jit`, where kernels are not known, whole numbers stay floats
      and each step has its own product.

  Returns:
    (network, variables): kernel, scale and offset in place of the parameters.

  Raises:
    UserError: no network, or not its variables; later, for train=True.

  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> network = fs.to_spiking(fs.build('small_resnet8', bits=2))
  >>> images = jnp.ones((1, 8, 8, 1))
  >>> variables = network.init(jax.random.key(0), images)
  >>> folded, ready = fs.fold(network, variables)
  >>> ready['params']['layer1.0.part1']['synapse']['kernel'].dtype.name
  'int8'
  >>> output, spikes = folded.apply(ready, images)
  >>> spikes['layer1.0.part1'].shape
  (1, 3, 8, 8, 16)
  """
  check_network(network, variables)
  if network.folded:
    return network, variables
  if network.fold is not None:
    return network.fold(variables)
  ready = kernels(network, variables)
  return with_kernels(network, ready), ready


def kernels(network, variables):
  """The variables that `fold` gives."""
  if network.folded:
    return variables
  return _narrowed(_computed(variables, network=network))


def ready(network, variables, known=True):
  """`fold`, for functions that are called again and again.

  What was found for the last arrays is kept. Without spikes no static field
  follows the weights; unless kernels are `known`, no type either, and nothing
  waits for them: a network whose weights change is compiled once.
  """
  if network.folded:
    return network, variables
  check_network(network, variables)
  leaves = jax.tree.leaves(variables)
  lasting = all(
    isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    for x in leaves
  )
  key = network, jax.tree.structure(variables), known
  last, refs, found = _LAST[0]
  if last == key and all(x() is y for x, y in zip(refs, leaves, strict=True)):
    return found
  packed = known and network.spiking
  if network.fold is not None:
    found = network.fold(variables, known, packed)
  else:
    own = _narrowed(_computed(variables, network=network), known)
    found = with_kernels(network, own, packed), own
  if lasting:  # what may be written to may change
    _LAST[0] = key, [weakref.ref(x) for x in leaves], found
  return found


_LAST: list = [(None, (), None)]


def with_kernels(network, variables, known=True):
  """The table of `Folded` rows for such variables, whose kernels are known."""
  rows = []
  for layer in network.layers:
    own = variables['params'].get(layer.name, {}).get('synapse', {})
    synapse = _synapse(layer.synapse, own, known)
    rows.append(dataclasses.replace(layer, synapse=synapse))
  return dataclasses.replace(network, layers=tuple(rows))


def _inner(part):
  """[(name, part)] of what a synapse is made of."""
  named = {}
  if type(part) is Residual:
    named = {'body': part.body, 'shortcut': part.shortcut}
  elif type(part) in (Chain, Concat):
    named = {f'parts_{i}': inner for i, inner in enumerate(part.parts)}
  return {name: inner for name, inner in named.items() if inner is not None}


def _foldable(part):
  return type(part) in (Conv, Dense)


def _synapse(part, tree, known):
  if part is None:
    return None
  if type(part) is Folded:
    part = part.part
  if _foldable(part):
    return Folded(part, _packing(part, tree['kernel']) if known else Packing())
  inner = {
    name: _synapse(x, tree.get(name, {}), known)
    for name, x in _inner(part).items()
  }
  if type(part) is Residual:
    return Residual(inner['body'], inner.get('shortcut'))
  if type(part) in (Chain, Concat):
    names = (f'parts_{i}' for i in range(len(part.parts)))
    return type(part)(tuple(map(inner.get, names)))
  return part


def _packing(part, kernel) -> Packing:
  if not jnp.issubdtype(kernel.dtype, jnp.integer):
    return Packing()
  return Packing.of(kernel, alone=getattr(part, 'groups', 1) > 1)


@functools.partial(jax.jit, static_argnames='network')
def _computed(variables, *, network):
  """The folded variables, but for the type of their whole numbers."""
  folded: dict[str, dict[str, Any]] = {'params': {}, 'batch_stats': {}}
  for layer in network.layers:
    own = own_variables(variables, layer.name)
    if 'params' in own:
      folded['params'][layer.name] = dict(own['params'])
    try:
      ready = _tree(layer.synapse, own_variables(own, 'synapse'))
    except KeyError as error:
      raise UserError(
        f'layer {layer.name!r}: the variables have no {error} for it; give '
        'those of this network, as its init or fs.load gives them'
      ) from None
    for kind, tree in ready.items():
      folded[kind].setdefault(layer.name, {})['synapse'] = tree
  return folded


def _tree(part, tree):
  """{'params': …, 'batch_stats': …} of a synapse, folded."""
  if _foldable(part):
    return {'params': _ready(part, tree)}
  if not (inner := _inner(part)):
    return tree
  found = {
    name: _tree(x, own_variables(tree, name)) for name, x in inner.items()
  }
  kinds = {kind for own in found.values() for kind in own}
  return {kind: _own_of(found, kind) for kind in kinds}


def _own_of(found, kind):
  return {name: own[kind] for name, own in found.items() if kind in own}


def _ready(part, tree):
  """kernel or, of whole numbers, 'whole'; scale and offset a channel."""
  params = tree['params']
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
  norm, stats = params['norm'], tree['batch_stats']['norm']
  factor = norm['scale'] / jnp.sqrt(stats['var'] + 1e-5)
  offset = norm['bias'] - stats['mean'] * factor
  return {**ready, 'scale': step * factor, 'offset': offset}


def _narrowed(tree, known=True):
  """Whole numbers, if they are known in the smallest type that holds them."""
  if not isinstance(tree, Mapping):
    return tree
  tree = {name: _narrowed(part, known) for name, part in tree.items()}
  if 'whole' not in tree:
    return tree
  kernel = tree.pop('whole')
  if known and not isinstance(kernel, jax.core.Tracer):
    kernel = np.asarray(kernel)
    largest = np.abs(kernel).max(initial=0)
    for dtype in (np.int8, np.int16):
      if largest <= np.iinfo(dtype).max:  # NaN is not
        kernel = jnp.asarray(kernel.astype(dtype))
        break
  return {'kernel': kernel, **tree}
