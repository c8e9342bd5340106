"""Directories of idx files, the form of MNIST and Fashion-MNIST.

A file has a magic number (type and number of dimensions), each dimension as 32
bits, high byte first, and the values as bytes.
"""

import math
import pathlib
import zlib

import numpy as np

from fastsnn_jax.errors import UserError

_MAGIC = {'images': 0x00000803, 'labels': 0x00000801}  # uint8, 3 or 1 dims
_PARTS = ('train', 't10k')
_CHUNK = 2**20
_MOST = 2**31  # bytes of a file, unpacked


def _find(directory, part, kind):
  """The path of a file, or None, and the names that it may have."""
  name = f'{part}-{kind}-idx{_MAGIC[kind] & 0xFF}-ubyte'
  dotted = name.replace('-idx', '.idx')  # in some copies
  names = [name, f'{name}.gz', dotted, f'{dotted}.gz']
  paths = (pathlib.Path(directory) / name for name in names)
  return next((path for path in paths if path.is_file()), None), names


def has_files(directory) -> bool:
  """Whether a directory holds any of the four files, by their names."""
  return any(_find(directory, x, kind)[0] for x in _PARTS for kind in _MAGIC)


def load(directory):
  """(train, test, classes '0' to the largest label).

  Splits are {'image': uint8 [N, H, W, 1], 'label': int32 [N]}.
  """
  splits = []
  for part in _PARTS:
    (images, file), (labels, labels_file) = (
      _read(directory, part, kind) for kind in _MAGIC
    )
    if len(images) != len(labels):
      raise UserError(
        f'{file} holds {len(images)} images but {labels_file.name} '
        f'{len(labels)} labels; the two files must come from one set'
      )
    label = labels.astype(np.int32)
    splits.append({'image': images[..., None], 'label': label})
  last = max(int(split['label'].max(initial=0)) for split in splits)
  return *splits, tuple(map(str, range(last + 1)))


def _read(directory, part, kind):
  """One file -> (uint8 array of its dimensions, its path)."""
  file, names = _find(directory, part, kind)
  if file is None:
    raise UserError(
      f'{directory} holds no file {names[0]} (nor {names[1]}); put all four '
      'idx files there, training and test images and labels'
    )
  magic = _MAGIC[kind]
  numbers = 1 + (magic & 0xFF)
  header = _bytes(file, 4 * numbers).ljust(4 * numbers, b'\0')
  start, *shape = np.frombuffer(header, '>u4').tolist()
  expected = 4 * numbers + math.prod(shape)
  if start == magic and expected > _MOST:
    raise UserError(
      f'{file} says that it holds {expected} bytes; at most {_MOST} are read '
      'into memory, so use a folder of pictures with --data.stream'
    )
  data = _bytes(file, min(expected, _MOST) + 1)
  if start != magic or len(data) != expected:
    more = ', and perhaps more' if len(data) > expected else ''
    raise UserError(
      f'{file} holds {len(data)} bytes, expected {expected} for {kind} of '
      f'shape {shape}{more}, and begins with 0x{start:08x}, expected '
      f'0x{magic:08x}; it is damaged or of another kind, so get it again'
    )
  return np.frombuffer(data, np.uint8, offset=4 * numbers).reshape(shape), file


def _bytes(file, most):
  """The first bytes, unpacked if it is gzip, whatever the name says.

  If it is cut short, what there is lets the caller state both sizes.
  """
  try:
    with file.open('rb') as stream:
      if (packed := stream.read(2)) != b'\x1f\x8b':
        return packed + stream.read(most - len(packed))
      result, unpack = bytearray(), zlib.decompressobj(wbits=31)
      while packed and len(result) < most:
        if unpack.eof:  # a file may be put together of several
          unpack = zlib.decompressobj(wbits=31)
        result += unpack.decompress(packed, most - len(result))
        packed = unpack.unconsumed_tail or unpack.unused_data
        packed = packed.lstrip(b'\0') if unpack.eof else packed
        packed = packed or stream.read(_CHUNK)
      return result
  except (zlib.error, OSError) as error:
    raise UserError(
      f'{file} cannot be read, or is a damaged gzip ({error}); get it again'
    ) from error
