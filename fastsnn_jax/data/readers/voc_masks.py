"""Pictures with masks in VOC's layout: VOCdevkit, or any directory like it.

DIR/JPEGImages/NAME.jpg, DIR/SegmentationClass/NAME.png, a PNG of indices with
255 for pixels to be ignored, DIR/ImageSets/Segmentation/SPLIT.txt and, but for
VOC itself, DIR/classes.txt.
"""

import pathlib

from fastsnn_jax.data import masked
from fastsnn_jax.data.readers import voc
from fastsnn_jax.errors import UserError

CLASSES = ('background', *voc.CLASSES)
# In this order, picture by picture; `sbd` writes the first, as the reference's
# tools do (spec segmentation §5.1).
MASKS = ('EncodeSegmentationClass', 'SegmentationClass')
LISTS = pathlib.PurePath('ImageSets', 'Segmentation')
LAYOUT = (
  'JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/*.txt and '
  'classes.txt'
)


def read(directory, classes=None) -> masked.Masked:
  """Finds the pictures and masks of the splits; they stay where they are.

  VOC2012: trains on trainaug if there is that list (see `sbd`), else on train,
  and tests on val, as the reference does. Any other directory: trains on train
  and tests on test, where val is for validation; or without a test.txt on val.

  Args:
    directory: in that layout, or with VOC2012 or VOCdevkit in it.
    classes: names, the first for index 0 and so on, background too if that is a
      class; if not given, a line each of DIR/classes.txt, or VOC's own.

  Raises:
    UserError: another layout, no names of the classes, a mask that is no PNG of
      indices, or a split of which nothing can be read.
  """
  root = root_of(directory)
  lists = _lists(root)
  classes = masked.check_classes(classes or _classes(root))
  repairs = masked.new_repairs()
  parts = {}
  for part, name in lists.items():
    listed = root / LISTS / f'{name}.txt'
    pairs = [_find(root, name) for name in names_in(listed)]
    parts[part] = masked.examine(pairs, classes, repairs)
    masked.check(parts[part], listed, LAYOUT, repairs)
  return masked.Masked(**parts, classes=classes, repairs=repairs)


def found(directory) -> bool:
  """Whether a directory, or VOC in it, has lists of pictures with masks.

  >>> found('.')
  False
  """
  return (root_of(directory) / LISTS / 'train.txt').is_file()


def root_of(directory) -> pathlib.Path:
  """VOC2012 in a directory, or else the directory."""
  directory = pathlib.Path(directory).expanduser()
  for root in (directory / 'VOCdevkit' / 'VOC2012', directory / 'VOC2012'):
    if root.is_dir():
      return root
  return directory


def names_in(path, layout=LAYOUT) -> list[str]:
  """The first word of each line of a list.

  Raises:
    UserError: there is no such file.
  """
  if not path.is_file():
    raise UserError(f'{path}: no such file; the layout is {layout}')
  return [line.split()[0] for line in voc.lines(path)]


def _lists(root):
  """{part of `masked.Masked`: name of its list}."""

  def there(name):
    return (root / LISTS / f'{name}.txt').is_file()

  if there('train') and root.name == 'VOC2012':
    return {
      'train': 'trainaug' if there('trainaug') else 'train',
      'test': 'val',
    }
  if there('train') and there('test'):
    more = {'validation': 'val'} if there('val') else {}
    return {'train': 'train', 'test': 'test', **more}
  if there('train') and there('val'):
    return {'train': 'train', 'test': 'val'}
  raise UserError(
    f'{root} has no {LISTS} with train.txt and with test.txt or val.txt; '
    f'arrange it as {LAYOUT}'
  )


def _classes(root):
  """Names as DIR/classes.txt has them, or VOC's own."""
  path = root / 'classes.txt'
  if not path.is_file():
    if root.name == 'VOC2012':
      return CLASSES
    raise UserError(
      f'{path}: no such file; write the names of the classes there, a line for '
      'each index, from 0 on'
    )
  names = [line.strip() for line in path.read_text().strip().split('\n')]
  if not all(names):
    raise UserError(
      f'{path} has an empty line {names.index("") + 1}; the first line is the '
      'name of index 0, the next of index 1 and so on, so name that index too'
    )
  return voc.distinct(names, path)


def _find(root, name):
  """(name, path of the picture, path of the mask), None for what is not."""
  pictures = (root / 'JPEGImages' / (name + x) for x in voc.SUFFIXES)
  masks = (root / folder / f'{name}.png' for folder in MASKS)
  picture, mask = (
    next((path for path in paths if path.is_file()), None)
    for paths in (pictures, masks)
  )
  path = pathlib.PurePath(name)
  if path.suffix in voc.SUFFIXES or 'JPEGImages' in path.parts:
    name += f'; names in lists have no folder and no ending: {path.stem}'
  return name, picture, mask
