"""How long a step of training takes: images read, sent and learned from.

  python -m benchmarks.training_step [--steps 20] [--repeats 5]
  python -m benchmarks.training_step --against CHECKOUT

Each case runs in a process of its own. With another checkout of the library,
its processes and ours run in turn, so a busy spell hits both; medians are told.
What the command line wins by memory that it keeps between steps shows without
and with MALLOC_MMAP_MAX_=0 MALLOC_ARENA_MAX=1
MALLOC_TRIM_THRESHOLD_=100000000000 in the environment.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CASES = {'small_resnet8': 'digits', 'cifar_resnet20': 'random images'}


def work(model, batch):
  """A function that trains for so many steps and returns ms a step."""
  import jax
  import numpy as np

  import fastsnn_jax as fs
  from fastsnn_jax import data, distributed, tasks
  from fastsnn_jax.training.step import make_step

  if CASES[model] == 'digits':
    dataset = data.load('digits')
  else:
    images = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3))
    part = {'image': images.astype(np.uint8), 'label': np.arange(2048) % 10}
    dataset = data.as_dataset({'train': part, 'test': part})
  stage = fs.Stage(2)
  config = fs.Experiment(model, fs.Data(batch=batch), (stage,))
  network = fs.build(
    model, 2, dataset.classes, mean=dataset.mean, std=dataset.std
  )
  split = dataset.train
  images = np.zeros((1, *split.shape), np.float32)
  variables = network.init(jax.random.key(0), images)
  task = tasks.for_network(network)
  step = make_step(network, task, config, stage, split.steps(batch))
  shuffle = data.Shuffle(0)
  state, key = distributed.everywhere(
    (step.start(variables, split.shapes(batch)), shuffle.draw_key)
  )
  batches = split.batches(batch, shuffle=shuffle)

  def run(steps):
    nonlocal state
    began = time.perf_counter()
    for _ in range(steps):
      rows = distributed.by_row(next(batches))
      state, report = step.advance(state, rows, key, None)
    jax.block_until_ready((state, report))
    return 1e3 * (time.perf_counter() - began) / steps

  return run


class Worker:
  """A process that trains when it is asked, with the library of a checkout."""

  def __init__(self, checkout, model, batch, script=None):
    script = script or checkout / 'benchmarks' / 'training_step.py'
    self._process = subprocess.Popen(
      [sys.executable, script, '--model', model, '--batch', str(batch)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={**os.environ, 'PYTHONPATH': str(checkout)},
      text=True,
    )

  def milliseconds(self, steps):
    print(steps, file=self._process.stdin, flush=True)
    return float(self._process.stdout.readline())

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def serve(run):
  """What a worker does: a number of steps comes in, ms a step go out."""
  for line in sys.stdin:
    print(run(int(line)), flush=True)


def compare(checkouts, batch, steps, repeats):
  """Prints a table; `checkouts` is {name: (directory, script or None)}."""
  print(f'\n| batch {batch} | {" | ".join(checkouts)} | ratio |')
  print('|---|' + '--:|' * (len(checkouts) + 1))
  for model, images in CASES.items():
    workers = [Worker(d, model, batch, s) for d, s in checkouts.values()]
    for worker in workers:
      worker.milliseconds(3)  # compiles
    rounds = [[w.milliseconds(steps) for w in workers] for _ in range(repeats)]
    for worker in workers:
      worker.close()
    middle = [statistics.median(times) for times in zip(*rounds, strict=True)]
    shown = ' | '.join(f'{ms:.1f} ms' for ms in middle)
    ratio = statistics.median(times[0] / times[-1] for times in rounds)
    print(f'| {model}, {images} | {shown} | {ratio:.2f} |', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--against', type=pathlib.Path, help='another checkout')
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--model', choices=CASES, help='be a worker')
  args = parser.parse_args()
  if args.model:
    serve(work(args.model, args.batch))
    return
  checkouts = {'this': (ROOT, None)}
  if args.against:
    checkouts['other'] = (args.against.resolve(), None)
  compare(checkouts, args.batch, args.steps, args.repeats)


if __name__ == '__main__':
  main()
