"""Images with a class for each pixel: padded to squares, in memory or on disk.

Pictures and masks are never resized for judging: they are padded at the bottom
and on the right, as the official code does (reference behaviour S4).
"""

import dataclasses
import functools

import numpy as np

from fastsnn_jax.data import decode, records, squares
from fastsnn_jax.data.dataset import MEAN_STD
from fastsnn_jax.data.named import directory_of
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.data.readers import coco, scenes, voc
from fastsnn_jax.data.stream import Stream
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.pictures import Listed, dataset_of

_SCENE = 32  # sides of scenes are multiples of this
_USUAL = 96


def open_data(settings, model) -> Dataset:
  """The data set that `Data` of a config names.

  'scenes' are drawn, as large as fits into `size`; otherwise `path` has VOC's
  or COCO's layout. Without `size` the squares have the least side that fits all
  pictures, in a stream the model's.

  Raises:
    UserError: nothing there that can be read, or a size that does not fit.
  """
  name, stride = settings.name, model.stride
  if name == 'scenes':
    if settings.stream:
      raise UserError('scenes are drawn in memory; leave data.stream out')
    return _scenes(stride, settings.size)
  found = _read(name, settings.path, settings.crowd)
  everything = [record for part in found.parts().values() for record in part]
  wanted = settings.size or (model.size if settings.stream else None)
  size = squares.side_for(everything, stride, wanted)
  classes = len(found.classes)
  fill = squares.fill_of(MEAN_STD['imagenet2012'][0])

  def split(part, rows):
    if not settings.stream:
      counts = {'classes': classes, 'repairs': found.repairs}
      return squares.mask_arrays(rows, size, fill, **counts)
    # Whether a mask has a pixel of a class.
    known = {'has_class': np.array([bool(record.label) for record in rows])}
    pad = functools.partial(_padded, size=size, fill=fill, classes=classes)
    return Stream(Listed(rows, known), pad, workers=settings.workers)

  return dataset_of(name, found, split)


def _padded(row, draws, size, fill, classes):
  record, _ = row
  both = records.picture_and_mask(record, classes)
  if both is None:
    raise decode.Undecodable(str(record.picture))
  image = decode.whole(both[0], 3)
  height, width = image.shape[:2]
  if max(height, width) > size:
    raise UserError(
      f'{record.picture} has {width} x {height} pixels, too many to be padded '
      f'to {size}; choose a size of {max(height, width)} or more'
    )
  return {
    'image': squares.padded(image, size, fill),
    'label': squares.padded(both[1], size, records.IGNORED),
    'size': np.array(record.size, np.int32),
  }


def _read(name, path, crowd):
  layouts = f'{voc.MASK_LAYOUT}; or with {coco.LAYOUT}'
  if path is None:
    raise UserError(
      f'data set {name!r} needs the path of its directory, with {layouts}; '
      "only 'scenes' needs none"
    )
  directory = directory_of(path, layouts)
  if voc.has_masks(directory):
    return voc.read_masks(directory)
  if coco.has_annotations(directory):
    return coco.read_masks(directory, crowd=crowd)
  raise UserError(
    f'{path} has neither ImageSets/Segmentation/train.txt nor annotations of '
    f'COCO; arrange it with {layouts}'
  )


def _scenes(stride, size):
  side = _USUAL if size is None else size // _SCENE * _SCENE
  size = squares.fitting_size(side, stride) if size is None else size
  squares.check_stride(size, stride)
  if not side:
    raise UserError(f'size={size}: scenes need {_SCENE + 1} pixels or more')
  drawn = scenes.segmentation(side)
  fill = squares.fill_of(drawn.mean)

  def pad(split):
    image, label = (
      np.stack([squares.padded(row, size, colour) for row in split[name]])
      for name, colour in (('image', fill), ('label', records.IGNORED))
    )
    sides = np.full((len(label), 2), side, np.int32)
    return {'image': image, 'label': label, 'size': sides}

  parts = ('train', 'test', 'validation')
  padded = {part: pad(getattr(drawn, part)) for part in parts}
  return dataclasses.replace(drawn, **padded)
