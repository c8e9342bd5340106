"""Networks on disk: a tree of variables, and what rebuilds their network."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fastsnn_jax import architectures
from fastsnn_jax.checkpoint import functions, store
from fastsnn_jax.checkpoint.packed import pack, unpack
from fastsnn_jax.checkpoint.values import as_wide, fault
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded.fold import with_kernels
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.whole import PRECISIONS
from fastsnn_jax.tracing.function import FunctionNetwork

_DETECTOR = ('anchors', 'overlap', 'size')  # fields that only detectors use


def save(directory, network: Network, variables, **meta) -> None:
  """Writes a network and its variables; `load` brings both back.

  A checkpoint that is there is replaced when the new one is complete. `meta`
  are further JSON values.
  """
  given = isinstance(variables, Mapping) and 'params' in variables
  if not isinstance(network, Network) or not given:
    raise UserError(
      f'save: a {type(network).__name__} and a {type(variables).__name__} were '
      "given, but a Network and its variables {'params': …} are needed"
    )
  steps = None if network.bits == 32 else 2**network.bits - 1
  neuron = None
  if network.spiking:
    steps, neuron = network.neuron.steps, dataclasses.asdict(network.neuron)
  sized = _DETECTOR if network.anchors else ('size',) * bool(network.size)
  changed = ('precision',) * (network.precision != Network.precision)
  fields = ('model', 'bits', *sized, 'classes', 'mean', 'std', *changed)
  known = {name: getattr(network, name) for name in fields}
  activation = None if network.spiking else _named(network.neuron)
  known |= {'T': steps, 'neuron': neuron, 'activation': activation}
  if isinstance(network, FunctionNetwork):
    network.check_variables(variables)
    if network.folded:
      raise UserError(
        'save: a folded network of a function; save the one that fs.fold was '
        'given, and fold it again when it is loaded'
      )
    known['function'] = functions.described(network, variables)
    leaves = jax.tree.leaves(variables['params'])
    variables = {'params': functions.numbered(leaves)}
  meta = {**known, **meta}
  if network.folded:
    variables, meta = pack(variables), {**meta, 'folded': True}
  store.save(directory, variables, meta)


def load(
  directory, network: Network | None = None, *, function=None, params=None
) -> tuple[Network, dict]:
  """A network and its variables, ready to run.

  Args:
    directory: ann32, ann4, … or snn4, … of a workdir, or what `save` wrote.
    network: for a table of your own, which no name stands for; its neuron is
      replaced by the spiking one that was saved.
    function: for a network of `fs.from_function` or `fs.calibrate`, whose
      function is no part of the file: the same again.
    params: a tree of the function's parameters, of any values, where it is not
      made of dicts, lists and tuples.

  Raises:
    UserError: nothing there, not readable, or of another network or neuron;
      values that are not finite, negative variances, thetas not positive.
  """
  return load_with_meta(directory, network, function, params)[:2]


def load_with_meta(
  directory, network: Network | None = None, function=None, params=None
):
  """(network, variables, metadata), as `load`."""
  if not isinstance(network, Network | None):
    raise UserError(f'network={str(network)[:60]!r}: a Network is needed')
  tree, meta = store.load(directory)
  try:
    _check_fields(meta)
    if ('function' in meta) != (function is not None):
      raise UserError(
        'it holds a network of a function, which is no part of the file; give '
        'it again, fs.load(directory, function=…)'
        if 'function' in meta
        else 'it holds no network of a function; leave function=… out'
      )
    if function is not None:
      found = functions.rebuilt(function, params, tree, meta)
      return *found, meta
    if network is None:
      network = _rebuilt(meta)
    if (neuron := _neuron(meta, network)) != network.neuron:
      network = dataclasses.replace(network, neuron=neuron)
    if meta.get('folded'):
      tree = unpack(tree)
      network = _with_kernels(network, tree)
    variables = _checked(network, tree, meta)
  except UserError as error:
    raise UserError(f'{directory}: {error}') from error
  return network, jax.tree.map(jnp.asarray, variables), meta


def _with_kernels(network, tree):
  try:
    return with_kernels(network, tree)
  except (KeyError, AttributeError):
    raise UserError(
      'its folded kernels are not those of the network; give the one that was '
      'folded and saved'
    ) from None


def _numbers(value):
  return isinstance(value, list) and all(
    type(x) in (int, float) and math.isfinite(x) for x in value
  )


def _names(value):
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


# What `save` writes: (whether it is valid, what it must be).
_ALWAYS: dict[str, tuple[Callable, str]] = {
  'model': (lambda x: x is None or isinstance(x, str), 'a name or null'),
  'bits': (lambda x: type(x) is int, 'a whole number'),
  'classes': (_names, 'a list of names'),
  'mean': (_numbers, 'a list of numbers'),
  'std': (lambda x: _numbers(x) and min(x, default=1) > 0, 'positive numbers'),
  'T': (lambda x: x is None or type(x) is int, 'a whole number or null'),
  'neuron': (lambda x: x is None or isinstance(x, dict), 'settings or null'),
}
_SOMETIMES: dict[str, tuple[Callable, str]] = {
  'folded': (lambda x: isinstance(x, bool), 'true or false'),
  'precision': (lambda x: x in PRECISIONS, f'one of {", ".join(PRECISIONS)}'),
  'anchors': (
    lambda x: isinstance(x, list) and all(map(_numbers, x)),
    'pairs of numbers',
  ),
  'overlap': (lambda x: _numbers([x]) and 0 <= x <= 1, 'a number from 0 to 1'),
  'size': (lambda x: type(x) is int and x >= 0, 'a whole number from 0 up'),
}
_NEURON = {field.name for field in dataclasses.fields(IntegrateAndFire)}


def _check_fields(meta):
  """Raises a UserError for the first field that is missing or not valid."""
  if 'model' not in meta and 'identity' in meta:
    raise UserError('an unfinished stage, not a network; give ann4, snn4, …')
  for name in _ALWAYS:
    _check_there(name, meta)
  for name, (valid, needed) in (_ALWAYS | _SOMETIMES).items():
    if name in meta and not valid(meta[name]):
      raise UserError(
        f'its metadata have {name}={str(meta[name])[:60]}, but it must be '
        f'{needed}; save the network again'
      )
  if meta['neuron'] is not None:
    for name in sorted(_NEURON):
      _check_there(name, meta['neuron'])
    if more := sorted(set(meta['neuron']) - _NEURON):
      raise UserError(
        f'its metadata have {more[0]!r}, which is no setting of a neuron; save '
        'the network again'
      )
  if len(meta['mean']) != len(meta['std']):
    raise UserError(
      f'its metadata have mean={meta["mean"]}, but std={meta["std"]}; save the '
      'network again'
    )


def _check_there(name, meta):
  if name not in meta:
    near = difflib.get_close_matches(name, meta, 1)
    near = f' (there is {near[0]!r})' if near else ''
    raise UserError(f'its metadata lack {name!r}{near}; save the network again')


def _rebuilt(meta):
  if meta['model'] is None:
    raise UserError(
      'its network is no registered model; pass it as '
      'fs.load(directory, network=…)'
    )
  if 'anchors' in architectures.model(meta['model']).static:
    for name in _DETECTOR:
      _check_there(name, meta)
  settings = {key: meta[key] for key in _DETECTOR if key in meta}
  settings |= {key: tuple(meta[key]) for key in ('mean', 'std')}
  network = architectures.build(
    meta['model'], meta['bits'], meta['classes'], **settings
  )
  precision = meta.get('precision', network.precision)
  return dataclasses.replace(network, precision=precision)


def _neuron(meta, network):
  """The neuron that was saved; UserError if the network's contradicts it."""
  saved, was = network.neuron, meta.get('activation')  # not in older files
  if meta['neuron'] is None:
    contradicts = network.spiking or was not in (None, _named(saved))
  else:
    saved = was = IntegrateAndFire(**meta['neuron'])
    contradicts = network.spiking and network.neuron != saved
  if contradicts:
    raise UserError(
      f'it was saved with {was or "a neuron that does not spike"}, but the '
      f'network has {network.neuron}; give the network that was saved, and '
      'convert that by fs.to_spiking'
    )
  return saved


def _named(neuron):
  """A neuron without where its thetas started."""
  bits = f'({neuron.bits})' if isinstance(neuron, QuantRelu) else ''
  return f'{type(neuron).__name__}{bits}'


def _checked(network, tree, meta):
  """The variables, halves as float32; UserError where the table has others.

  Dimensions that follow the size and channels of the image may be any.
  """
  found = flatten_dict(tree)
  small, large = _shapes(network, 1, 1), _shapes(network, 2, 3)
  layers = {layer.name for layer in network.layers}
  wrong = layers ^ {path[1] for path in found if path[0] == 'params'}
  where = f'layer {min(wrong)!r}' if wrong else ''
  if small and large and not wrong and (wrong := small.keys() ^ found.keys()):
    where = '/'.join(min(wrong))
  if wrong:
    raise UserError(
      f'{where} is not in both the checkpoint and the network; the checkpoint '
      f'is of model {meta["model"]!r}'
    )
  for path, value in found.items():
    value = found[path] = as_wide(value)
    problem = fault(path, value)
    by_channel = path[-1] == 'theta' and np.ndim(value) == 1
    if small and large and by_channel:
      like = jax.ShapeDtypeStruct(_channels(network)[path[1]], jnp.float32)
      problem = problem or _misfit(value, like, like)
    elif small and large:
      problem = problem or _misfit(value, small[path], large[path])
    if problem:
      raise UserError(f'{"/".join(path)}: {problem}')
  return unflatten_dict(found)


def _misfit(value, small, large):
  """How an array differs from what networks for two images have, or None."""
  sizes = list(zip(value.shape, small.shape, large.shape, strict=False))
  fixed = all(mine == a for mine, a, b in sizes if a == b)
  if len(value.shape) != len(small.shape) or not fixed:
    return f'shape {value.shape}, but the network has {small.shape} there'
  floating = jnp.issubdtype(small.dtype, jnp.floating)
  if floating and not jnp.issubdtype(value.dtype, jnp.floating):
    return f'dtype {value.dtype}, but the network has {small.dtype} there'
  return None


@functools.lru_cache(maxsize=8)
def _channels(network):
  """{row: shape of its channels}."""
  plain = dataclasses.replace(network, neuron=Relu())
  image = _image(network, 1, 1)
  variables = jax.eval_shape(plain.init, jax.random.key(0), image)
  _, activations = jax.eval_shape(plain.apply, variables, image)
  return {name: x.shape[-1:] for name, x in activations.items()}


def _image(network, times, channels):
  side = network.size or 64
  if network.model is not None:
    side = network.size or architectures.model(network.model).size
  side = times * side // network.stride * network.stride + network.remainder
  return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)


def _shapes(network, times, channels):
  """{path: shape and type} of a network for such images; None if unknown."""
  try:
    image = _image(network, times, channels)
    return flatten_dict(jax.eval_shape(network.init, jax.random.key(0), image))
  except Exception:  # a table of one's own may take no such image
    return None
