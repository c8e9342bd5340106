"""A task of one's own: how many dots are in an image, as a regression.

python examples/own_task.py [WORKDIR]
"""

import dataclasses
import sys
import tempfile

import jax.numpy as jnp
import numpy as np

import fastsnn_jax as fs


@dataclasses.dataclass(frozen=True)
class Counting(fs.Task):
  metric = 'exact'  # of the names in `summarize`: the larger the better

  def predict(self, outputs):
    return jnp.round(outputs[:, 0])

  def measure(self, predictions, batch):
    exact = (predictions == batch['label']) * batch['mask']
    return {'exact': exact.sum(), 'count': batch['mask'].sum()}

  def loss(self, outputs, batch):
    sums = self.measure(self.predict(outputs), batch)
    squares = ((outputs[:, 0] - batch['label']) ** 2 * batch['mask']).sum()
    return squares / jnp.maximum(sums['count'], 1), {'loss': squares, **sums}

  def summarize(self, sums, kept=None):
    return {k: float(sums[k] / sums['count']) for k in sums if k != 'count'}


def table(bits, classes):
  head = fs.Chain((fs.GlobalAveragePool(), fs.Dense(1, norm=False)))
  stem = fs.Layer('stem', fs.Conv(16))
  down = fs.Layer('down', fs.Conv(16, stride=2), ('stem',))
  return [stem, down, fs.Layer('count', head, ('down',))]


def dots(number, seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 5, number)
  bright = rng.permuted(np.arange(144) < labels[:, None], axis=1)
  images = np.uint8(250 * bright).reshape(number, 12, 12, 1)
  return {'image': images, 'label': labels}


fs.register_task('counting', Counting)
fs.register_model('counter', table, task='counting', theta=3.0, size=12)
workdir = sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()
stages = (fs.Stage(3, epochs=12, learning_rate=0.05, schedule='cosine'),)
config = fs.Experiment('counter', fs.Data(crop=0, flip=False), stages)
data = {'train': dots(2048, seed=0), 'test': dots(512, seed=1)}
fs.train(config, workdir, data=data)
ann, variables = fs.load(f'{workdir}/ann3')
scores = fs.evaluate(fs.to_spiking(ann, 'settled'), variables, data['test'])
print('settled:', scores)
