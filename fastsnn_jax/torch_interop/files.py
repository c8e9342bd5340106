"""Files of a state_dict, and what other files are; no code in one is run."""

import os
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from fastsnn_jax.checkpoint.values import as_wide
from fastsnn_jax.errors import UserError


def as_array(key, value) -> np.ndarray:
  """A tensor, or what a file has for one; UserError for anything else."""
  try:
    if hasattr(value, 'detach'):  # a tensor
      value = value.detach().cpu()
      value = value.to_dense() if value.layout != _strided(value) else value
      if value.is_floating_point() and value.dtype.itemsize < 4:
        value = value.float()  # NumPy has no bfloat16
      value = value.resolve_conj().numpy()
    elif isinstance(value, _Array):
      value = value.array()
    value = np.asarray(value)
    if value.dtype == 'V2':  # what a .npz makes of bfloat16
      value = value.view(ml_dtypes.bfloat16)
    if value.dtype.hasobject:
      raise TypeError('Python objects')
    return as_wide(value)
  except Exception as error:  # tensors fail in many ways
    kind = type(value).__name__
    raise UserError(
      f'key {key!r}: a {kind} that is no array of numbers; give a state_dict '
      'of ordinary tensors'
    ) from error


def _strided(tensor):
  import torch

  return torch.strided if isinstance(tensor, torch.Tensor) else tensor.layout


def _torch(path):
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f'{path}: PyTorch files need PyTorch, which is not installed; '
      "pip install 'fastsnn_jax[torch]', or use a .npz file"
    ) from error
  return torch


def read(path) -> Mapping:
  """What a file of arrays holds; UserError for one of something else."""
  if not os.path.isfile(path):
    raise UserError(f'{path}: no such file')
  numpy = path.endswith('.npz') or _members(path, '.npy')
  torch = None if numpy else _torch(path)
  try:
    if what := _is_something_else(path):
      raise ValueError(what)
    if torch is None:
      with open(path, 'rb') as file:
        return dict(np.load(file, allow_pickle=False))
    with torch.serialization.safe_globals(_STAND_INS):
      source = torch.load(path, weights_only=True, map_location='cpu')
  except Exception as error:  # a broken file fails in a dozen ways
    # Not their texts: they advise to load without the check.
    what = _is_something_else(path) or _objects(path)
    what = what or f'it is cut or damaged: {type(error).__name__}'
    raise UserError(
      f'{path}: cannot be read as a checkpoint ({what}); a file of torch.save '
      'with a state_dict, or a .npz is needed'
    ) from error
  if not isinstance(source, Mapping):
    raise UserError(
      f'{path}: holds a {type(source).__name__}, but a state_dict is needed'
    )
  return source


_BEGINNINGS = (
  (rb'\s*<', 'it is a page of HTML or XML, as of a download that was refused'),
  (rb'version https://git-lfs', 'it is a pointer of Git LFS; git lfs pull'),
  (
    rb'\x1f\x8b|BZh|\xfd7zXZ|7z\xbc|Rar!|.{257}ustar',
    'it is packed; unpack it',
  ),
  (rb'\x89HDF', 'it is an HDF5 file'),
  (rb'\x93NUMPY', 'it is a single array of NumPy'),
  (rb'.{8}\{"', 'it is a safetensors file; convert it with torch.save'),
  (rb'[\t\n\r\x20-\x7e]+\Z', 'it is a text'),
)


def _is_something_else(path):
  """What a file is that is certainly no checkpoint, or None."""
  with open(path, 'rb') as file:
    head = file.read(512)
  if not head:
    return 'it is empty; get it again'
  for pattern, what in _BEGINNINGS:
    if re.match(pattern, head, re.DOTALL):
      return what
  if head.startswith(b'PK'):
    if _members(path, '/constants.pkl'):
      return 'it is a TorchScript program; save its state_dict'
    if twice := [k for k, n in Counter(_members(path, '')).items() if n > 1]:
      return f'it holds {twice[0]!r} twice'
    if not _members(path, '/data.pkl') and not _members(path, '.npy'):
      return 'it is a zip file of something else, or a cut one'
  return None


def _members(path, ending):
  try:
    with zipfile.ZipFile(path) as archive:
      return [x for x in archive.namelist() if x.endswith(ending)]
  except (OSError, ValueError, zipfile.BadZipFile):
    return []


# What a state_dict of tensors is made of, as pickles name it.
_PLAIN = re.compile(
  r'torch\.(_\w+|\w*[A-Z]\w*|device|nn\.parameter)\b|collections\.OrderedDict'
  r'|(__builtin__|builtins)\.(bytes|bytearray|set)|_codecs\.encode'
  r'|numpy\.(dtype|ndarray|_?core\.multiarray)'
)


def _objects(path):
  """The first kind of object in a pickle that is no tensor, in words."""
  try:
    if members := _members(path, '/data.pkl'):
      with zipfile.ZipFile(path) as archive:
        pickles = [archive.read(members[0])]
    else:
      with open(path, 'rb') as file:
        pickles = [file.read()]
    texts = []
    for code, argument, _ in pickletools.genops(pickles[0]):
      if code.name == 'GLOBAL':
        name = argument.replace(' ', '.')
      elif code.name == 'STACK_GLOBAL' and len(texts) > 1:
        name = '.'.join(texts[-2:])
      else:
        texts += [argument] * isinstance(argument, str)
        continue
      if not _PLAIN.match(name):
        name = re.sub(r'[^\w.]', '?', name)[:80]
        return f'it holds a {name}, an object whose code would have to be run'
  except Exception:  # no pickle either
    return None
  return None


class _Dtype:
  """Stands for numpy.dtype in pickles, and holds a name only."""

  def __init__(self, name='', *_):
    self.name = str(name)

  def __setstate__(self, state):
    self.name = {'<': '<', '>': '>'}.get(state[1], '') + self.name


class _Array:
  """Stands for numpy.ndarray in pickles, and holds what it is made of."""

  def __setstate__(self, state):
    _, self.shape, self.dtype, self.fortran, self.data = state

  def array(self):
    """TypeError for anything but numbers: no record, text or object."""
    if not re.fullmatch(
      r'[<>]?([?bBhHiIlLqQefd]|b1|[iuf][1248])', self.dtype.name
    ):
      raise TypeError(self.dtype.name)
    flat = np.frombuffer(self.data, self.dtype.name)
    return flat.reshape(self.shape, order='F' if self.fortran else 'C')


def _empty(*_):
  return _Array()


def _scalar(dtype, data=b''):
  number = _Array()
  number.__setstate__((1, (), dtype, False, data))
  return number


# The official code stores best scores and rates as NumPy's; PyTorch would
# refuse it all. NumPy's own functions can be misused by a file.
_STAND_INS = [(_Dtype, 'numpy.dtype'), (_Array, 'numpy.ndarray')]
for _core in ('core', '_core'):  # before and since NumPy 2
  _STAND_INS += [
    (_empty, f'numpy.{_core}.multiarray._reconstruct'),
    (_scalar, f'numpy.{_core}.multiarray.scalar'),
  ]


def write(state, path, *, bare, prefix):
  """Writes a `.npz`; else by `torch.save`, bare or as {'state_dict': ...}."""
  state = {key: as_wide(value) for key, value in state.items()}
  if path.endswith('.npz'):
    return np.savez(path, **state)
  torch = _torch(path)
  state = {prefix + k: torch.tensor(x) for k, x in state.items()}
  return torch.save(state if bare else {'state_dict': state}, path)
