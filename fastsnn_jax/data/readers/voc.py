"""VOC's layout, of VOCdevkit or of one's own, with boxes or masks.

DIR/JPEGImages/NAME.jpg; for boxes DIR/Annotations/NAME.xml and lists in
DIR/ImageSets/Main; for masks DIR/SegmentationClass/NAME.png, a PNG of indices,
and lists in DIR/ImageSets/Segmentation; and, but for VOC itself, classes.txt.
"""

import pathlib

from fastsnn_jax.data import decode, records
from fastsnn_jax.data.readers import finder, text
from fastsnn_jax.errors import UserError

CLASSES = (
  *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat'),
  *('chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person'),
  *('pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
MASK_CLASSES = ('background', *CLASSES)
BOX_LAYOUT = 'Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/*.txt'
MASK_LAYOUT = (
  'JPEGImages/*.jpg, SegmentationClass/*.png with indices of the classes, 255 '
  'means ignored, ImageSets/Segmentation/*.txt and classes.txt'
)
# In this order, picture by picture; `sbd` writes the first, as the official
# code's tools do (reference behaviour S5.1).
MASKS = ('EncodeSegmentationClass', 'SegmentationClass')
BOX_LISTS = pathlib.PurePath('ImageSets', 'Main')
MASK_LISTS = pathlib.PurePath('ImageSets', 'Segmentation')
# Lists to train on, to test on, and for validation: the first that are there.
_BOXES = (('trainval', 'test'), ('train', 'test'), ('train', 'val'))
_VOC = (('trainaug', 'val'), ('train', 'val'))
_OWN = (('train', 'test', 'val'), ('train', 'test'), ('train', 'val'))
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read_boxes(directory) -> records.Records:
  """Reads the annotations of both splits; the pictures stay where they are.

  VOCdevkit: trains on trainval of 2007 and of 2012, tests on test of 2007. Any
  other directory: trainval and test, train and test, or train and val. Corners
  are pixels counted from 1, so that a share is (x - 1) / width. Classes are the
  lines of DIR/classes.txt, or VOC's own for VOCdevkit, or else all names of the
  training split, sorted; case does not matter.
  """
  directory = pathlib.Path(directory).expanduser()
  root = _year(directory, 2007)
  if root:
    years = (x / BOX_LISTS for x in (root, root.parent / 'VOC2012'))
    train = [x / 'trainval.txt' for x in years if x.parents[1].is_dir()]
    splits, known = (train, [root / BOX_LISTS / 'test.txt']), CLASSES
  else:
    splits = [[x] for x in _lists(directory, BOX_LISTS, _BOXES, BOX_LAYOUT)]
    known = _classes(directory, masks=False)
  repairs, find = records.new_repairs(), finder.Finder()
  parts = [
    [item for path in paths for item in _annotations(path, find, repairs)]
    for paths in splits
  ]
  names = (item.name for _, _, objects, _ in parts[0] for item in objects)
  spelt = {name.lower(): name for name in names if name}
  classes = tuple(known or sorted(spelt.values()))
  numbers = records.class_numbers(classes)
  for part, (path, *_) in zip(parts, splits, strict=True):
    part[:] = (
      records.with_boxes(*item, numbers, repairs, said=said, whole=True)
      for *item, said in part
    )
    records.check(part, classes, path, BOX_LAYOUT, repairs)
  return records.checked(parts, classes, repairs)


def has_masks(directory) -> bool:
  """Whether a directory, or VOC in it, has lists of pictures with masks."""
  return (mask_root(directory) / MASK_LISTS / 'train.txt').is_file()


def read_masks(directory) -> records.Records:
  """Finds the pictures and masks of the splits; they stay where they are.

  VOC2012 has trainaug (if `sbd` was added, else train) and val, as in the
  official code. Any other directory has train and test, with val for
  validation; or without test train and val.
  """
  root = mask_root(directory)
  lists = _VOC if root.name == 'VOC2012' else _OWN
  lists = _lists(root, MASK_LISTS, lists, MASK_LAYOUT)
  classes = records.mask_classes(_classes(root, masks=True))
  repairs, find, parts = records.new_repairs(), finder.Finder(), []
  for path in lists:
    paths = []
    for name, picture in _pictures(path, find, MASK_LAYOUT, repairs):
      masks = (find(root / folder, name, ('.png',)) for folder in MASKS)
      paths.append((name, picture, next(filter(None, masks), None)))
    parts.append(records.with_masks(paths, classes, repairs))
    records.check(parts[-1], classes, path, MASK_LAYOUT, repairs)
  return records.checked(parts, classes, repairs)


def mask_root(directory) -> pathlib.Path:
  """VOC2012 in a directory, or else the directory."""
  directory = pathlib.Path(directory).expanduser()
  return _year(directory, 2012) or directory


def names_in(path, layout=MASK_LAYOUT) -> list[str]:
  """The first word of each line of a list."""
  return [line.split()[0] for line in text.listed(path, layout)]


def _year(directory, year):
  """VOC of that year in a directory, or None."""
  roots = (directory / below / f'VOC{year}' for below in ('VOCdevkit', '.'))
  return next((root for root in roots if root.is_dir()), None)


def _lists(root, folder, choices, layout):
  """The paths of the first choice of lists that are all there."""
  for names in choices:
    paths = [root / folder / f'{name}.txt' for name in names]
    if all(path.is_file() for path in paths):
      return paths
  wanted = ', or '.join(' and '.join(f'{x}.txt' for x in y) for y in choices)
  raise UserError(
    f'{root} has no {folder} with {wanted}; arrange it as {layout}'
  )


def _classes(root, masks):
  """Names as DIR/classes.txt has them; for masks there must be all of them."""
  path = root / 'classes.txt'
  names = text.lines(path) if path.is_file() else []
  if not masks:
    names = [name for name in names if name]
  elif not names and root.name == 'VOC2012':
    return MASK_CLASSES
  elif not names:
    raise UserError(
      f'{path}: no such file; write the name of each class there, from 0 on'
    )
  elif not all(names):
    raise UserError(
      f'{path} has an empty line {names.index("") + 1}; name that index too'
    )
  records.check_names(path, names, str if masks else records.spelt)
  return tuple(names)


def _pictures(path, find, layout, repairs):
  """Yields (name, path) of the pictures of a list that are there."""
  folder, seen = path.parents[2] / 'JPEGImages', set()
  for line in text.listed(path, layout):
    word, *mark = line.split()
    for name in (line, word):
      if picture := find(folder, name, decode.SUFFIXES):
        break
    else:
      kind = 'gone' if finder.inside(name) else 'astray'
      # VOC's own lists of a class have a mark behind the name.
      marked = len(mark) == 1 and mark[0].lstrip('-').isdigit()
      repairs[kind].append(_hinted(word if marked else line))
      continue
    if name in seen:
      repairs['twice'].append(f'{path}, {name}')
    seen.add(name)
    yield name, picture


def _annotations(path, find, repairs):
  """Yields (picture, size, [`records.Object`], size of the annotation)."""
  folder = path.parents[2] / 'Annotations'
  for name, picture in _pictures(path, find, BOX_LAYOUT, repairs):
    try:
      file = picture
      size = decode.size_of(picture)
      file = folder / f'{name}.xml'
      if not (found := find(folder, name, ('.xml',))):
        raise FileNotFoundError(file)
      tree = text.xml(found)
    except (decode.Undecodable, OSError, ValueError):
      repairs['unreadable'].append(str(file))
      continue
    said = tuple(_number(tree, f'size/{side}') for side in ('width', 'height'))
    if said := records.size_said(picture, size, said, repairs):
      yield picture, size, list(map(_object, tree.iter('object'))), said


def _object(node):
  corners = [_number(node, f'bndbox/{corner}') - 1 for corner in _CORNERS]
  name = (node.findtext('name') or '').strip()
  difficult = text.flag(node.findtext('difficult'))
  return records.Object(name, corners, difficult)


def _number(node, path):
  return text.number(node.findtext(path))


def _hinted(name):
  """A name of a list, and what is wrong if it is the name of a file."""
  path = pathlib.PureWindowsPath(name)
  if finder.is_picture(name) or 'JPEGImages' in path.parts:
    return f'{name}; names in lists have no folder and no ending: {path.stem}'
  return name
