"""A state_dict out of what was put round it: entries, prefixes, modules."""

import os
import re
from collections.abc import Mapping

import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.torch_interop.files import as_array, read

PREFIX = 'module.'  # of DataParallel and DDP

# Parts of keys that wrappers of modules add, wherever they stand.
_ADDED = {'module', '_orig_mod'}
_ADDED |= {'_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
# Entries that hold a network, the likeliest first.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net')
_WRAPPERS += ('network', 'weights', 'params', 'module', 'checkpoint')
_WRAPPERS += ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema')
_OTHERS = re.compile('optim|sched|scaler|amp|rng', re.IGNORECASE)
_DEPTH = 8  # of entries in entries


def state_dict(source, first: str) -> dict[str, np.ndarray]:
  """Keys without what wrappers add to NumPy arrays, floats from float32 up.

  `first` is the key that a network of that kind has; what stands before it in
  the file is dropped from all keys. UserError for a file of something else.
  """
  if hasattr(source, 'state_dict'):
    source = source.state_dict()  # a module
  if not isinstance(source, Mapping):
    try:
      source = read(os.fspath(source))
    except TypeError as error:
      raise UserError(
        f'path_or_state_dict is a {type(source).__name__}, but it must be a '
        'path, or a state_dict of keys and arrays'
      ) from error
  source = _unwrapped(source)
  state: dict[str, np.ndarray] = {}
  names = _plain_names(source, first)
  for key, value in source.items():
    if (name := names[key]) in state:
      raise UserError(
        f'key {name!r} is there twice, as {key!r} too; keep one of them'
      )
    state[name] = as_array(key, value)
  return state


def entries(state, most: int = 6) -> str:
  """What a file holds, in a few words."""
  names = [str(key)[:60] for key in list(state)[:most]]
  more = [f'… ({len(state)} in all)'] if len(state) > most else []
  return ', '.join([*names, *more]) or 'nothing'


def _unwrapped(source, depth=0):
  """The state_dict in a mapping of more."""
  if any('.' in str(key) and _is_leaf(value) for key, value in source.items()):
    return source
  inner = {}
  for key, value in source.items():
    value = value.state_dict() if hasattr(value, 'state_dict') else value
    if isinstance(value, Mapping) and _holds_arrays(value):
      inner[key] = value
  if not inner:
    return source
  known = [key for key in _WRAPPERS if key in inner]
  known = known or [key for key in inner if not _OTHERS.search(str(key))]
  if not known or (known[0] not in _WRAPPERS and len(known) > 1):
    raise UserError(
      f'no state_dict can be told: the entries are {entries(source)}; give the '
      'one that is the network'
    )
  return _unwrapped(inner[known[0]], depth + 1)


def _is_leaf(value):
  return hasattr(value, 'shape') or isinstance(value, int | float)


def _holds_arrays(value, depth=0):
  if isinstance(value, Mapping) and depth < _DEPTH:
    return any(_holds_arrays(inner, depth + 1) for inner in value.values())
  return hasattr(value, 'shape')


def _plain_names(source, first):
  """{key: its name without what wrappers of modules add}"""
  names = {}
  for key in source:
    if not isinstance(key, str):
      raise UserError(
        f'key {str(key)[:60]!r} is a {type(key).__name__}, but keys are text; '
        'give a state_dict'
      )
    names[key] = '.'.join(x for x in key.split('.') if x not in _ADDED)
  before = {
    name[: -len(first)]
    for name in names.values()
    if f'.{name}'.endswith(f'.{first}')
  }
  if before:
    prefix = min(before, key=lambda text: ('ema' in text, len(text)))
    names = {key: name.removeprefix(prefix) for key, name in names.items()}
  return names
