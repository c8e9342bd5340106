"""Images with boxes: squashed to squares, in memory or on disk."""

import functools

from fastsnn_jax.data import decode, records, squares
from fastsnn_jax.data.named import directory_of
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.data.readers import coco, scenes, tfds, voc
from fastsnn_jax.data.stream import Stream
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.pictures import Listed, dataset_of


def open_data(settings, size: int) -> Dataset:
  """The data set that `Data` of a config names.

  'scenes' are drawn; `voc`, `coco` or another set may be prepared by TFDS; or
  `path` has VOC's or COCO's layout. Difficult objects are not trained on. The
  squares have the side `size`, or in training the largest of `settings.sizes`.

  Raises:
    UserError: nothing is there that can be read.
  """
  largest = max(size, *settings.sizes, 0)
  if settings.name == 'scenes':
    if settings.stream:
      raise UserError('scenes are drawn in memory; leave data.stream out')
    if largest != size:
      raise UserError(
        f'data.sizes up to {largest}: scenes are drawn at one size, {size}; '
        'leave data.sizes out'
      )
    return scenes.detection(size)

  def split(part, rows):
    training = part == 'train'
    if not settings.stream:
      side = largest if training else size
      counted = {'difficult': not training, 'repairs': found.repairs}
      return squares.box_arrays(rows, side, **counted)
    known = squares.box_labels(rows, difficult=not training)
    prepare = (functools.partial(_squashed, size=x) for x in (size, largest))
    return Stream(Listed(rows, known), *prepare, workers=settings.workers)

  found = _read(settings.name, settings.path)
  return dataset_of(settings.name, found, split)


def _squashed(row, draws, size):
  record, labels = row
  encoded = records.encoded(record.picture)
  return {'image': decode.resized(encoded, size), **labels}


def _read(name, path):
  layouts = f'{voc.BOX_LAYOUT}, or with {coco.LAYOUT}'
  what = f'a prepared TFDS data set, or with {layouts}'
  directory = directory_of(path, what)
  if tfds.find(name, directory):
    return tfds.read_boxes(name, directory)
  if path is None:
    raise UserError(
      f'no prepared TFDS data set {name!r} in {directory}; prepare it once '
      f'with: {tfds.prepare_command(name, directory)}; or give the path of '
      f'pictures with {voc.BOX_LAYOUT}'
    )
  if coco.has_annotations(directory):
    return coco.read_boxes(directory)
  return voc.read_boxes(directory)
