"""The figures of a report: one function each, on matplotlib's objects.

No pyplot and no lasting rcParams, so that a caller's own figures are left
alone. Every line differs from its neighbours in colour (Okabe and Ito's
palette, safe for colour-blind eyes), marker and line style at once. Axes and
text keep matplotlib's plain black, which `svg` turns into the colour of the
text around the figure.
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


def draw(results: dict) -> dict:
  """Every figure that the results hold data for, under its file's name."""
  metric = results.get('metric', 'accuracy')
  rows = results['rows']
  error = {
    'error': 'mean |rate −\nactivation| (θ)',  # noqa: RUF001
    'differing': 'neurons that\ndiffer (%)',
  }
  rate = {'firing_rate': 'spikes per neuron\nand step'}
  figures = {
    'over_time': _over_time(rows, metric),
    'layer_error': _layers(rows, error),
    'tuning': _tuning(results.get('tuning') or []),
    'firing_rate': _layers(rows, rate),
    'quiet': _quiet(rows),
    'training': _training(results.get('training') or {}, metric),
  }
  return {name: figure for name, figure in figures.items() if figure}


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


def _grid(rows, columns, height, **options):
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


def _style(row):
  key = row['mode'], row.get('tuned') or 'none'
  return _STYLES.get(key, (GREY, '*', '-.'))


def _line(ax, x, y, row):
  """A row's line; a long one is marked at some points only."""
  colour, marker, style = _style(row)
  look = {'color': colour, 'marker': marker, 'ms': 4.5, 'lw': 1.4}
  every = math.ceil(len(y) / _MAX_LABELS)
  ax.plot(x, y, style, markevery=every, label=label(row), **look)


def _legend(figure, axes):
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


def _by_bits(rows, key):
  """The rows that have `key`, by bit width, the narrowest first."""
  rows = [row for row in rows if row.get(key)]
  widths = sorted({row['bits'] for row in rows})
  return {bits: [r for r in rows if r['bits'] == bits] for bits in widths}


def _numbers(values, scale=1.0):
  """Floats for plotting; a None leaves a gap."""
  return scale * np.asarray(values, float)


def count_on(ax, name):
  """An x axis of whole numbers."""
  from matplotlib.ticker import MaxNLocator

  ax.xaxis.set_major_locator(MaxNLocator('auto', integer=True, min_n_ticks=1))
  ax.tick_params(axis='x', labelsize=8)
  ax.set_xlabel(name, fontsize=9)


def _name_layers(axes, names):
  """Layer names along the foot, thinned out where they would collide."""
  every = math.ceil(len(names) / _MAX_LABELS)
  for ax in axes.flat:  # each, for their grid
    at = range(0, len(names), every)
    ax.set_xticks(at, names[::every], rotation=90, fontsize=7.5)
    ax.set_xlim(-0.6, len(names) - 0.4)
  for ax in axes[-1]:
    ax.set_xlabel('layer', fontsize=9)


def _over_time(rows, metric):
  """The metric and agreement after every step: a column per bit width."""
  groups = _by_bits(rows, 'over_time')
  if not groups:
    return None
  names = {'over_time': metric, 'agreement_over_time': 'agreement'}
  names = {key: name for key, name in names.items() if _by_bits(rows, key)}
  figure, axes = _grid(len(names), len(groups), 2.5, sharex='col', sharey='row')
  for column, (bits, group) in zip(axes.T, groups.items(), strict=True):
    for ax, key in zip(column, names, strict=True):
      for row in group:
        y = _numbers(row.get(key) or [], 100)
        _line(ax, range(1, len(y) + 1), y, row)
      ax.axvline(group[0]['T'], **MARK_T)
    if group[0].get(f'ann_{metric}') is not None:
      look = {'color': '#000000', 'ls': (0, (6, 4)), 'lw': 1}
      ann = 100 * group[0][f'ann_{metric}']
      column[0].axhline(ann, label='quantised ANN', **look)
    column[0].set_title(f'{bits} bits, T = {group[0]["T"]}', fontsize=10)
    count_on(column[-1], 'time step')
  for ax, name in zip(axes[:, 0], names.values(), strict=True):
    ax.set_ylabel(f'{name} (%)', fontsize=9)
  _legend(figure, axes)
  return figure


def _layers(rows, quantities):
  """Quantities of every layer: a column each, a row per bit width."""
  groups = _by_bits(rows, 'layers')
  layers = [layer for row in rows for layer in row.get('layers') or ()]
  quantities = {
    key: name
    for key, name in quantities.items()
    if any(layer.get(key) is not None for layer in layers)
  }
  if not quantities:
    return None
  names = list(dict.fromkeys(layer['name'] for layer in layers))
  figure, axes = _grid(len(groups), len(quantities), 1.9, sharex='col')
  for line, (bits, group) in zip(axes, groups.items(), strict=True):
    for ax, (key, name) in zip(line, quantities.items(), strict=True):
      for row in group:
        values = {layer['name']: layer.get(key) for layer in row['layers']}
        scale = 100 if name.endswith('(%)') else 1
        y = _numbers([values.get(layer) for layer in names], scale)
        _line(ax, range(len(names)), y, row)
      ax.set_ylim(bottom=0)
      ax.set_title(f'{bits} bits', fontsize=10)
      ax.set_ylabel(name, fontsize=9)
  _name_layers(axes, names)
  _legend(figure, axes)
  return figure


def _tuning(entries):
  """Loss before and after, layer by layer: bit widths × schedules."""
  if not entries:
    return None
  bits = sorted({entry['bits'] for entry in entries})
  schedules = list(dict.fromkeys(entry['schedule'] for entry in entries))
  names = list(dict.fromkeys(str(entry['layer']) for entry in entries))
  figure, axes = _grid(
    len(bits), len(schedules), 1.9, sharex=True, sharey='row'
  )
  for i, j in np.ndindex(axes.shape):
    ax, key = axes[i, j], (bits[i], schedules[j])
    mine = [e for e in entries if (e['bits'], e['schedule']) == key]
    x = np.array([names.index(str(entry['layer'])) for entry in mine])
    before = _numbers([entry.get('loss_before') for entry in mine])
    after = _numbers([entry.get('loss_after') for entry in mine])
    kept = np.array([e.get('accepted') is not False for e in mine], bool)
    ax.vlines(x, before, after, color=GREY, lw=1)
    ax.plot(x, before, 's', color=ORANGE, ms=5, label='before')
    for at, face, name in ((kept, BLUE, 'kept'), (~kept, 'none', 'undone')):
      if at.any():
        look = {'color': BLUE, 'mfc': face, 'ms': 5, 'label': f'after, {name}'}
        ax.plot(x[at], after[at], 'o', **look)
    if np.nanmin([*before, *after, np.inf]) > 0:
      ax.set_yscale('log')
    ax.set_title(f'{key[0]} bits, {key[1]}', fontsize=10)
    axes[i, 0].set_ylabel('mean squared error', fontsize=9)
  _name_layers(axes, names)
  _legend(figure, axes)
  return figure


def _quiet(rows):
  """How many images became quiet at each step: a panel per bit width."""
  groups = _by_bits(rows, 'quiet_histogram')
  if not groups:
    return None
  figure, axes = _grid(1, len(groups), 2.4, sharey=True)
  for ax, (bits, group) in zip(axes[0], groups.items(), strict=True):
    width = 0.8 / len(group)
    for i, row in enumerate(group):
      counts = _numbers(row['quiet_histogram'])
      # One entry more than steps: it starts at step 0, never a spike at all.
      x = np.arange(len(counts)) + (len(counts) <= row['steps'])
      x = x + (i + 0.5) * width - 0.4
      look = {'color': _style(row)[0], 'hatch': ('', '///', '...')[i % 3]}
      look |= {'edgecolor': '#000000', 'linewidth': 0}
      ax.bar(x, counts, 0.92 * width, label=label(row), **look)
    ax.axvline(group[0]['T'], **MARK_T)
    ax.set_title(f'{bits} bits, T = {group[0]["T"]}', fontsize=10)
    count_on(ax, 'time step')
  axes[0, 0].set_ylabel('images', fontsize=9)
  _legend(figure, axes)
  return figure


def _training(training, metric):
  """Loss above, the metric below; a column per stage."""
  stages = {stage: curves for stage, curves in training.items() if curves}
  if not stages:
    return None
  looks = {
    'train': {'label': 'training', 'color': BLUE, 'marker': '.'},
    'val': {'label': 'held out', 'color': VERMILLION, 'marker': 'x'},
  }
  figure, axes = _grid(2, len(stages), 1.9, sharex='col', sharey='row')
  for column, (stage, curves) in zip(axes.T, stages.items(), strict=True):
    for ax, name, scale in zip(column, ('loss', metric), (1, 100)):  # noqa: B905
      for split, style in (('train', '-'), ('val', '--')):
        y = _numbers(curves.get(f'{split}_{name}') or [], scale)
        if len(y):
          x = curves.get('epoch') or range(1, len(y) + 1)
          every = math.ceil(len(y) / 20)
          ax.plot(x, y, style, ms=5, lw=1.4, markevery=every, **looks[split])
    bits = stage.removeprefix('ann')
    title = 'float' if bits == '32' else f'{bits} bits'
    column[0].set_title(title if bits.isdigit() else stage, fontsize=10)
    count_on(column[1], 'epoch')
  axes[0, 0].set_ylabel('loss', fontsize=9)
  axes[1, 0].set_ylabel(f'{metric} (%)', fontsize=9)
  _legend(figure, axes)
  return figure
