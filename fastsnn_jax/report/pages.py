"""The report of a run: its results as JSON, Markdown, HTML and pictures.

`write` takes plain numbers and arrays and knows nothing of networks. It leaves
out every section that the results have no data for.
"""

import contextlib
import errno
import html
import json
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable

from fastsnn_jax.errors import UserError, told

_TEMPLATES = pathlib.Path(__file__).with_name('templates')
_PAGES = 'report.md', 'report.html'
_DASH = '\u2013'  # for a number that there is not


def check(directory) -> None:
  """Raises a UserError where a report cannot be written."""
  directory = pathlib.Path(directory)
  with _told(directory):
    (directory / 'plots').mkdir(parents=True, exist_ok=True)
    for folder in (directory, directory / 'plots'):
      if not os.access(folder, os.W_OK):
        raise OSError(errno.EACCES, 'it is read-only')
    for name in ('results.json', *_PAGES):
      if (directory / name).is_dir():
        raise OSError(errno.EISDIR, f'{name} is a directory')


def write(
  directory,
  results: dict,
  rasters=None,
  examples=None,
  meanwhile: Callable[[], None] = lambda: None,
) -> list[str]:
  """Writes `results.json`, `report.md`, `report.html` and `plots/*.png`.

  All is written aside first. Then the old pages go, the new numbers come, and
  the new pages: a kill leaves none of them half or beside another's.

  Args:
    directory: it is made if it is missing; UserError if that cannot be.
    results: `model`, `dataset` and `rows` (a dict for each bit width, mode and
      tuning, with at least `bits`, `T`, `steps`, `mode` and `tuned`), and the
      data of other sections. Accuracies are in [0, 1].
    rasters, examples: title -> what `plots.raster`, `predictions.draw` take.
    meanwhile: writes what the report belongs to, while no page is there.

  Returns:
    A line for each page or picture that could not be drawn.
  """
  directory = pathlib.Path(directory)
  check(directory)
  draft, problems, failed = directory / '.draft', [], None
  results = _plain(results)
  with _told(directory):
    shutil.rmtree(draft, ignore_errors=True)  # a kill left it
    try:
      (draft / 'plots').mkdir(parents=True)
      text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)
      _save(numbers := draft / 'results.json.part', text + '\n')
      try:
        problems = _pages(draft, results, rasters or {}, examples or {})
      except OSError as error:  # the numbers need less room
        failed = error
      numbers.replace(directory / 'results.json')
      for page in _PAGES:
        (directory / page).unlink(missing_ok=True)
      meanwhile()
      for part in draft.rglob('*.part'):
        part.replace(directory / part.relative_to(draft).with_suffix(''))
    finally:
      shutil.rmtree(draft, ignore_errors=True)
    if failed:
      raise failed
  return problems


@contextlib.contextmanager
def _told(directory):
  try:
    yield
  except OSError as error:
    raise UserError(
      f'cannot write the report to {str(directory)!r}: {error.strerror}; '
      'make room or name a directory that can be written to'
    ) from error


def _pages(directory, results, rasters, examples):
  """Draws all; a line for each page or picture that could not be."""
  import jinja2
  import matplotlib

  from fastsnn_jax.report import canvas, explained, plots, predictions

  metric, rows = results.get('metric', 'accuracy'), results['rows']
  classes = results.get('classes') or ()
  groups = _groups(rows, metric)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=lambda name: name == 'report.html.jinja',
    **{'trim_blocks': True, 'lstrip_blocks': True},
  )
  environment.filters |= {'percent': percent, 'md': _markdown, 'code': _code}
  environment.globals |= {'label': canvas.label}
  heads, cells = _columns(rows, metric)
  drawn, problems = {}, []

  def attempt(name, make):
    """Numbers are never lost for a picture, whatever is wrong with it."""
    path = directory / f'{name}.part'
    try:
      make(path)
    except Exception as error:
      path.unlink(missing_ok=True)
      if isinstance(error, OSError):
        raise
      said = told(error)
      problems.append(f'report/{name} cannot be drawn ({said})')

  def draw(make, *args):
    def save(path):
      if figure := make(*args):
        figure.savefig(path, format='png')
        name = path.name.removesuffix('.png.part')
        drawn[name] = canvas.svg(figure, name)

    return save

  figures = {name: draw(make) for name, make in plots.parts(results).items()}
  spikes = {_file_name('raster', title): title for title in rasters}
  for name, title in spikes.items():
    figures[name] = draw(plots.raster, rasters[title], canvas.shown(title))
  pictures = {_file_name('pictures', title): title for title in examples}
  for name, title in pictures.items():
    words = canvas.shown(title), canvas.shown(classes)
    figures[name] = draw(predictions.draw, examples[title], *words)
  with matplotlib.rc_context(canvas.STYLE), warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph')  # no font has all letters
    for name, save in figures.items():
      attempt(f'plots/{name}.png', save)
  context = {'results': results, 'metric': metric, 'groups': groups}
  context |= {'rasters': [x for x in spikes if x in drawn], 'figures': drawn}
  context |= {'pictures': [x for x in pictures if x in drawn]}
  context |= {'heads': heads, 'cells': cells}
  context['float'] = results.get(f'float_{metric}')
  context['best'] = [group['best'] for group in groups]
  context['tables'] = {
    'Class by class': _table(groups, 'by_class', classes, canvas.label),
    "COCO's numbers": _table(groups, 'coco', (), canvas.label),
    'Cost of an image': explained.cost_table(results.get('cost') or [], number),
  }
  context['notes'] = explained.lines(results, metric, percent)
  context['warnings'] = [
    f'{row["bits"]} bits, {canvas.label(row)}: {row["warning"]}'
    for row in rows
    if row.get('warning')
  ]

  def page(path):
    template = environment.get_template(path.name.replace('.part', '.jinja'))
    text = template.render(context)
    _save(path, text.strip() + '\n')

  for name in _PAGES:
    attempt(name, page)
  return problems


def _markdown(text):
  """Text that Markdown shows as it is: no markup, and one line."""
  text = html.escape(' '.join(str(text).split()), quote=False)
  return re.sub(r'([\\`*|\[\]])', r'\\\1', text)


def _code(text):
  """The same as code, where that can hold it."""
  text = ' '.join(str(text).split())
  return _markdown(text) if re.search(r'[`<>&]|\]\(', text) else f'`{text}`'


def _columns(rows, metric):
  """The heads of the columns that have numbers, and row -> its cells."""
  head = metric.capitalize() if metric.islower() else metric  # mAP stays mAP
  columns = {
    metric: (head, percent),
    f'ann_{metric}': (f'ANN {metric}', percent),
    'agreement': ('Agreement', percent),
    'max_logit_difference': ('Largest logit difference', number),
    'mean_firing_rate': ('Spikes per neuron and step', number),
    'spikes_per_image': ('Spikes per image', number),
    'synops_per_image': ('SynOps per image', number),
    'macs_per_image': ('ANN MACs per image', number),
    'synops_over_macs': ('SynOps / MACs', number),
    'quiet_step': ('All quiet at step', number),
    'not_quiet': ('Images not quiet', number),
  }
  for row in rows:
    synops, macs = row.get('synops_per_image'), row.get('macs_per_image')
    if synops is not None and macs:
      row['synops_over_macs'] = synops / macs
  filled = {key for row in rows for key in row if row[key] is not None}
  columns = {key: columns[key] for key in columns if key in filled}
  return [head for head, _ in columns.values()], lambda row: [
    write(row.get(key)) for key, (_, write) in columns.items()
  ]


def _groups(rows, metric):
  """Rows of one bit width together, each group with its best row."""
  groups = {}
  for row in rows:
    groups.setdefault((row['bits'], row['T']), []).append(row)

  def merit(row):
    """The metric; among equals the agreement, and then the least work."""
    work = row.get('synops_per_image')
    values = row.get(metric), row.get('agreement'), work and -work
    return [-math.inf if value is None else value for value in values]

  return [
    {'bits': bits, 'T': steps, 'rows': rows, 'best': max(rows, key=merit)}
    for (bits, steps), rows in groups.items()
  ]


def _table(groups, key, heads, label):
  """(heads, lines) of the shares, a list or a dict, that rows have by `key`."""
  lines = []
  for group in groups:
    rows = [row for row in group['rows'] if row.get(key)]
    networks = [('quantised ANN', row[f'ann_{key}']) for row in rows[:1]]
    networks += [(label(row), row[key]) for row in rows]
    for name, shares in networks:
      if isinstance(shares, dict):
        heads, shares = list(shares), shares.values()
      lines.append([group['bits'], name, *map(percent, shares)])
  return heads, lines


def percent(share: float | None) -> str:
  """A share as a percentage; 100.0 is written for 1 alone.

  What is no share, such as the error of a regression, is written as it is.

  >>> percent(0.9612), percent(1.0), percent(0.99996), percent(-0.123)
  ('96.1 %', '100.0 %', '99.996 %', '-0.123')
  """
  if share is None:
    return _DASH
  if not 0 <= share <= 1:
    return f'{share:.3g}'
  return f'{100 * share:.{1 if share == 1 or round(share, 3) < 1 else 3}f} %'


def number(value: float | None) -> str:
  """A number with three digits, in thousands, millions or billions.

  >>> number(712.0), number(34512), number(1234567), number(4.1e9)
  ('712', '34.5 k', '1.2 M', '4.1 G')
  >>> number(0.18345), number(3.4e-7), number(0.0), number(None)
  ('0.183', '3.4e-07', '0', '–')
  """
  if value is None:
    return _DASH
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size:
      return f'{value / size:.1f} {unit}'
  return f'{value:.3g}' if value == 0 or abs(value) >= 1e-3 else f'{value:.1e}'


def _file_name(kind, title):
  """'raster-2-bits' for the raster of '2 bits'."""
  return f'{kind}-' + re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def _plain(results):
  """The results as JSON gives them back: builtin types, None for NaN."""
  text = json.dumps(
    results, default=lambda x: x.tolist() if hasattr(x, 'tolist') else str(x)
  )
  return json.loads(text, parse_constant=lambda name: None)


def _save(path, text):
  # Half of a letter, from a name that is no UTF-8, is written by its number.
  path.write_bytes(text.encode('utf-8', 'backslashreplace'))
