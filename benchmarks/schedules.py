"""What each schedule of fine-tuning brings a trained network of a workdir.

  python -m benchmarks.schedules WORKDIR --bits 3 [--schedules bias parallel]
      [--epochs 1 2 3] [--images 250] [--test 1000] [--seeds 0]
      [--batch-norm eval] [--accept always]

The first images are taken. "output" is the mean square distance of the outputs
of both networks, as a share of that of the signed network as converted.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import fastsnn_jax as fs
from benchmarks.timing import show
from fastsnn_jax import tasks
from fastsnn_jax.experiment.workdir import experiment_of, open_data


def distance(ann, variables, snn, tuned, task, split, batch):
  """Mean square distance of the outputs, over all numbers of an output."""

  @jax.jit
  def of(images):
    shown = task.present(images)
    pair = ann.apply(variables, shown)[0], snn.apply(tuned, shown)[0]
    leaves = zip(*map(jax.tree.leaves, pair), strict=True)
    return jnp.mean(jnp.stack([jnp.mean((a - b) ** 2) for a, b in leaves]))

  found = [float(of(x['image'])) for x in split.batches(batch, shared=False)]
  return sum(found) / len(found)


def main():
  layout = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    'python -m benchmarks.schedules',
    description=__doc__,
    formatter_class=layout,
  )
  parser.add_argument('workdir')
  parser.add_argument('--bits', type=int, required=True)
  parser.add_argument('--schedules', nargs='*', default=['bias'])
  parser.add_argument('--epochs', nargs='*', type=int, default=[1])
  parser.add_argument('--images', type=int, default=250)
  parser.add_argument('--test', type=int, default=1000)
  parser.add_argument('--seeds', nargs='*', type=int, default=[0])
  parser.add_argument('--batch-norm', default=None)
  parser.add_argument('--accept', default=None)
  args = parser.parse_args()
  config = experiment_of(args.workdir)
  data, ours = open_data(config), config.convert
  ann, variables = fs.load(f'{args.workdir}/ann{args.bits}')
  variables = jax.tree.map(jnp.asarray, variables)
  snn, task = fs.to_spiking(ann), tasks.for_network(ann)
  images = data.train.take(np.arange(args.images)).in_memory()
  test = data.test.take(np.arange(args.test)).in_memory()
  batch = config.data.eval_batch
  rows, base = [], None

  def judge(name, tuned, seconds=0.0):
    nonlocal base
    row = fs.compare(
      ann, variables, {'it': (snn, tuned)}, test, task=task, batch=batch
    )['it']
    off = distance(ann, variables, snn, tuned, task, test, batch)
    base = base or off
    found = row[task.metric], row['agreement'], off / base
    if not rows:
      rows.append(['quantised', 100 * row[f'ann_{task.metric}'], 100, 0, 0])
    shown = [100 * found[0], 100 * found[1], found[2], seconds]
    rows.append([name, *shown])
    print(name, *(round(x, 3) for x in shown), flush=True)

  judge('signed', variables)
  for schedule in args.schedules:
    for epochs in args.epochs:
      for seed in args.seeds:
        tuning = fs.Tuning(
          schedule,
          epochs,
          batch=min(config.data.batch, args.images),
          batch_norm=args.batch_norm or ours.batch_norm,
          accept=args.accept or ours.accept,
          crop=task.shift(config.data),
          flip=config.data.flip,
        )
        if schedule == 'bias' and seed != args.seeds[0]:
          continue  # there is nothing at random
        start = time.perf_counter()
        tuned, _ = fs.finetune(
          *(ann, snn, variables, images, tuning),
          task=task,
          seed=seed,
          batch=batch,
        )
        took = time.perf_counter() - start
        judge(f'{schedule}, {epochs}, seed {seed}', tuned, took)
  columns = ['', task.metric, 'agreement', 'output', 's']
  rows = [[name, *(round(x, 2) for x in row)] for name, *row in rows]
  title = f'{args.workdir}, {args.bits} bits, {args.images} images'
  show({'title': title, 'columns': columns, 'rows': rows})


if __name__ == '__main__':
  main()
