"""Kernels of whole numbers on disk: as many bits a weight as its levels need.

A kernel with L different numbers takes ceil(log2 L) bits for each, beside the
numbers themselves: 2 bits for the -1, 0, 1 of two-bit weights.
"""

import math
from collections.abc import Mapping

import numpy as np

from fastsnn_jax.errors import UserError

_PARTS = {'values', 'codes', 'shape'}


def pack(tree):
  """A tree in which each array of small integers is packed."""
  if isinstance(tree, Mapping):
    return {name: pack(part) for name, part in tree.items()}
  array = np.asarray(tree)
  if array.dtype not in (np.int8, np.int16) or not array.size:
    return tree
  values, codes = np.unique(array, return_inverse=True)
  places = np.arange(_bits(values))
  bits = codes.reshape(-1, 1) >> places & 1
  return {
    'values': values,
    'codes': np.packbits(bits.astype(np.uint8), bitorder='little'),
    'shape': np.array(array.shape, np.int32),
  }


def unpack(tree):
  """The inverse of `pack`.

  Raises:
    UserError: parts that do not fit each other.
  """
  if not isinstance(tree, Mapping):
    return tree
  if tree.keys() != _PARTS:
    return {name: unpack(part) for name, part in tree.items()}
  values, packed = np.asarray(tree['values']), np.asarray(tree['codes'])
  shape = tuple(np.asarray(tree['shape']).tolist())
  size, width = math.prod(shape), _bits(values)
  if packed.size != -(-size * width // 8):
    raise UserError(
      f'a packed kernel of shape {shape} has {packed.size} bytes, but needs '
      f'{-(-size * width // 8)}; get the file again'
    )
  bits = np.unpackbits(packed, count=size * width, bitorder='little')
  codes = bits.reshape(size, width) @ (1 << np.arange(width))
  if size and codes.max() >= len(values):
    raise UserError(
      f'a packed kernel has number {codes.max()} of {len(values)}; get the '
      'file again'
    )
  return values[codes].reshape(shape)


def _bits(values) -> int:
  return max(len(values) - 1, 1).bit_length()
