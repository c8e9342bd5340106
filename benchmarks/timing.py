"""Times alternatives side by side, interleaved: a busy spell hits them all."""

import time

import jax


def compare(alternatives, repeats=7):
  """{name: (function, *arguments)} -> {name: seconds}, the fastest of each.

  Every function is called once before, so that compilation does not count.
  """
  for function, *arguments in alternatives.values():
    jax.block_until_ready(function(*arguments))
  best = dict.fromkeys(alternatives, float('inf'))
  for _ in range(repeats):
    for name, (function, *arguments) in alternatives.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      best[name] = min(best[name], time.perf_counter() - start)
  return best


def show(title, seconds, unit):
  """Prints a table with the ratio to the alternative named `unit`."""
  print(f'\n{title}\n')
  print(f'| | ms | times {unit} |\n|---|--:|--:|')
  for name, took in seconds.items():
    print(f'| {name} | {1e3 * took:.1f} | {took / seconds[unit]:.2f} |')
