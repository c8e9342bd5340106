"""Accuracy against operations, for networks that were trained to fire less.

  python -m benchmarks.sparsity --config fashion_mnist --bits 2 \\
    --workdir runs/sparse --data-path DIR_OF_IDX_FILES

Trains the stages before --bits once, then that stage for each --sparsity,
from the same start, and prints a line for each: accuracy of the quantised
network and of its settled twin, which are the same, spikes and effective
operations of an image, and these as shares of those of the first one.
"""

import argparse
import dataclasses
import pathlib
import shutil

import numpy as np

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment import workdir as files

_IMAGES = 100  # of which operations are counted


def curve(config, bits, weights, workdir):
  """[a dict for each weight of the penalty], trained where it is not yet."""
  before = tuple(s for s in config.stages if s.bits > bits)
  (last,) = (s for s in config.stages if s.bits == bits)
  start = workdir / 'start'
  fs.train(dataclasses.replace(config, stages=before), start)
  found = []
  for weight in weights:
    own = workdir / f'sparsity{weight:g}'
    if not own.exists():
      shutil.copytree(start, own)
    stage = dataclasses.replace(last, sparsity=weight)
    settings = dataclasses.replace(config, stages=(*before, stage))
    scores = fs.train(settings, own)
    network, variables = fs.load(own / f'ann{bits}')
    test = files.open_data(settings).test
    batch = next(test.batches(min(_IMAGES, len(test)), shared=False))
    shown = np.asarray(tasks.for_network(network).present(batch['image']))
    settled = fs.to_spiking(network, 'settled')
    cost = fs.cost(settled, variables, shown)
    counts = cost['SynapticOperations']
    found.append(
      {
        'sparsity': weight,
        'score': scores[f'ann{bits}'],
        'spikes': cost['spikes'],
        'operations': counts['Effective_ACs'] + counts['Effective_MACs'],
        'firing_rate': cost['firing_rate'],
        'break_even_rate': cost['break_even_rate'],
      }
    )
  return found


def main():
  layout = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    'python -m benchmarks.sparsity',
    description=__doc__,
    formatter_class=layout,
  )
  parser.add_argument('--config', default='fashion_mnist')
  parser.add_argument('--bits', type=int, default=2)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--data-path')
  parser.add_argument(
    '--sparsity', type=float, nargs='+', default=[0.0, 0.01, 0.03, 0.1]
  )
  args = parser.parse_args()
  config = schema.load(args.config)
  if args.data_path:
    data = dataclasses.replace(config.data, path=args.data_path)
    config = dataclasses.replace(config, data=data)
  rows = curve(config, args.bits, args.sparsity, args.workdir)
  print('sparsity  score %  spikes  operations  of the first  rate  break-even')
  for row in rows:
    share = row['operations'] / rows[0]['operations']
    print(
      f'{row["sparsity"]:8g}  {100 * row["score"]:7.2f}  {row["spikes"]:6.0f}  '
      f'{row["operations"]:10.0f}  {share:12.3f}  {row["firing_rate"]:.3f}  '
      f'{row["break_even_rate"]:.3f}'
    )


if __name__ == '__main__':
  main()
