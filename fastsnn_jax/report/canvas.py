"""What the figures of a report share: panels, styles, labels, files.

Each line differs from the others in colour (the palette of Okabe and Ito, which
colour-blind readers can tell apart), in marker and in line style. Axes and text
stay black, which `svg` replaces by the colour of the text around the figure.
"""

import io
import itertools
import math
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastsnn_jax.errors import printable

ORANGE, SKY, GREEN, BLUE = '#E69F00', '#56B4E9', '#009E73', '#0072B2'
VERMILLION, PURPLE, GREY = '#D55E00', '#CC79A7', '#808080'
STYLE = {  # matplotlib's settings while a report is drawn
  **{'axes.grid': True, 'axes.axisbelow': True, 'grid.color': GREY},
  **{'grid.alpha': 0.25, 'grid.linewidth': 0.6, 'lines.linewidth': 1.4},
  **{'axes.spines.top': False, 'axes.spines.right': False},
  **{'axes.titlesize': 10, 'axes.labelsize': 9, 'figure.titlesize': 10},
  **{'xtick.labelsize': 8, 'ytick.labelsize': 8, 'savefig.dpi': 144},
  **{'image.cmap': 'gray', 'image.interpolation': 'nearest'},
  **{'legend.frameon': False, 'legend.fontsize': 9},
}
MARK_T = {'color': GREY, 'ls': ':', 'label': 'T'}
_LOOKS = {  # of a mode and a tuning: colour, marker, line style
  ('unsigned', 'none'): (VERMILLION, 's', '-'),
  ('signed', 'none'): (BLUE, 'o', '-'),
  ('signed', 'bias'): (ORANGE, 'D', '-.'),
  ('signed', 'sequential'): (SKY, 'P', '--'),
  ('signed', 'parallel'): (PURPLE, 'X', ':'),
  ('settled', 'none'): (GREEN, '^', '-'),
}
_MAX_LABELS = 36  # layer names on one axis


def svg(figure, name: str) -> str:
  """A figure as an SVG element in the colour of the text around it."""
  file = io.StringIO()
  # Ids made from the name: two pages differ only where their numbers do.
  with matplotlib.rc_context({'svg.hashsalt': name}):
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(file, format='svg', transparent=True, metadata=nothing)
  text = file.getvalue()
  text = text[text.index('<svg') :]
  # Ids like line2d_7 occur in the next figure too, and nothing refers to them.
  text = re.sub(r' id="[A-Za-z0-9]+_\d+"| xmlns(:xlink)?="[^"]*"', '', text)
  # Half of the file is indentation, and decimals that no screen can show.
  text = re.sub(r'(\d\d\.\d)\d+', r'\1', re.sub(r'\n +', '\n', text))
  return text.replace('#000000', 'currentColor')


def shown(value):
  """Values with all text as figures show it: no formula, no control letter."""
  if isinstance(value, str):
    return printable(value).replace('$', r'\$')
  if isinstance(value, dict):
    return {key: shown(part) for key, part in value.items()}
  if isinstance(value, list | tuple):
    return [shown(part) for part in value]
  return value


def label(row: dict) -> str:
  """The words for a row's mode and tuning."""
  tuned = row.get('tuned') or 'none'
  return row['mode'] if tuned == 'none' else f'{row["mode"]}, {tuned} tuning'


def look(row: dict) -> dict:
  """The look of a row's line, by its mode and tuning."""
  key = row['mode'], row.get('tuned') or 'none'
  colour, marker, dashes = _LOOKS.get(key, (GREY, '*', '-.'))
  return {'color': colour, 'marker': marker, 'ls': dashes, 'label': label(row)}


def panels(lines: dict, columns: dict, height, sharey='row'):
  """A figure and its panels (ax, line, column); (None, []) if it has none.

  `lines` has the names of the y axes by key, `columns` the titles on top by
  key; `height` is that of a panel in inches.
  """
  if not lines or not columns:
    return None, []
  figure = Figure((10, height * len(lines) + 0.8), layout='constrained')
  share = {'sharex': 'col', 'sharey': sharey, 'squeeze': False}
  axes = figure.subplots(len(lines), len(columns), **share)
  for ax, title in zip(axes[0], columns.values(), strict=True):
    ax.set_title(title)
  for ax, name in zip(axes[:, 0], lines.values(), strict=True):
    ax.set_ylabel(name)
  keys = itertools.product(lines, columns)
  return figure, [(ax, *key) for ax, key in zip(axes.flat, keys, strict=True)]


def line(ax, x, y, row):
  """Draws a row's line; a long one has markers at some points only."""
  ax.plot(x, y, ms=4.5, markevery=math.ceil(len(y) / _MAX_LABELS), **look(row))


def bars(ax, series, first=0, scale=1, hatches=('',)):
  """Draws bars side by side, from (values, look) of each series."""
  width = 0.8 / len(series)
  for i, (values, look) in enumerate(series):
    x = first + np.arange(len(values)) + (i + 0.5) * width - 0.4
    face = {'color': look['color'], 'label': look['label']}
    face |= {'hatch': hatches[i % len(hatches)], 'edgecolor': '#000000'}
    height = scale * np.array(values, float)
    ax.bar(x, height, 0.92 * width, linewidth=0, **face)


def legend(figure, **look):
  """One legend below all panels, with each label once."""
  pairs = [ax.get_legend_handles_labels() for ax in figure.axes]
  handles = {name: h for pair in pairs for h, name in zip(*pair, strict=True)}
  columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
  place = {'loc': 'outside lower center', 'ncols': columns}
  figure.legend(handles.values(), handles.keys(), **place, **look)


def count_on(ax, name):
  """Whole numbers on the x axis, and below the lowest panel its name."""
  ax.xaxis.set_major_locator(MaxNLocator('auto', integer=True, min_n_ticks=1))
  if ax.get_subplotspec().is_last_row():
    ax.set_xlabel(name)


def name_layers(ax, names):
  """Writes layer names below a panel, fewer where they would overlap."""
  every = math.ceil(len(names) / _MAX_LABELS)
  where = range(0, len(names), every)
  ax.set_xticks(where, names[::every], rotation=90, fontsize=7.5)
  ax.set_xlim(-0.6, len(names) - 0.4)
  if ax.get_subplotspec().is_last_row():
    ax.set_xlabel('layer')
