"""Trains on NumPy arrays of one's own, converts, and answers raw images.

python examples/own_arrays.py [WORKDIR]
"""

import sys
import tempfile

import numpy as np

import fastsnn_jax as fs


def spots(count, seed):
  """Noisy grey images with a bright spot in one of four corners."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 100, (count, 8, 8, 1), np.uint8)
  labels = rng.integers(0, 4, count)
  for image, label in zip(images, labels, strict=True):
    top, left = 4 * (label // 2), 4 * (label % 2)
    image[top + 1 : top + 3, left + 1 : left + 3] += 70
  return {'image': images, 'label': labels}


workdir = sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()
data = {
  'train': spots(1024, seed=0),
  'test': spots(256, seed=1),
  'classes': ('top left', 'top right', 'bottom left', 'bottom right'),
}
config = fs.Experiment(
  model='small_resnet8',
  data=fs.Data(batch=64, crop=0, flip=False),
  # Real data want stages of 32, 4 and 3 bits first, each from the one before.
  stages=(fs.Stage(2, epochs=4, learning_rate=0.1, schedule='cosine'),),
)
fs.train(config, workdir, data=data)

ann, variables = fs.load(f'{workdir}/ann2')
spiking = fs.to_spiking(ann, 'settled')
images = data['test']['image']
answers = fs.classify(spiking, variables, images)
right = np.mean(answers == data['test']['label'])
same = np.mean(answers == fs.classify(ann, variables, images))
print(f'settled: {right:.1%} are right, {same:.1%} are as the quantised ones')
print('the first image:', ann.classes[answers[0]])
