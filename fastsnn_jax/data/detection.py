"""Data sets with boxes by name, whole, in memory."""

import pathlib

from fastsnn_jax.data import voc
from fastsnn_jax.data.dataset import MEAN_STD, Dataset
from fastsnn_jax.errors import UserError


def load(
  name: str, path: str | None = None, *, size: int, train_size: int = 0
) -> Dataset:
  """Reads a data set with boxes; the pictures are squashed to squares.

  Args:
    name: any, for a directory in VOC's layout (see `voc.read`).
    path: that directory.
    size: side of the test images, in pixels.
    train_size: side of the training images; `size` if 0.

  Returns:
    The data set; its parts have 'image', 'boxes', 'label', 'difficult' and
    'size', see `voc.arrays`. Difficult objects are not trained on.

  Raises:
    UserError: no path, or nothing in it that can be read.
  """
  if path is None:
    raise UserError(
      f'data set {name!r}: give the path of pictures with boxes ({voc.LAYOUT})'
    )
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    raise UserError(f'{path} is not a directory; give one with {voc.LAYOUT}')
  found = voc.read(directory)
  train = voc.arrays(found.train, train_size or size, difficult=False)
  test = voc.arrays(found.test, size)
  return Dataset(
    name,
    train,
    test,
    found.classes,
    *MEAN_STD['imagenet2012'],
    notes=tuple(voc.warnings(found.repairs)),
  )
