"""Files that hold a state_dict, with and without PyTorch."""

import os
from collections.abc import Mapping

import numpy as np

from fastsnn_jax.errors import UserError

PREFIX = 'module.'  # of DataParallel and DDP


def state_dict(source):
  """Official keys without prefix to NumPy arrays."""
  if not isinstance(source, Mapping):
    source = _read(os.fspath(source))
  state = {}
  for key, value in source.get('state_dict', source).items():
    if hasattr(value, 'detach'):  # a tensor
      value = value.detach().cpu().numpy()
    state[key.removeprefix(PREFIX)] = np.asarray(value)
  return state


def _torch(path):
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f'{path}: PyTorch files need PyTorch, which is not installed; '
      "pip install 'fastsnn_jax[torch]', or use a .npz file"
    ) from error
  return torch


def _read(path):
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file')
  torch = None if path.endswith('.npz') else _torch(path)
  try:
    if torch is None:
      with open(path, 'rb') as file:
        return dict(np.load(file, allow_pickle=False))
    with torch.serialization.safe_globals(_numpy_in_pickles()):
      source = torch.load(path, weights_only=True, map_location='cpu')
  except Exception as error:  # a broken file fails in a dozen ways
    first = (str(error).splitlines() or [''])[0]
    raise UserError(
      f'{path}: cannot be read as a checkpoint ({first}); a file of torch.save '
      'or a .npz is needed'
    ) from error
  if not isinstance(source, Mapping):
    raise UserError(
      f'{path}: holds a {type(source).__name__}, but a state_dict is needed'
    )
  return source


def _numpy_in_pickles():
  """NumPy's arrays and numbers, which run no code, by their names in files."""
  # The official code stores best scores and rates; PyTorch would refuse it all.
  array, number = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
  kinds = [type(np.dtype(kind)) for kind in '?bBiIlLfde']
  named = [
    (function, f'numpy.{core}.multiarray.{name}')
    for core in ('core', '_core')  # before and since NumPy 2
    for name, function in (('_reconstruct', array), ('scalar', number))
  ]
  return [np.ndarray, np.dtype, *kinds, *named]


def write(state, path, *, bare, prefix):
  """Writes a `.npz`; else by `torch.save`, bare or as {'state_dict': ...}."""
  if path.endswith('.npz'):
    return np.savez(path, **state)
  torch = _torch(path)
  state = {prefix + k: torch.tensor(x) for k, x in state.items()}
  return torch.save(state if bare else {'state_dict': state}, path)
