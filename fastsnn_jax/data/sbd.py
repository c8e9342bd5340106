"""The Semantic Boundaries Dataset merged into VOC 2012: `trainaug`.

fastsnn merge-sbd SBD_DIR VOC_DIR

SBD_DIR is what benchmark.tgz of SBD holds, VOC_DIR is VOCdevkit. Written are
EncodeSegmentationClass/*.png and ImageSets/Segmentation/trainaug.txt.
"""

import io
import os
import pathlib

import numpy as np

from fastsnn_jax.data import decode, records
from fastsnn_jax.data.readers import finder, voc
from fastsnn_jax.errors import UserError, told

LAYOUT = 'cls/*.mat, train.txt and val.txt'
_BELOW = ('.', 'dataset', 'benchmark_RELEASE/dataset')
_MASKS, _OWN = voc.MASKS


def merge_sbd(sbd_directory, voc_directory) -> tuple[int, int]:
  """Writes masks and the list `trainaug`, on which the official code trains.

  trainaug = (train and val of SBD and train of VOC) without val of VOC, sorted;
  10,582 names. Masks are PNGs of 8-bit grey indices, VOC's own where it has one
  (reference behaviour S5.1). Returns (masks written, names in trainaug).
  """
  directory = pathlib.Path(sbd_directory).expanduser()
  if not (folders := [x for x in _BELOW if (directory / x / 'cls').is_dir()]):
    raise UserError(
      f'{directory} has no folder cls, nor {" nor ".join(_BELOW[1:])} with '
      f'one; give the directory of SBD, with {LAYOUT}'
    )
  source, root = directory / folders[0], voc.mask_root(voc_directory)
  lists, target = root / voc.MASK_LISTS, root / _MASKS
  train, val, *others = (
    set(_names(folder / f'{name}.txt', layout))
    for folder, layout in ((lists, voc.MASK_LAYOUT), (source, LAYOUT))
    for name in ('train', 'val')
  )
  own = {path.stem: path for path in (root / _OWN).glob('*.png')}
  if lacking := sorted((train | val) - own.keys()):
    raise UserError(
      f'{root / _OWN} has no {lacking[0]}.png ({len(lacking)} of the lists are '
      'missing); unpack VOC 2012 anew'
    )
  trainaug = sorted(train.union(*others) - val)
  masks = {name: source / 'cls' / f'{name}.mat' for name in trainaug} | own
  target.mkdir(exist_ok=True)
  if target.samefile(root / _OWN):
    raise UserError(
      f"{target} leads to {_OWN}, VOC's own masks; make it a folder of its own"
    )
  for name, path in masks.items():
    _write(target / f'{name}.png', decode.index_png(_mask(path)))
  # Last, so that nobody trains on half of the masks.
  names = ''.join(f'{name}\n' for name in trainaug)
  _write(lists / 'trainaug.txt', names.encode())
  return len(masks), len(trainaug)


def _names(path, layout):
  """A list's names; UserError if one leads to another folder."""
  names = voc.names_in(path, layout)
  for name in names:
    if not finder.inside(name) or '/' in name or '\\' in name:
      raise UserError(
        f'{path} has the name {records.shown(name)!r}; names have no folder, '
        'for files are written by them, so mend the list'
      )
  return names


def _write(path, content):
  """Whole, or not at all; a link in its place is replaced, not followed."""
  part = path.with_name(f'{path.name}.part')
  part.unlink(missing_ok=True)
  part.write_bytes(content)
  os.replace(part, path)


def _mask(path):
  """The indices in a PNG of VOC, or in a file of SBD, which MATLAB 5 wrote."""
  try:
    content = path.read_bytes()
    if path.suffix == '.png':
      return decode.indices(content)
    import scipy.io

    content = scipy.io.loadmat(io.BytesIO(content), simplify_cells=True)
    mask = np.asarray(content['GTcls']['Segmentation'])
    if mask.ndim != 2 or mask.min() < 0 or mask.max() > 255:
      raise ValueError(f'values of shape {mask.shape}')
    return mask
  except ImportError as error:
    raise UserError(
      f"SBD's masks are files of MATLAB, which scipy reads ({error}); install "
      "it with: pip install 'fastsnn_jax[segmentation]'"
    ) from error
  except Exception as error:  # of many kinds, where files are damaged
    raise UserError(
      f'{path} cannot be read ({told(error)}); it must be a '
      'PNG of indices or have GTcls.Segmentation, so download its set anew'
    ) from error
