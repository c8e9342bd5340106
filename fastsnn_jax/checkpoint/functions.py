"""Networks of functions on disk: all but the function itself."""

import dataclasses

import jax
import jax.numpy as jnp

from fastsnn_jax.checkpoint.values import as_wide, fault
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import IntegrateAndFire
from fastsnn_jax.tracing.calibrate import Calibrated
from fastsnn_jax.tracing.function import leaves_of
from fastsnn_jax.tracing.traced import from_function

_FIELDS = 'task', 'stride', 'remainder', 'overlap', 'size'


def numbered(leaves) -> dict:
  return {f'{i:05}': leaf for i, leaf in enumerate(leaves)}


def described(network, variables) -> dict:
  """What rebuilds the network when its function is given again, as JSON."""
  function, calibrated = network.function, None
  if isinstance(function, Calibrated):
    calibrated = {'bits': function.bits, 'caps': list(function.caps)}
  return {
    'sites': [[site.name, site.levels] for site in network.layers],
    'image': [list(network.image[0]), network.image[1]],
    'leaves': [[path, list(shape)] for path, shape in network.leaves],
    'tree': _skeleton(variables['params'], iter(range(len(network.leaves)))),
    'calibrated': calibrated,
    'anchors': network.anchors,
    **{name: getattr(network, name) for name in _FIELDS},
  }


def rebuilt(function, params, tree, meta):
  """(network, variables) of a function and what was saved of it.

  UserError where the function or the parameters are not those that were saved.
  """
  known = meta['function']
  leaves = [as_wide(x) for _, x in sorted(tree['params'].items())]
  for (path, _), leaf in zip(known['leaves'], leaves, strict=True):
    if problem := fault(('params', path), leaf):
      raise UserError(f'{path}: {problem}')
  leaves = list(map(jnp.asarray, leaves))
  if known['calibrated'] is not None:
    caps = tuple((name, cap) for name, cap in known['calibrated']['caps'])
    function = Calibrated(function, known['calibrated']['bits'], caps)
  if params is not None:
    params = _all_params(params, known)
    _check_like(params, known['leaves'])
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
  elif known['tree'] is None:
    raise UserError(
      'its parameters are no tree of dicts, lists and tuples alone; give a '
      'tree of the same kind, fs.load(directory, function=…, params=…)'
    )
  else:
    params = _filled(known['tree'], leaves)
  shape, dtype = known['image']
  network, variables = from_function(
    function,
    params,
    jnp.zeros((1, *shape), dtype),
    classes=meta['classes'],
    mean=tuple(meta['mean']),
    std=tuple(meta['std']),
    anchors=tuple(map(tuple, known['anchors'])),
    precision=meta.get('precision', Network.precision),
    **{name: known[name] for name in _FIELDS},
  )
  sites = [[site.name, site.levels] for site in network.layers]
  if sites != known['sites']:
    raise UserError(
      f'it was saved with the sites {known["sites"]}, names and levels, but '
      f'the function has {sites}; give the function that was saved'
    )
  if meta['neuron'] is not None:
    neuron = IntegrateAndFire(**meta['neuron'])
    network = dataclasses.replace(network, neuron=neuron)
  return network, variables


def _all_params(params, known):
  """With a theta for each site, where they are those of the function alone."""
  if known['calibrated'] is None:
    return params
  thetas = {
    path.removeprefix('theta/'): jnp.zeros(shape)
    for path, shape in known['leaves']
    if path.startswith('theta/')
  }
  own = [x for x in known['leaves'] if not x[0].startswith('theta/')]
  if _described({'function': params}) != own:
    return params
  return {'function': params, 'theta': thetas}


def _described(params):
  return [[path, list(shape)] for path, shape in leaves_of(params)]


def _check_like(params, leaves):
  found = _described(params)
  if found != leaves:
    odd = next((x for x in found if x not in leaves), ['nothing', []])
    raise UserError(
      f'params have {odd[0]} of shape {odd[1]}, which was not saved; give a '
      'tree like that of the network'
    )


def _skeleton(tree, numbers):
  """The tree as JSON, with a number for each leaf; None for other nodes."""
  if jax.tree_util.all_leaves([tree]):
    return next(numbers)
  if tree is None:
    return {'none': []}
  kind = type(tree)
  if kind is dict and all(isinstance(key, str) for key in tree):
    keys = sorted(tree)
    parts = [_skeleton(tree[key], numbers) for key in keys]
    named = {'dict': dict(zip(keys, parts, strict=True))}
  elif kind in (list, tuple):
    parts = [_skeleton(part, numbers) for part in tree]
    named = {kind.__name__: parts}
  else:
    return None
  return None if any(part is None for part in parts) else named


def _filled(skeleton, leaves):
  if isinstance(skeleton, int):
    return leaves[skeleton]
  ((kind, parts),) = skeleton.items()
  if kind == 'dict':
    return {key: _filled(part, leaves) for key, part in parts.items()}
  if kind == 'none':
    return None
  filled = [_filled(part, leaves) for part in parts]
  return tuple(filled) if kind == 'tuple' else filled
