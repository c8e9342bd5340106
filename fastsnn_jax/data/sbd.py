"""The Semantic Boundaries Dataset merged into VOC 2012: `trainaug`.

python -m fastsnn_jax.data.sbd SBD_DIR VOC_DIR

SBD_DIR is what benchmark.tgz of SBD holds, VOC_DIR is VOCdevkit. Written are
VOC2012/EncodeSegmentationClass/*.png and
VOC2012/ImageSets/Segmentation/trainaug.txt; nothing else is changed.
"""

import argparse
import os
import pathlib
import sys

import numpy as np

from fastsnn_jax.data import decode
from fastsnn_jax.data.readers import voc
from fastsnn_jax.errors import UserError

_LAYOUT = 'cls/*.mat, train.txt and val.txt'
_BELOW = ('.', 'dataset', 'benchmark_RELEASE/dataset')
_MASKS, _OWN = voc.MASKS


def merge_sbd(sbd_directory, voc_directory) -> tuple[int, int]:
  """Writes masks and the list `trainaug`, on which the official code trains.

  trainaug = (train and val of SBD and train of VOC) without val of VOC, sorted;
  10,582 names. Masks are PNGs of 8-bit grey indices: those of SBD, and VOC's
  own, which come first (reference behaviour S5.1). SBD's pictures are all VOC's.

  Args:
    sbd_directory: with cls/*.mat, train.txt and val.txt, or where the archive
      was unpacked.
    voc_directory: VOC2012, or where it is.

  Returns:
    (masks written, names in trainaug).

  Raises:
    UserError: a file is missing or damaged.
  """
  source = _source(sbd_directory)
  root = voc.mask_root(voc_directory)
  lists = root / voc.MASK_LISTS
  train, val, *others = (
    set(voc.names_in(folder / f'{name}.txt', layout))
    for folder, layout in ((lists, voc.MASK_LAYOUT), (source, _LAYOUT))
    for name in ('train', 'val')
  )
  trainaug = sorted(train.union(*others) - val)
  own = sorted((root / _OWN).glob('*.png'))
  known = {path.stem for path in own}
  lacking = sorted((train | val) - known)
  if lacking:
    raise UserError(
      f'{root / _OWN} has no {lacking[0]}.png ({len(lacking)} of the lists are '
      'missing); unpack VOC 2012 anew'
    )
  new = [name for name in trainaug if name not in known]
  (root / _MASKS).mkdir(exist_ok=True)
  for name in new:
    _write(root, name, _segmentation(source / 'cls' / f'{name}.mat'))
  for path in own:
    _write(root, path.stem, _indices(path))
  # Last, so that nobody trains on half of the masks.
  names = ''.join(f'{name}\n' for name in trainaug)
  (lists / 'trainaug.txt').write_text(names, encoding='utf-8')
  return len(new) + len(own), len(trainaug)


def _source(directory):
  directory = pathlib.Path(directory).expanduser()
  for below in _BELOW:
    if (directory / below / 'cls').is_dir():
      return directory / below
  raise UserError(
    f'{directory} has no folder cls, nor {" nor ".join(_BELOW[1:])} with one; '
    f'give the directory of SBD, with {_LAYOUT}'
  )


def _segmentation(path):
  """The mask in a file of SBD, which MATLAB 5 wrote."""
  try:
    import scipy.io
  except ImportError as error:
    raise UserError(
      f"SBD's masks are read by scipy ({error}); install it with: pip install "
      "'fastsnn_jax[segmentation]'"
    ) from error
  if not path.is_file():
    raise UserError(
      f'{path}: no such file, but SBD lists it; download SBD anew'
    )
  try:
    content = scipy.io.loadmat(path, simplify_cells=True)
    mask = np.asarray(content['GTcls']['Segmentation'])
    if mask.ndim != 2 or mask.min() < 0 or mask.max() > 255:
      raise ValueError(f'values of shape {mask.shape}')
  except Exception as error:  # of many kinds, where files are damaged
    raise UserError(
      f'{path} cannot be read ({type(error).__name__}: {error}); a file of SBD '
      'has GTcls.Segmentation, so download SBD anew'
    ) from error
  return mask


def _indices(path):
  try:
    return decode.indices(path.read_bytes())
  except (decode.Undecodable, decode.NotIndices) as error:
    raise UserError(
      f'{path} is no PNG of indices ({error}); unpack VOC 2012 anew'
    ) from error


def _write(root, name, mask):
  path = root / _MASKS / f'{name}.png'
  part = path.with_suffix('.part')
  part.write_bytes(decode.index_png(mask))
  os.replace(part, path)  # whole, or not there


def main(arguments=None) -> int:
  """The command; the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m fastsnn_jax.data.sbd',
    description='Merges SBD into VOC 2012.',
  )
  parser.add_argument('sbd_dir', help=f'SBD, with {_LAYOUT}')
  parser.add_argument('voc_dir', help='VOCdevkit, with VOC2012 in it')
  options = parser.parse_args(arguments)
  try:
    masks, names = merge_sbd(options.sbd_dir, options.voc_dir)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{masks} masks in {_MASKS}, {names} names in trainaug.txt')
  return 0


if __name__ == '__main__':
  sys.exit(main())
