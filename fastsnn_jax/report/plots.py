"""The figures of a report: one function each, on matplotlib's objects.

No pyplot and no lasting rcParams, so that a caller's own figures are left
alone.
"""

import math

import numpy as np

from fastsnn_jax.report.canvas import (
  BLUE,
  GREY,
  MARK_T,
  ORANGE,
  VERMILLION,
  by_bits,
  count_on,
  grid,
  label,
  legend,
  line_of,
  look_of,
  name_layers,
  numbers,
)


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
    'by_class': _by_class(rows, results.get('classes') or (), metric),
    'layer_error': _layers(rows, error),
    'tuning': _tuning(results.get('tuning') or []),
    'firing_rate': _layers(rows, rate),
    'quiet': _quiet(rows),
    'training': _training(results.get('training') or {}, metric),
  }
  return {name: figure for name, figure in figures.items() if figure}


def _over_time(rows, metric):
  """The metric and agreement after every step: a column per bit width."""
  groups = by_bits(rows, 'over_time')
  if not groups:
    return None
  names = {'over_time': metric, 'agreement_over_time': 'agreement'}
  names = {key: name for key, name in names.items() if by_bits(rows, key)}
  figure, axes = grid(len(names), len(groups), 2.5, sharex='col', sharey='row')
  for column, (bits, group) in zip(axes.T, groups.items(), strict=True):
    for ax, key in zip(column, names, strict=True):
      for row in group:
        y = numbers(row.get(key) or [], 100)
        line_of(ax, range(1, len(y) + 1), y, row)
      ax.axvline(group[0]['T'], **MARK_T)
    if group[0].get(f'ann_{metric}') is not None:
      look = {'color': '#000000', 'ls': (0, (6, 4)), 'lw': 1}
      ann = 100 * group[0][f'ann_{metric}']
      column[0].axhline(ann, label='quantised ANN', **look)
    column[0].set_title(f'{bits} bits, T = {group[0]["T"]}', fontsize=10)
    count_on(column[-1], 'time step')
  for ax, name in zip(axes[:, 0], names.values(), strict=True):
    ax.set_ylabel(f'{name} (%)', fontsize=9)
  legend(figure, axes)
  return figure


def _by_class(rows, classes, metric):
  """Bars of each class: the ANN's and every network's, a line per bit width."""
  groups = by_bits(rows, 'by_class')
  if not groups:
    return None
  figure, axes = grid(len(groups), 1, 1.9, sharex=True)
  for ax, (bits, group) in zip(axes[:, 0], groups.items(), strict=True):
    width = 0.8 / (len(group) + 1)
    ann = {'color': GREY, 'label': 'quantised ANN'}
    bars = [(group[0]['ann_by_class'], ann)]
    bars += [
      (row['by_class'], {'color': look_of(row)[0], 'label': label(row)})
      for row in group
    ]
    for i, (values, look) in enumerate(bars):
      x = np.arange(len(values)) + (i + 0.5) * width - 0.4
      ax.bar(x, numbers(values, 100), 0.92 * width, **look)
    ax.set_title(f'{bits} bits', fontsize=10)
    ax.set_ylabel(f'{metric} (%)', fontsize=9)
  axes[-1, 0].set_xticks(range(len(classes)), classes, fontsize=8)
  if len(classes) > 12:
    axes[-1, 0].tick_params(axis='x', rotation=90)
  legend(figure, axes)
  return figure


def _layers(rows, quantities):
  """Quantities of every layer: a column each, a row per bit width."""
  groups = by_bits(rows, 'layers')
  layers = [layer for row in rows for layer in row.get('layers') or ()]
  quantities = {
    key: name
    for key, name in quantities.items()
    if any(layer.get(key) is not None for layer in layers)
  }
  if not quantities:
    return None
  names = list(dict.fromkeys(layer['name'] for layer in layers))
  figure, axes = grid(len(groups), len(quantities), 1.9, sharex='col')
  for line, (bits, group) in zip(axes, groups.items(), strict=True):
    for ax, (key, name) in zip(line, quantities.items(), strict=True):
      for row in group:
        values = {layer['name']: layer.get(key) for layer in row['layers']}
        scale = 100 if name.endswith('(%)') else 1
        y = numbers([values.get(layer) for layer in names], scale)
        line_of(ax, range(len(names)), y, row)
      ax.set_ylim(bottom=0)
      ax.set_title(f'{bits} bits', fontsize=10)
      ax.set_ylabel(name, fontsize=9)
  name_layers(axes, names)
  legend(figure, axes)
  return figure


def _tuning(entries):
  """Loss before and after, layer by layer: bit widths × schedules."""
  if not entries:
    return None
  bits = sorted({entry['bits'] for entry in entries})
  schedules = list(dict.fromkeys(entry['schedule'] for entry in entries))
  names = list(dict.fromkeys(str(entry['layer']) for entry in entries))
  figure, axes = grid(len(bits), len(schedules), 1.9, sharex=True, sharey='row')
  for i, j in np.ndindex(axes.shape):
    ax, key = axes[i, j], (bits[i], schedules[j])
    mine = [e for e in entries if (e['bits'], e['schedule']) == key]
    x = np.array([names.index(str(entry['layer'])) for entry in mine])
    before = numbers([entry.get('loss_before') for entry in mine])
    after = numbers([entry.get('loss_after') for entry in mine])
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
  name_layers(axes, names)
  legend(figure, axes)
  return figure


def _quiet(rows):
  """How many images became quiet at each step: a panel per bit width."""
  groups = by_bits(rows, 'quiet_histogram')
  if not groups:
    return None
  figure, axes = grid(1, len(groups), 2.4, sharey=True)
  for ax, (bits, group) in zip(axes[0], groups.items(), strict=True):
    width = 0.8 / len(group)
    for i, row in enumerate(group):
      counts = numbers(row['quiet_histogram'])
      # One entry more than steps: it starts at step 0, never a spike at all.
      x = np.arange(len(counts)) + (len(counts) <= row['steps'])
      x = x + (i + 0.5) * width - 0.4
      look = {'color': look_of(row)[0], 'hatch': ('', '///', '...')[i % 3]}
      look |= {'edgecolor': '#000000', 'linewidth': 0}
      ax.bar(x, counts, 0.92 * width, label=label(row), **look)
    ax.axvline(group[0]['T'], **MARK_T)
    ax.set_title(f'{bits} bits, T = {group[0]["T"]}', fontsize=10)
    count_on(ax, 'time step')
  axes[0, 0].set_ylabel('images', fontsize=9)
  legend(figure, axes)
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
  figure, axes = grid(2, len(stages), 1.9, sharex='col', sharey='row')
  for column, (stage, curves) in zip(axes.T, stages.items(), strict=True):
    for ax, name, scale in zip(column, ('loss', metric), (1, 100)):  # noqa: B905
      for split, style in (('train', '-'), ('val', '--')):
        y = numbers(curves.get(f'{split}_{name}') or [], scale)
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
  legend(figure, axes)
  return figure
