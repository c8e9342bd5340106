"""The embedded set: 1,797 real handwritten digits of 8×8 pixels.

`embedded/digits.md` has their source, licence (CC BY 4.0) and how to make them.
"""

import importlib.resources

import numpy as np

from fastsnn_jax.data.own import Dataset

# Of the training split, in 0..1; a test measures them again.
MEAN, STD = (0.305802,), (0.376053,)


def load() -> Dataset:
  """1,437 images [8, 8, 1] to train on and 360 to test on, of 0..255."""
  file = importlib.resources.files('fastsnn_jax') / 'data/embedded/digits.npz'
  with file.open('rb') as stream, np.load(stream) as arrays:
    image, label = arrays['image'], arrays['label'].astype(np.int32)
  # The source's 0 to 16, stretched without loss.
  image = ((image.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)
  # Every fifth image in the order of the classes: stratified, and no random
  # generator can ever change it.
  test = np.zeros(len(label), bool)
  test[np.argsort(label, kind='stable')[::5]] = True
  train, test = (
    {'image': image[rows, :, :, None], 'label': label[rows]}
    for rows in (~test, test)
  )
  return Dataset('digits', train, test, tuple('0123456789'), MEAN, STD)
