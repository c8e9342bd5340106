"""Accuracy of a workdir's float network, converted without training.

  python -m benchmarks.calibrated --workdir runs/digits [--config FILE]
    [--bits 4 5 6 8] [--images 512] [--test 2000]

Theta is chosen from training images by `fs.calibrate`, the rest is measured on
the first test images.
"""

import argparse

import jax.numpy as jnp
import numpy as np

import fastsnn_jax as fs
from benchmarks.timing import show
from fastsnn_jax import tasks
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment import workdir as files


def rows(workdir, bits, images=512, test=2000):
  """A row for each bit width: float, quantised, signed and settled."""
  config = files.experiment_of(workdir)
  dataset = files.open_data(config)
  network, variables = fs.load(files.at(workdir) / 'ann32')
  task, batch = tasks.for_network(network), config.data.eval_batch
  some = next(dataset.train.some(images, 0).batches(images, shared=False))
  shown = jnp.asarray(task.present(some['image']))
  judged = dataset.test.take(np.arange(min(test, len(dataset.test))))
  measured = fs.evaluate(network, variables, judged, batch=batch)
  for width in bits:
    ann, trees = fs.calibrate(network, variables, shown, width)
    spiking = {
      'signed': (fs.to_spiking(ann), trees),
      'settled': (fs.to_spiking(ann, 'settled'), trees),
    }
    found = fs.compare(ann, trees, spiking, judged, batch=batch)
    yield [
      f'{width}, {2**width - 1}',
      f'{100 * measured[task.metric]:.2f}',
      f'{100 * found["signed"]["ann_" + task.metric]:.2f}',
      *(
        f'{100 * row[task.metric]:.2f} ({100 * row["agreement"]:.2f})'
        for row in found.values()
      ),
    ]


def main(arguments=None):
  parser = argparse.ArgumentParser('python -m benchmarks.calibrated')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--config', help='for the model that it registers')
  parser.add_argument('--bits', type=int, nargs='+', default=[4, 5, 6, 8])
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--test', type=int, default=2000)
  args = parser.parse_args(arguments)
  if args.config:
    schema.load(args.config)
  columns = ['bits, T', 'float', 'quantised', 'signed', 'settled']
  for row in rows(args.workdir, args.bits, args.images, args.test):
    show({'title': 'Calibrated', 'columns': columns, 'rows': [row]})


if __name__ == '__main__':
  main()
