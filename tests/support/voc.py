"""Directories in VOC's layout with boxes, for the tests to read."""

import numpy as np
from support.pictures import encode

CAT = ('cat', (1, 1, 11, 6), 0)


def annotation(objects, size=(20, 10)):
  """XML of [(name, corners, difficult)]; None for one that says no size."""
  rows = []
  for name, corners, difficult in objects:
    keys = ('xmin', 'ymin', 'xmax', 'ymax')
    box = ''.join(
      f'<{k}>{v}</{k}>' for k, v in zip(keys, corners, strict=False)
    )
    rows.append(
      f'<object><name> {name} </name><difficult>{difficult}</difficult>'
      f'<part><bndbox><xmin>1</xmin></bndbox></part><bndbox>{box}</bndbox>'
      '</object>'
    )
  said = '<size><width>{}</width><height>{}</height></size>'
  head = said.format(*size) if size else ''
  return f'<annotation>{head}{"".join(rows)}</annotation>'


def red():
  """Red where `CAT` is, so that no turn leaves it as it is."""
  image = np.zeros((10, 20, 3), np.uint8)
  image[:5, :10] = 255, 0, 0
  return image


def write(root, splits, said=(20, 10), image=None):
  """A directory of {split: {name: objects, or XML}}; pictures are 20 x 10."""
  for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
    (root / folder).mkdir(parents=True, exist_ok=True)
  picture = encode(red() if image is None else image)
  for split, pictures in splits.items():
    lines = ''.join(f'{name}  1\n' for name in pictures)
    (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text(lines + '\n')
    for name, objects in pictures.items():
      xml = objects if isinstance(objects, str) else annotation(objects, said)
      (root / 'Annotations' / f'{name}.xml').write_text(xml)
      (root / 'JPEGImages' / f'{name}.png').write_bytes(picture)
  return root
