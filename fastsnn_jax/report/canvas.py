"""What the figures of a report share: panels, styles, labels, files.

Each line differs from the others in colour (the palette of Okabe and Ito, which
colour-blind readers can tell apart), in marker and in line style. Axes and text
stay black, which `svg` replaces by the colour of the text around the figure.
"""

import io
import math
import re

import numpy as np

ORANGE, SKY, GREEN, BLUE = '#E69F00', '#56B4E9', '#009E73', '#0072B2'
VERMILLION, PURPLE, GREY = '#D55E00', '#CC79A7', '#808080'
_COLOURS = {
  'unsigned': (VERMILLION, ORANGE, ORANGE),
  'signed': (BLUE, SKY, PURPLE),
  'settled': (GREEN, GREEN, GREEN),
}
_MARKERS = {'unsigned': 'sDd', 'signed': 'oPX', 'settled': '^v<'}
_DASHES = {'none': '-', 'sequential': '--', 'parallel': ':'}
MARK_T = {'color': GREY, 'ls': ':', 'lw': 1.4, 'label': 'T'}
_MAX_LABELS = 36  # layer names on one axis


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
  # Ids like line2d_7 occur in the next figure too, and nothing refers to them.
  text = re.sub(r' id="[A-Za-z0-9]+_\d+"| xmlns(:xlink)?="[^"]*"', '', text)
  # Half of the file is indentation, and decimals that no screen can show.
  text = re.sub(r'(\d\d\.\d)\d+', r'\1', re.sub(r'\n +', '\n', text))
  return text.replace('#000000', 'currentColor')


def file_name(kind: str, title: str) -> str:
  """The name of a figure's file: 'raster' and '2 bits' are 'raster-2-bits'."""
  return f'{kind}-' + re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def label(row: dict) -> str:
  """The words for a row's mode and tuning."""
  tuned = row.get('tuned') or 'none'
  return row['mode'] if tuned == 'none' else f'{row["mode"]}, {tuned} tuning'


def style(row: dict) -> tuple[str, str, str]:
  """The colour, marker and line style of a row's mode and tuning."""
  mode, tuned = row['mode'], row.get('tuned') or 'none'
  if mode not in _COLOURS or tuned not in _DASHES:
    return GREY, '*', '-.'
  i = list(_DASHES).index(tuned)
  return _COLOURS[mode][i], _MARKERS[mode][i], _DASHES[tuned]


def fill(row: dict) -> dict:
  """The colour and label of a row's bars."""
  return {'color': style(row)[0], 'label': label(row)}


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


def line(ax, x, y, row):
  """Draws a row's line; a long one has markers at some points only."""
  colour, marker, dashes = style(row)
  look = {'color': colour, 'marker': marker, 'ms': 4.5, 'lw': 1.4}
  every = math.ceil(len(y) / _MAX_LABELS)
  ax.plot(x, y, dashes, markevery=every, label=label(row), **look)


def image(ax, pixels):
  """Draws an image [H, W, C], with one channel as grey levels."""
  pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
  ax.imshow(pixels, cmap='gray', interpolation='nearest')


def bars(ax, series, scale=1.0, first=0):
  """Draws bars side by side, from (values, look) of each series."""
  width = 0.8 / len(series)
  for i, (values, look) in enumerate(series):
    x = first + np.arange(len(values)) + (i + 0.5) * width - 0.4
    ax.bar(x, numbers(values, scale), 0.92 * width, **look)


def legend(figure):
  """One legend below all panels, with each label once."""
  handles = {}
  for ax in figure.axes:
    for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
      handles.setdefault(name, handle)
  columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
  look = {'loc': 'outside lower center', 'frameon': False, 'fontsize': 9}
  figure.legend(handles.values(), handles.keys(), ncols=columns, **look)


def numbers(values, scale=1.0):
  """Floats for plotting; a None leaves a gap."""
  return scale * np.asarray(values, float)


def count_on(ax, name):
  """Gives the x axis a name and whole numbers."""
  from matplotlib.ticker import MaxNLocator

  ax.xaxis.set_major_locator(MaxNLocator('auto', integer=True, min_n_ticks=1))
  ax.tick_params(axis='x', labelsize=8)
  ax.set_xlabel(name, fontsize=9)


def name_layers(axes, names):
  """Writes layer names below the panels, fewer where they would overlap."""
  every = math.ceil(len(names) / _MAX_LABELS)
  for ax in axes.flat:  # in all rows, because grid lines stand at the ticks
    ax.set_xticks(
      range(0, len(names), every), names[::every], rotation=90, fontsize=7.5
    )
    ax.set_xlim(-0.6, len(names) - 0.4)
  for ax in axes[-1]:
    ax.set_xlabel('layer', fontsize=9)
