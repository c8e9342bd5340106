"""Every table of docs/performance.md, on the device that JAX finds.

  python -m benchmarks [neuron inference functions growth training tuning
      compiling memory] [--quick] [--json FILE]

Alternatives run in turn; a table has medians, the spread, and the ratio to its
limit. Peers are timed where they are installed: pip install -e '.[bench]'.
"""

import argparse
import importlib
import json
import pathlib
import platform

import jax

from benchmarks.timing import show

TOPICS = 'neuron', 'inference', 'functions', 'growth', 'training', 'tuning'
TOPICS += 'compiling', 'memory'


def machine():
  device = jax.devices()[0]
  return {
    'device': f'{device.device_kind} ({device.platform})',
    'devices': jax.device_count(),
    'processor': platform.processor() or platform.machine(),
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


def main():
  layout = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    'python -m benchmarks', description=__doc__, formatter_class=layout
  )
  parser.add_argument(
    'topics', nargs='*', help=f'of {", ".join(TOPICS)}; all if none is given'
  )
  parser.add_argument(
    '--quick', action='store_true', help='small cases, to see that it runs'
  )
  parser.add_argument('--json', type=pathlib.Path, help='writes all tables')
  args = parser.parse_args()
  if wrong := sorted(set(args.topics) - set(TOPICS)):
    parser.error(f'{wrong[0]!r} is no topic; there are {", ".join(TOPICS)}')
  found = {'machine': machine(), 'quick': args.quick, 'tables': []}
  print(', '.join(f'{name}: {x}' for name, x in found['machine'].items()))
  for topic in args.topics or TOPICS:
    module = importlib.import_module(f'benchmarks.{topic}')
    for table in module.tables(args.quick):
      show(table)
      found['tables'].append({'topic': topic, **table})
      if args.json:  # after each: a run that is cut short keeps the rest
        args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
