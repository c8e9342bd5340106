"""What folded networks cost beside their folded float network.

python benchmarks/folded.py [--model cifar_resnet20] [--batch 64] [--bits 2 3 4]

Medians of interleaved calls: a busy spell hits them all.
"""

import argparse
import statistics
import time

import jax
from networks import forward, variables_of
from timing import show

import fastsnn_jax as fs


def medians(alternatives, repeats):
  """{name: (function, *arguments)} -> {name: seconds}, of interleaved calls."""
  took = {name: [] for name in alternatives}
  for i in range(repeats + 1):
    for name, (function, *arguments) in alternatives.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      if i:  # the first compiles
        took[name].append(time.perf_counter() - start)
  return {name: statistics.median(seconds) for name, seconds in took.items()}


def side(model):
  """Of small images that the network takes."""
  return 97 if 'lab' in model else 96 if 'yolo' in model else 32


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default='cifar_resnet20', choices=fs.models())
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4])
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--modes', nargs='+', default=['signed'])
  parser.add_argument('--unfolded', action='store_true')
  args = parser.parse_args()
  shape = (args.batch, *[side(args.model)] * 2, 3)
  images = jax.random.normal(jax.random.key(1), shape)
  plain = fs.build(args.model, 32)
  floating = variables_of(plain, images)
  calls = {'float': (forward(plain), floating, images)}

  def add(name, network, variables):
    if args.unfolded:
      calls[f'{name}, not folded'] = (forward(network), variables, images)
    folded, ready = fs.fold(network, variables)
    calls[name] = (forward(folded), ready, images)

  add('float, folded', plain, floating)
  for bits in args.bits:
    ann = fs.build(args.model, bits)
    variables = variables_of(ann, images)
    add(f'{bits} bits', ann, variables)
    for mode in args.modes:
      snn = fs.to_spiking(ann, mode)
      name = f'{bits} bits: {mode}, {snn.neuron.total_steps} steps'
      add(name, snn, variables)
  title = f'{args.model}, batch {args.batch}'
  show(title, medians(calls, args.repeats), 'float, folded')


if __name__ == '__main__':
  main()
