"""Times alternatives side by side, interleaved: a busy spell hits them all."""

import statistics
import time

import jax


def compare(alternatives, repeats=7):
  """{name: (function, *arguments)} -> {name: seconds of every round}.

  Every function is called once before, so that compilation does not count.
  """
  for function, *arguments in alternatives.values():
    jax.block_until_ready(function(*arguments))
  took = {name: [] for name in alternatives}
  for _ in range(repeats):
    for name, (function, *arguments) in alternatives.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      took[name].append(time.perf_counter() - start)
  return took


def table(title, took, unit, images=0):
  """What `show` prints: medians, and the ratio to the alternative `unit`.

  The ratio is the median over the rounds of a round's two times; the spread is
  half the distance of the quartiles, of the median; `images` are in a call.
  """
  columns = ['', 'ms', 'spread', f'times {unit}']
  columns += ['images/s'] * bool(images)
  rows = []
  for name, seconds in took.items():
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles([*seconds, middle], n=4)
    pairs = zip(seconds, took[unit], strict=True)
    ratio = statistics.median(mine / limit for mine, limit in pairs)
    spread = (high - low) / 2 / middle
    row = [name, round(1e3 * middle, 2), f'{spread:.0%}', round(ratio, 2)]
    rows.append(row + [round(images / middle)] * bool(images))
  return {'title': title, 'columns': columns, 'rows': rows}


def show(table):
  """Prints a table in Markdown."""
  print(f'\n### {table["title"]}\n')
  print(f'| {" | ".join(table["columns"])} |')
  print('|---|' + '--:|' * (len(table['columns']) - 1))
  for row in table['rows']:
    print(f'| {" | ".join(map(str, row))} |', flush=True)
