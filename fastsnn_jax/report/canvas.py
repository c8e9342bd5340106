"""What the figures of a report share: panels, styles, labels, files.

Every line differs from its neighbours in colour (Okabe and Ito's palette, safe
for colour-blind eyes), marker and line style at once. Axes and text keep
matplotlib's plain black, which `svg` turns into the colour of the text around
the figure.
"""

import io
import math
import re

import numpy as np

ORANGE, SKY, GREEN, BLUE = '#E69F00', '#56B4E9', '#009E73', '#0072B2'
VERMILLION, PURPLE, GREY = '#D55E00', '#CC79A7', '#808080'
_STYLES = {
  ('unsigned', 'none'): (VERMILLION, 's', '-'),
  ('unsigned', 'sequential'): (ORANGE, 'D', '--'),
  ('unsigned', 'parallel'): (ORANGE, 'd', ':'),
  ('signed', 'none'): (BLUE, 'o', '-'),
  ('signed', 'sequential'): (SKY, 'P', '--'),
  ('signed', 'parallel'): (PURPLE, 'X', ':'),
  ('settled', 'none'): (GREEN, '^', '-'),
  ('settled', 'sequential'): (GREEN, 'v', '--'),
  ('settled', 'parallel'): (GREEN, '<', ':'),
}
MARK_T = {'color': GREY, 'ls': ':', 'lw': 1.4, 'label': 'T'}
_MAX_LABELS = 36  # layer names on one axis


def png(figure, path) -> None:
  """Saves a figure on white, at twice a screen's resolution."""
  figure.savefig(path, format='png', dpi=144, facecolor='white')


def svg(figure, name: str) -> str:
  """A figure as an SVG element in the colour of the text around it."""
  import matplotlib

  file = io.StringIO()
  # Ids made from the name: two pages differ only where their numbers do.
  with matplotlib.rc_context({'svg.hashsalt': name, 'svg.fonttype': 'path'}):
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(
      file, format='svg', dpi=144, transparent=True, metadata=nothing
    )
  text = file.getvalue()
  text = text[text.index('<svg') :]
  # Ids like line2d_7 recur in the next figure, and nothing refers to them.
  text = re.sub(r' id="[A-Za-z0-9]+_\d+"| xmlns(:xlink)?="[^"]*"', '', text)
  # Half of the file is indentation, and decimals that no screen can show.
  text = re.sub(r'(\d\d\.\d)\d+', r'\1', re.sub(r'\n +', '\n', text))
  return text.replace('#000000', 'currentColor')


def label(row: dict) -> str:
  """The words for a row's mode and tuning."""
  tuned = row.get('tuned') or 'none'
  return row['mode'] if tuned == 'none' else f'{row["mode"]}, {tuned} tuning'


def grid(rows, columns, height, **options):
  """A figure of rows × columns panels, `height` inches each."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, height * rows + 0.8), layout='constrained')
  axes = figure.subplots(rows, columns, squeeze=False, **options)
  for ax in axes.flat:
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(color=GREY, alpha=0.25, linewidth=0.6)
    ax.tick_params(labelsize=8, which='both')
    ax.set_axisbelow(True)
  return figure, axes


def look_of(row):
  key = row['mode'], row.get('tuned') or 'none'
  return _STYLES.get(key, (GREY, '*', '-.'))


def line_of(ax, x, y, row):
  """A row's line; a long one is marked at some points only."""
  colour, marker, style = look_of(row)
  look = {'color': colour, 'marker': marker, 'ms': 4.5, 'lw': 1.4}
  every = math.ceil(len(y) / _MAX_LABELS)
  ax.plot(x, y, style, markevery=every, label=label(row), **look)


def legend(figure, axes):
  """One legend under all panels; a label that recurs is shown once."""
  handles = {}
  for ax in axes.flat:
    for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
      handles.setdefault(name, handle)
  lines = math.ceil(len(handles) / 4)
  figure.legend(
    handles.values(),
    handles.keys(),
    loc='outside lower center',
    ncols=math.ceil(len(handles) / lines),
    frameon=False,
    fontsize=9,
  )


def by_bits(rows, key):
  """The rows that have `key`, by bit width, the narrowest first."""
  rows = [row for row in rows if row.get(key)]
  widths = sorted({row['bits'] for row in rows})
  return {bits: [r for r in rows if r['bits'] == bits] for bits in widths}


def numbers(values, scale=1.0):
  """Floats for plotting; a None leaves a gap."""
  return scale * np.asarray(values, float)


def count_on(ax, name):
  """An x axis of whole numbers."""
  from matplotlib.ticker import MaxNLocator

  ax.xaxis.set_major_locator(MaxNLocator('auto', integer=True, min_n_ticks=1))
  ax.tick_params(axis='x', labelsize=8)
  ax.set_xlabel(name, fontsize=9)


def name_layers(axes, names):
  """Layer names along the foot, thinned out where they would collide."""
  every = math.ceil(len(names) / _MAX_LABELS)
  for ax in axes.flat:  # each, for their grid
    at = range(0, len(names), every)
    ax.set_xticks(at, names[::every], rotation=90, fontsize=7.5)
    ax.set_xlim(-0.6, len(names) - 0.4)
  for ax in axes[-1]:
    ax.set_xlabel('layer', fontsize=9)
