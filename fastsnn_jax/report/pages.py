"""The report of a run: a result dict as JSON, Markdown, HTML and pictures.

`write` is the only door. It takes plain numbers and arrays, knows nothing of
networks, and leaves out every section that the results have no data for.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from fastsnn_jax.errors import UserError
from fastsnn_jax.report import canvas

_TEMPLATES = pathlib.Path(__file__).with_name('templates')


class _Column(NamedTuple):
  """A column of the table: its head, its numbers' format and their source."""

  head: str
  write: Callable[[Any], str]
  value: Callable[[dict], Any]


def write(
  directory,
  results: dict,
  rasters: dict | None = None,
  examples: dict | None = None,
) -> None:
  """Writes `results.json`, `report.md`, `report.html` and `plots/*.png`.

  Args:
    directory: where to write; made if it is missing.
    results: `model`, `dataset` and `rows` (a dict per bit width, mode and
      tuning, with at least `bits`, `T`, `steps`, `mode` and `tuned`); whatever
      else is there gets its section. Accuracies are in [0, 1].
    rasters: name -> `layers`, `spikes` (an int array `[steps, neurons]` a
      layer), `image` (uint8 `[H, W, C]`) and `T`.
    examples: name -> images and answers, see `pictures.draw`.
  """
  for key in ('model', 'dataset', 'rows'):
    if key not in results:
      raise UserError(
        f'results without {key!r}: a report needs model, dataset and rows; '
        'evaluate the network first'
      )
  directory = pathlib.Path(directory)
  try:
    (directory / 'plots').mkdir(parents=True, exist_ok=True)
    # The numbers first: they are the run's outcome, the rest can be redrawn.
    results = _plain(results)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)
    _save(directory / 'results.json', text + '\n')
    _pages(directory, results, rasters or {}, examples or {})
  except OSError as error:
    raise UserError(
      f'cannot write the report to {str(directory)!r}: {error.strerror}; '
      'make room or name a directory that can be written to'
    ) from error


def _pages(directory, results, rasters, examples):
  import jinja2

  from fastsnn_jax.report import plots
  from fastsnn_jax.report import predictions as pictures
  from fastsnn_jax.report import rasters as spikes

  curves, bands = plots.draw(results), spikes.draw(rasters)
  answers = pictures.draw(examples, results.get('classes') or ())
  figures = curves | bands | answers
  for name, figure in figures.items():
    canvas.png(figure, directory / 'plots' / f'{name}.png')
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=lambda name: name == 'report.html.jinja',
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = percent
  metric = results.get('metric', 'accuracy')
  groups = _groups(results['rows'], metric)
  known = {
    'results': results,
    'metric': metric,
    'float': results.get(f'float_{metric}'),
    'columns': _columns(results),
    'groups': groups,
    'best': [group['best'] for group in groups],
    'tables': [
      (title, table)
      for title, table in (
        ('Class by class', _table(groups, 'by_class', results.get('classes'))),
        ("COCO's numbers", _table(groups, 'coco', None)),
      )
      if table
    ],
    'figures': figures,
    'rasters': list(bands),
    'pictures': list(answers),
    'label': canvas.label,
    'svg': canvas.svg,
  }
  for page in ('report.md', 'report.html'):
    template = environment.get_template(f'{page}.jinja')
    _save(directory / page, template.render(known).strip() + '\n')


def _columns(results):
  """The measured columns that at least one row has a number for."""
  metric = results.get('metric', 'accuracy')
  head = metric.capitalize() if metric.islower() else metric  # mAP stays mAP
  columns = (
    _Column(head, percent, lambda row: row.get(metric)),
    _Column('ANN ' + metric, percent, lambda row: row.get(f'ann_{metric}')),
    _Column('Agreement', percent, lambda row: row.get('agreement')),
    _Column(
      'Largest logit difference',
      number,
      lambda row: row.get('max_logit_difference'),
    ),
    _Column(
      'Spikes per neuron and step',
      number,
      lambda row: row.get('mean_firing_rate'),
    ),
    _Column('Spikes per image', count, lambda row: row.get('spikes_per_image')),
    _Column('SynOps per image', count, lambda row: row.get('synops_per_image')),
    _Column('ANN MACs per image', count, lambda row: row.get('macs_per_image')),
    _Column('SynOps / MACs', number, _ratio),
    _Column('All quiet at step', str, lambda row: row.get('quiet_step')),
  )
  return [
    column._replace(write=_or_dash(column.write))
    for column in columns
    if any(column.value(row) is not None for row in results['rows'])
  ]


def _ratio(row):
  synops, macs = row.get('synops_per_image'), row.get('macs_per_image')
  return synops / macs if synops is not None and macs else None


def _groups(rows, metric):
  """Rows of one bit width together, each group with its best row.

  Best is the one of the highest metric; of equals the one that agrees more
  often, and then the one with the least work.
  """
  groups = {}
  for row in rows:
    groups.setdefault((row['bits'], row['T']), []).append(row)

  def merit(row):
    def known(key):
      return row[key] if row.get(key) is not None else -math.inf

    work = row.get('synops_per_image')
    work = math.inf if work is None else work
    return known(metric), known('agreement'), -work

  return [
    {'bits': bits, 'T': steps, 'rows': rows, 'best': max(rows, key=merit)}
    for (bits, steps), rows in groups.items()
  ]


def _table(groups, key, heads):
  """(heads, lines) of what rows have under a key, for each network; or None.

  Args:
    groups: as of `_groups`.
    key: of a list, or of a dict; the ANN's has 'ann_' in front.
    heads: of the list's entries.
  """
  lines = []
  for group in groups:
    rows = [row for row in group['rows'] if row.get(key)]
    named = [(canvas.label(row), row[key]) for row in rows]
    if rows:
      named.insert(0, ('quantised ANN', rows[0][f'ann_{key}']))
    for name, numbers in named:
      if isinstance(numbers, dict):
        heads, numbers = list(numbers), list(numbers.values())
      cells = [_or_dash(percent)(number) for number in numbers]
      lines.append([group['bits'], name, *cells])
  return (heads, lines) if lines else None


def percent(share: float) -> str:
  """A share as a percentage; only what is all of it rounds to 100.

  >>> percent(0.9612), percent(1.0), percent(0.99996)
  ('96.1 %', '100.0 %', '99.996 %')
  """
  return f'{100 * share:.{1 if share == 1 or round(share, 3) < 1 else 3}f} %'


def count(value: float) -> str:
  """A count in thousands, millions or billions.

  >>> count(712.0), count(34512), count(1234567), count(4.1e9)
  ('712', '34.5 k', '1.2 M', '4.1 G')
  """
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size:
      return f'{value / size:.1f} {unit}'
  return f'{value:.3g}'


def number(value: float) -> str:
  """Any other number.

  >>> number(0.18345), number(3.4e-7), number(0.0)
  ('0.183', '3.4e-07', '0')
  """
  return f'{value:.3g}' if value == 0 or abs(value) >= 1e-3 else f'{value:.1e}'


def _or_dash(write):
  return lambda value: '\u2013' if value is None else write(value)


def _plain(value):
  """Builtin types alone, None for what JSON has no number for."""
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if hasattr(value, 'tolist'):  # NumPy's arrays and scalars, and JAX's
    return _plain(value.tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, (bool, int, str)):
    return value
  return str(value)


def _save(path, text):
  """Writes the whole file or leaves the old one as it was."""
  draft = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    draft.write_text(text, encoding='utf-8')
    draft.replace(path)
  finally:
    draft.unlink(missing_ok=True)
