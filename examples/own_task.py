"""A task of one's own: how many dots are in an image, as a regression.

python examples/own_task.py [WORKDIR]
"""

import dataclasses
import sys
import tempfile
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

import fastsnn_jax as fs


@dataclasses.dataclass(frozen=True)
class Counting(fs.Task):
  metric: ClassVar[str] = 'exact'  # the larger the better

  def predict(self, outputs):
    return jnp.round(outputs[:, 0])

  def loss(self, outputs, batch):
    squares = (outputs[:, 0] - batch['label']) ** 2 * batch['mask']
    sums = self.measure(self.predict(outputs), batch)
    mean = squares.sum() / jnp.maximum(sums['count'], 1)
    return mean, {'loss': squares.sum(), **sums}

  def measure(self, predictions, batch):
    exact = (predictions == batch['label']) * batch['mask']
    return {'exact': exact.sum(), 'count': batch['mask'].sum()}

  def summarize(self, sums, kept=None):
    return {
      name: float(sums[name] / sums['count']) for name in {*sums} - {'count'}
    }


def table(bits, classes):
  head = fs.Chain((fs.GlobalAveragePool(), fs.Dense(1, norm=False)))
  return [
    fs.Layer('stem', fs.Conv(16)),
    fs.Layer('down', fs.Conv(16, stride=2), ('stem',)),
    fs.Layer('count', head, ('down',)),
  ]


def dots(number, seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 5, number)
  images = rng.integers(0, 30, (number, 12, 12, 1), np.uint8)
  for image, label in zip(images, labels, strict=True):
    image.reshape(-1)[rng.choice(144, label, replace=False)] = 250
  return {'image': images, 'label': labels}


workdir = sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()
fs.register_task('counting', Counting)
fs.register_model('counter', table, task='counting', theta=3.0, size=12)
data = {'train': dots(2048, seed=0), 'test': dots(512, seed=1)}
stages = (
  fs.Stage(32, epochs=6, learning_rate=0.05, schedule='cosine'),
  fs.Stage(3, epochs=6, learning_rate=0.02, schedule='cosine'),
)
settings = fs.Data(batch=64, crop=0, flip=False)
fs.train(fs.Experiment('counter', settings, stages), workdir, data=data)
ann, variables = fs.load(f'{workdir}/ann3')
for mode in ('signed', 'settled'):
  spiking = fs.to_spiking(ann, mode)
  print(mode, fs.evaluate(spiking, variables, data['test']))
