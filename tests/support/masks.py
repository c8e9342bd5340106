"""Directories of pictures with masks, for the tests to read."""

import numpy as np
import PIL.Image
from support.pictures import encode, smooth


def palette(array, **options):
  """A PNG with a palette, as VOC's: colours that say nothing of the index."""
  image = PIL.Image.fromarray(np.asarray(array, np.uint8)).convert('P')
  image.putdata(np.asarray(array).ravel().tolist())
  image.putpalette([(37 * i + 11) % 256 for i in range(768)])
  return encode(image, **options)


def mask(width, height, classes, seed=0):
  """Random labels with some to be ignored."""
  random = np.random.default_rng(seed)
  labels = random.integers(0, classes + 1, (height, width))
  return np.where(labels == classes, 255, labels).astype(np.uint8)


def write(root, splits, classes='sky\nroad\ncar\n', folder='SegmentationClass'):
  """Writes {split: {name: labels}} in VOC's layout; bytes are written as such.

  Returns:
    {name: picture, uint8 [h, w, 3]}, losslessly compressed.
  """
  for below in ('JPEGImages', folder, 'ImageSets/Segmentation'):
    (root / below).mkdir(parents=True, exist_ok=True)
  if classes:
    (root / 'classes.txt').write_text(classes)
  written = {}
  for split, names in splits.items():
    listed = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
    listed.write_text(''.join(f'{name}\n' for name in names) + '\n')
    for name, labels in names.items():
      raw = isinstance(labels, bytes)
      height, width = (6, 8) if raw else np.shape(labels)
      written[name] = smooth(height, width, seed=len(written))
      picture = root / 'JPEGImages' / f'{name}.png'
      picture.write_bytes(encode(written[name]))
      content = labels if raw else palette(labels)
      (root / folder / f'{name}.png').write_bytes(content)
  return written
