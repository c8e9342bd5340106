"""Images with a class for each pixel: padded to squares, in memory or on disk.

Pictures and masks are never resized for judging: they are padded at the bottom
and on the right, as the official code does (reference behaviour S4).
"""

import dataclasses
import pathlib

import numpy as np

from fastsnn_jax.data import decode, records, squares
from fastsnn_jax.data.dataset import MEAN_STD
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.data.readers import coco, scenes, voc
from fastsnn_jax.data.stream import Stream
from fastsnn_jax.errors import UserError

_SCENE = 32  # sides of scenes are multiples of this
_USUAL = 96


def open_data(settings, model) -> Dataset:
  """The data set that `Data` of a config names.

  'scenes' are drawn, as large as fits into `size`; otherwise `path` has VOC's
  or COCO's layout. Parts in memory are {'image': uint8 [N, S, S, 3], 'label':
  uint8 [N, S, S], 'size': int32 [N, 2]}. Without `size`, S is the least side
  that fits all pictures; a stream takes the model's.

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
  mean, std = MEAN_STD['imagenet2012']
  classes, fill = len(found.classes), squares.fill_of(mean)
  if settings.stream:
    prepare = Pad(size, fill)
    parts = {
      part: Stream(Masks(rows, classes), prepare, workers=settings.workers)
      for part, rows in found.parts().items()
    }
  else:
    parts = {
      part: squares.mask_arrays(
        rows, size, fill, classes=classes, repairs=found.repairs
      )
      for part, rows in found.parts().items()
    }
  return Dataset(
    name,
    **parts,
    classes=found.classes,
    mean=mean,
    std=std,
    notes=records.notes(found),
  )


@dataclasses.dataclass(frozen=True)
class Pad:
  """(name, encoded picture, mask, size) -> both at the top left of a square."""

  size: int
  fill: tuple[int, ...]

  def __call__(self, record, draws):
    del draws
    name, both, size = record
    if both is None:
      raise decode.Undecodable(name)
    image = decode.whole(both[0], 3)
    height, width = image.shape[:2]
    if max(height, width) > self.size:
      raise UserError(
        f'{name} has {width} x {height} pixels, too many to be padded to '
        f'{self.size}; choose a size of {max(height, width)} or more'
      )
    return {
      'image': squares.padded(image, self.size, self.fill),
      'label': squares.padded(both[1], self.size, records.IGNORED),
      'size': np.array(size, np.int32),
    }


class Masks:
  """Records as a `Stream` reads them."""

  def __init__(self, part, classes: int):
    self._part, self._classes = part, classes

  def __len__(self):
    return len(self._part)

  def __getitem__(self, index):
    record = self._part[index]
    both = records.picture_and_mask(record, self._classes)
    return self.name(index), both, record.size

  def name(self, index) -> str:
    return str(self._part[index].picture)

  def column(self, name) -> np.ndarray | None:
    """Only 'has_class': whether a mask has a pixel of a class."""
    if name == 'has_class':
      return np.array([bool(record.label) for record in self._part])
    return None


def _read(name, path, crowd):
  layouts = f'{voc.MASK_LAYOUT}; or with {coco.LAYOUT}'
  if path is None:
    raise UserError(
      f'data set {name!r} needs the path of its directory, with {layouts}; '
      "only 'scenes' needs none"
    )
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(f'{path} is not a directory; give one with {layouts}')
  if voc.has_masks(directory):
    return voc.read_masks(directory)
  if coco.has_annotations(directory):
    return coco.read_masks(directory, crowd=crowd)
  raise UserError(
    f'{path} has neither ImageSets/Segmentation/train.txt nor annotations of '
    f'COCO; arrange it with {layouts}'
  )


def _scenes(stride, size):
  side = _USUAL
  if size is None:
    size = squares.fitting_size(side, stride)
  else:
    squares.check_stride(size, stride)
    side = size // _SCENE * _SCENE
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

  parts = {
    part: pad(getattr(drawn, part)) for part in ('train', 'test', 'validation')
  }
  return dataclasses.replace(drawn, **parts)
