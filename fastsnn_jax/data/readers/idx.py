"""Reads a directory of idx files, the form of MNIST and Fashion-MNIST.

An idx file is a big-endian header (a magic number which tells the type and the
number of dimensions, then each dimension as 32 bits) and the values as bytes.
"""

import gzip
import pathlib
import struct
import zlib

import numpy as np

from fastsnn_jax.data.dataset import Dataset, assemble
from fastsnn_jax.errors import UserError

_MAGIC = {'images': 0x00000803, 'labels': 0x00000801}  # uint8, 3 or 1 dims
_PARTS = {'train': 'train', 'test': 't10k'}


def _names(part, kind):
  """The names one file goes by; `.idx` instead of `-idx` in some copies."""
  dims = _MAGIC[kind] & 0xFF
  stems = [f'{_PARTS[part]}-{kind}{mark}idx{dims}-ubyte' for mark in '-.']
  return [stem + suffix for stem in stems for suffix in ('', '.gz')]


def found(directory) -> bool:
  """Whether a directory holds any of the four files, by their names."""
  return any(
    (pathlib.Path(directory) / name).is_file()
    for part in _PARTS
    for kind in _MAGIC
    for name in _names(part, kind)
  )


def load(name, directory) -> Dataset:
  """Reads `train-images-idx3-ubyte`, its three fellows, or their `.gz` forms.

  Args:
    name: Of the data set; `mnist` and `fashion_mnist` bring their class names
      and statistics, any other has numbered classes. `idx` takes the name of
      the directory.
    directory: Where the four files are.

  Returns:
    A data set of grey images [N, H, W, 1].

  Raises:
    UserError: A file is missing, is no idx file of its kind, is cut short or
      too long, or two files do not fit together.
  """
  directory = pathlib.Path(directory)
  splits = {}
  for part in _PARTS:
    images, image_file = _read(directory, part, 'images')
    labels, label_file = _read(directory, part, 'labels')
    if len(images) != len(labels):
      raise UserError(
        f'{image_file} holds {len(images)} images but {label_file.name} '
        f'{len(labels)} labels; the two files must come from one set'
      )
    splits[part] = {'image': images[..., None], 'label': labels}
  if name == 'idx':
    name = directory.resolve().name
    last = max(int(x['label'].max(initial=0)) for x in splits.values())
    return assemble(name, **splits, classes=tuple(map(str, range(last + 1))))
  return assemble(name, **splits)


def _read(directory, part, kind):
  """One file -> (uint8 array of its dimensions, its path)."""
  names = _names(part, kind)
  file = next(
    (directory / name for name in names if (directory / name).is_file()), None
  )
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
  expected = header + int(np.prod(shape, dtype=object))
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
  except OSError as error:
    raise UserError(
      f'{file} cannot be read ({error.strerror}); check its permissions'
    ) from error
  if data[:2] != b'\x1f\x8b':
    return data
  try:
    return gzip.decompress(data)
  except EOFError:
    # Cut short: what there is of it lets the caller state both sizes.
    return zlib.decompressobj(wbits=31).decompress(data)
  except (zlib.error, gzip.BadGzipFile) as error:
    raise UserError(
      f'{file} is a damaged gzip file ({error}), expected a whole one; get the '
      'file again'
    ) from error
