"""The figures of a report: one function each.

They use no pyplot and leave rcParams as they are, so that the figures of the
calling program do not change.
"""

import math

import numpy as np

from fastsnn_jax.report import canvas


def draw(results: dict) -> dict:
  """Every figure that the results have data for, by the name of its file."""
  metric, rows = results.get('metric', 'accuracy'), results['rows']
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
  figures = {name: figure for name, figure in figures.items() if figure}
  for figure in figures.values():
    canvas.legend(figure)
  return figures


def _by_bits(rows, key):
  """The rows that have `key`, by bit width, the narrowest first."""
  rows = [row for row in rows if row.get(key)]
  widths = sorted({row['bits'] for row in rows})
  return {bits: [r for r in rows if r['bits'] == bits] for bits in widths}


def _over_time(rows, metric):
  """Metric and agreement after every step: a column for each bit width."""
  groups = _by_bits(rows, 'over_time')
  if not groups:
    return None
  names = {'over_time': metric, 'agreement_over_time': 'agreement'}
  names = {key: name for key, name in names.items() if _by_bits(rows, key)}
  figure, axes = canvas.grid(
    len(names), len(groups), 2.5, sharex='col', sharey='row'
  )
  for column, (bits, group) in zip(axes.T, groups.items(), strict=True):
    for ax, key in zip(column, names, strict=True):
      for row in group:
        y = canvas.numbers(row.get(key) or [], 100)
        canvas.line(ax, range(1, len(y) + 1), y, row)
      ax.axvline(group[0]['T'], **canvas.MARK_T)
    if group[0].get(f'ann_{metric}') is not None:
      look = {'color': '#000000', 'ls': (0, (6, 4)), 'lw': 1}
      ann = 100 * group[0][f'ann_{metric}']
      column[0].axhline(ann, label='quantised ANN', **look)
    column[0].set_title(f'{bits} bits, T = {group[0]["T"]}', fontsize=10)
    canvas.count_on(column[-1], 'time step')
  for ax, name in zip(axes[:, 0], names.values(), strict=True):
    ax.set_ylabel(f'{name} (%)', fontsize=9)
  return figure


def _by_class(rows, classes, metric):
  """Bars of each class, for the ANN and all twins: a row for each bit width."""
  groups = _by_bits(rows, 'by_class')
  if not groups:
    return None
  figure, axes = canvas.grid(len(groups), 1, 1.9, sharex=True)
  for ax, (bits, group) in zip(axes[:, 0], groups.items(), strict=True):
    ann = {'color': canvas.GREY, 'label': 'quantised ANN'}
    series = [(row['by_class'], canvas.fill(row)) for row in group]
    canvas.bars(ax, [(group[0]['ann_by_class'], ann), *series], 100)
    ax.set_title(f'{bits} bits', fontsize=10)
    ax.set_ylabel(f'{metric} (%)', fontsize=9)
  axes[-1, 0].set_xticks(range(len(classes)), classes, fontsize=8)
  if len(classes) > 12:
    axes[-1, 0].tick_params(axis='x', rotation=90)
  return figure


def _layers(rows, quantities):
  """Quantities of every layer: a column each, a row for each bit width."""
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
  figure, axes = canvas.grid(len(groups), len(quantities), 1.9, sharex='col')
  for line, (bits, group) in zip(axes, groups.items(), strict=True):
    for ax, (key, name) in zip(line, quantities.items(), strict=True):
      for row in group:
        values = {layer['name']: layer.get(key) for layer in row['layers']}
        scale = 100 if name.endswith('(%)') else 1
        y = canvas.numbers([values.get(layer) for layer in names], scale)
        canvas.line(ax, range(len(names)), y, row)
      ax.set_ylim(bottom=0)
      ax.set_title(f'{bits} bits', fontsize=10)
      ax.set_ylabel(name, fontsize=9)
  canvas.name_layers(axes, names)
  return figure


def _tuning(entries):
  """Loss before and after, layer by layer: bit widths × schedules."""
  if not entries:
    return None
  bits = sorted({entry['bits'] for entry in entries})
  schedules = list(dict.fromkeys(entry['schedule'] for entry in entries))
  names = list(dict.fromkeys(str(entry['layer']) for entry in entries))
  figure, axes = canvas.grid(
    len(bits), len(schedules), 1.9, sharex=True, sharey='row'
  )
  for i, j in np.ndindex(axes.shape):
    ax, key = axes[i, j], (bits[i], schedules[j])
    panel = [e for e in entries if (e['bits'], e['schedule']) == key]
    x = np.array([names.index(str(entry['layer'])) for entry in panel])
    before = canvas.numbers([entry.get('loss_before') for entry in panel])
    after = canvas.numbers([entry.get('loss_after') for entry in panel])
    kept = np.array([e.get('accepted') is not False for e in panel], bool)
    ax.vlines(x, before, after, color=canvas.GREY, lw=1)
    ax.plot(x, before, 's', color=canvas.ORANGE, ms=5, label='before')
    for some, face, name in (
      (kept, canvas.BLUE, 'after, kept'),
      (~kept, 'none', 'after, undone'),
    ):
      if some.any():
        look = {'color': canvas.BLUE, 'mfc': face, 'ms': 5, 'label': name}
        ax.plot(x[some], after[some], 'o', **look)
    if np.nanmin([*before, *after, np.inf]) > 0:
      ax.set_yscale('log')
    ax.set_title(f'{key[0]} bits, {key[1]}', fontsize=10)
    axes[i, 0].set_ylabel('mean squared error', fontsize=9)
  canvas.name_layers(axes, names)
  return figure


def _quiet(rows):
  """How many images became quiet at each step: a panel for each bit width."""
  key = 'quiet_histogram'
  groups = _by_bits(rows, key)
  if not groups:
    return None
  figure, axes = canvas.grid(1, len(groups), 2.4, sharey=True)
  for ax, (bits, group) in zip(axes[0], groups.items(), strict=True):
    edge = {'edgecolor': '#000000', 'linewidth': 0}
    series = [
      (row[key], canvas.fill(row) | edge | {'hatch': ('', '///', '...')[i % 3]})
      for i, row in enumerate(group)
    ]
    # With one entry more than steps the first is step 0: no spike at all.
    later = len(group[0][key]) <= group[0]['steps']
    canvas.bars(ax, series, first=int(later))
    ax.axvline(group[0]['T'], **canvas.MARK_T)
    ax.set_title(f'{bits} bits, T = {group[0]["T"]}', fontsize=10)
    canvas.count_on(ax, 'time step')
  axes[0, 0].set_ylabel('images', fontsize=9)
  return figure


def _training(training, metric):
  """Loss above, the metric below; a column for each stage."""
  stages = {stage: curves for stage, curves in training.items() if curves}
  if not stages:
    return None
  looks = {
    'train': {'ls': '-', 'marker': '.', 'color': canvas.BLUE},
    'val': {'ls': '--', 'marker': 'x', 'color': canvas.VERMILLION},
  }
  labels = {'train': 'training', 'val': 'held out'}
  figure, axes = canvas.grid(2, len(stages), 1.9, sharex='col', sharey='row')
  for column, (stage, curves) in zip(axes.T, stages.items(), strict=True):
    for ax, name, scale in zip(column, ('loss', metric), (1, 100)):  # noqa: B905
      for split, look in looks.items():
        y = canvas.numbers(curves.get(f'{split}_{name}') or [], scale)
        if len(y):
          x = curves.get('epoch') or range(1, len(y) + 1)
          look = {'ms': 5, 'lw': 1.4, 'label': labels[split], **look}
          ax.plot(x, y, markevery=math.ceil(len(y) / 20), **look)
    bits = stage.removeprefix('ann')
    title = 'float' if bits == '32' else f'{bits} bits'
    column[0].set_title(title if bits.isdigit() else stage, fontsize=10)
    canvas.count_on(column[1], 'epoch')
  axes[0, 0].set_ylabel('loss', fontsize=9)
  axes[1, 0].set_ylabel(f'{metric} (%)', fontsize=9)
  return figure
