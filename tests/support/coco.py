"""Directories in COCO's layout, for the tests to read."""

import json

import PIL.Image

CATEGORIES = [{'id': 7, 'name': 'dog'}, {'id': 3, 'name': 'cat'}]
CAT = {'category_id': 3, 'bbox': [0, 0, 10, 5], 'area': 30.5, 'iscrowd': 0}
DOG = {'category_id': 7, 'bbox': [4.5, 2, 8, 4], 'area': 20, 'iscrowd': 1}


def write(root, split, pictures, *, annotations=None, folder=None, **changes):
  """Writes {name: annotations} as a split; pictures are 20 x 10."""
  annotations = root / (annotations or f'annotations/instances_{split}.json')
  folder = root / (split if folder is None else folder)
  annotations.parent.mkdir(parents=True, exist_ok=True)
  folder.mkdir(parents=True, exist_ok=True)
  images, rows = [], []
  for i, (name, objects) in enumerate(pictures.items(), start=5):
    size = {'width': 20, 'height': 10}
    images.append({'id': i, 'file_name': f'{name}.png', **size})
    rows += [{'image_id': i, 'segmentation': [[1, 2]], **x} for x in objects]
    PIL.Image.new('RGB', (20, 10)).save(folder / f'{name}.png')
  content = {'images': images, 'annotations': rows, 'categories': CATEGORIES}
  annotations.write_text(json.dumps(content | changes))
  return annotations
