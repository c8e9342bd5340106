"""Reads a directory of idx files, the form of MNIST and Fashion-MNIST.

An idx file is a big-endian header (a magic number which tells the type and the
number of dimensions, then each dimension as 32 bits) and the values as bytes.
"""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from fastsnn_jax.errors import UserError

_MAGIC = {'images': 0x00000803, 'labels': 0x00000801}  # uint8, 3 or 1 dims
_PARTS = {'train': 'train', 'test': 't10k'}


def _find(directory, part, kind):
  """The path of a file, or None, and the names that it may have."""
  dims = _MAGIC[kind] & 0xFF
  names = [
    f'{_PARTS[part]}-{kind}{mark}idx{dims}-ubyte{suffix}'
    for mark in '-.'  # `.idx` instead of `-idx` in some copies
    for suffix in ('', '.gz')
  ]
  paths = (pathlib.Path(directory) / name for name in names)
  return next((path for path in paths if path.is_file()), None), names


def has_files(directory) -> bool:
  """Whether a directory holds any of the four files, by their names."""
  return any(
    _find(directory, part, kind)[0] for part in _PARTS for kind in _MAGIC
  )


def load(directory):
  """Reads `train-images-idx3-ubyte`, its three fellows, or their `.gz` forms.

  Returns:
    (train, test, classes): the first two {'image': uint8 [N, H, W, 1], 'label':
    int32 [N]}, classes are '0', '1' and so on to the largest label.

  Raises:
    UserError: a file is missing, is no idx file of its kind, is cut short or
      too long, or two files do not fit together.
  """
  splits = []
  for part in _PARTS:
    images, image_file = _read(directory, part, 'images')
    labels, label_file = _read(directory, part, 'labels')
    if len(images) != len(labels):
      raise UserError(
        f'{image_file} holds {len(images)} images but {label_file.name} '
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
  data = _bytes(file)
  wanted = _MAGIC[kind]
  dims = wanted & 0xFF
  header = 4 + 4 * dims
  if len(data) < header:
    raise UserError(
      f'{file} holds {len(data)} bytes, expected at least the {header} of an '
      f'idx header for {kind}; get the file again'
    )
  magic, *shape = struct.unpack(f'>{1 + dims}I', data[:header])
  if magic != wanted:
    raise UserError(
      f'{file} begins with the magic number 0x{magic:08x}, expected '
      f'0x{wanted:08x} for {kind}; it is another kind of file under this name'
    )
  expected = header + math.prod(shape)
  if len(data) != expected:
    raise UserError(
      f'{file} holds {len(data)} bytes, expected {expected} for '
      f'{kind} of shape {tuple(shape)}; get the file again'
    )
  return np.frombuffer(data, np.uint8, offset=header).reshape(shape), file


def _bytes(file):
  """The content, unpacked if it is gzip, whatever the name says."""
  try:
    data = file.read_bytes()
    return gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
  except EOFError:
    # Cut short: what there is of it lets the caller state both sizes.
    return zlib.decompressobj(wbits=31).decompress(data)
  except (zlib.error, gzip.BadGzipFile) as error:
    raise UserError(
      f'{file} is a damaged gzip file ({error}); get the file again'
    ) from error
  except OSError as error:
    raise UserError(
      f'{file} cannot be read ({error.strerror}); check its permissions'
    ) from error
