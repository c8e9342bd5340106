"""The figures of a report: one function each.

They use no pyplot, so that the figures of the calling program do not change.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from fastsnn_jax.report import canvas, explained

_MAX_BANDS = 24  # layers in one raster
_MAX_NEURONS = 168  # and neurons, one in 2.6 points of height


def parts(results: dict) -> dict[str, Callable]:
  """What draws each figure, or gives None, by the name of its file."""
  results = canvas.shown(results)
  metric, rows = results.get('metric', 'accuracy'), results['rows']
  error = 'mean |rate −\nactivation| (θ)'  # noqa: RUF001
  errors = {'error': error, 'differing': 'neurons that\ndiffer (%)'}
  rate = {'firing_rate': 'spikes per neuron\nand step'}
  calls = {
    'over_time': (_over_time, rows, metric),
    'by_class': (_by_class, rows, results.get('classes') or (), metric),
    'layer_error': (_layers, rows, errors),
    'tuning': (_tuning, results.get('tuning') or []),
    'firing_rate': (_layers, rows, rate),
    'quiet': (_quiet, rows),
    'cost': (explained.cost, results.get('cost') or []),
    'early_exit': (
      explained.early_exit,
      results.get('early_exit') or [],
      metric,
    ),
    'diagnosis': (explained.diagnosis, results.get('diagnosis') or []),
    'training': (_training, results.get('training') or {}, metric),
  }
  return {name: partial(_with_legend, *call) for name, call in calls.items()}


def _with_legend(make, *args):
  if figure := make(*args):
    canvas.legend(figure)
  return figure


def _by_bits(rows, key):
  """The rows that have `key`, by bit width, the narrowest first."""
  rows = [row for row in rows if row.get(key)]
  widths = sorted({row['bits'] for row in rows})
  return {bits: [r for r in rows if r['bits'] == bits] for bits in widths}


def _titles(groups):
  """Of panels over time, by bit width."""
  return {b: f'{b} bits, T = {rows[0]["T"]}' for b, rows in groups.items()}


def _over_time(rows, metric):
  """Metric and agreement after every step: a column for each bit width."""
  groups = _by_bits(rows, 'over_time')
  names = {'over_time': metric, 'agreement_over_time': 'agreement'}
  lines = {k: f'{name} (%)' for k, name in names.items() if _by_bits(rows, k)}
  figure, panels = canvas.panels(lines, _titles(groups), 2.5)
  for ax, key, bits in panels:
    first = groups[bits][0]
    for row in groups[bits]:
      y = 100 * np.array(row.get(key) or [], float)
      canvas.line(ax, range(1, len(y) + 1), y, row)
      if (
        len(y) == row['T'] + 1 != row['steps']
      ):  # one point for all steps after T
        place = {'ha': 'center', 'va': 'bottom', 'fontsize': 7.5}
        ax.text(len(y), 0, 'quiet', transform=ax.get_xaxis_transform(), **place)
    ax.axvline(first['T'], **canvas.MARK_T)
    ann = first.get(f'ann_{metric}')
    if ann is not None and key == 'over_time':
      look = {'color': '#000000', 'ls': (0, (6, 4)), 'lw': 1}
      ax.axhline(100 * ann, label='quantised ANN', **look)
    canvas.count_on(ax, 'time step')
  return figure


def _by_class(rows, classes, metric):
  """Bars of each class, for the ANN and all twins: a row for each bit width."""
  groups = _by_bits(rows, 'by_class')
  lines = dict.fromkeys(groups, f'{metric} (%)')
  figure, panels = canvas.panels(lines, {'': ''}, 1.9)
  turn = {'rotation': 90} if len(classes) > 12 else {}
  for ax, bits, _ in panels:
    ann = {'color': canvas.GREY, 'label': 'quantised ANN'}
    bars = [(groups[bits][0]['ann_by_class'], ann)]
    bars += [(row['by_class'], canvas.look(row)) for row in groups[bits]]
    canvas.bars(ax, bars, scale=100)
    ax.set_title(f'{bits} bits')
    ax.set_xticks(range(len(classes)), classes, **turn)
  return figure


def _layers(rows, quantities):
  """Quantities of every layer: a column each, a row for each bit width."""
  groups = _by_bits(rows, 'layers')
  layers = [layer for row in rows for layer in row.get('layers') or ()]
  names = list(dict.fromkeys(layer['name'] for layer in layers))
  filled = {key for layer in layers for key in layer if layer[key] is not None}
  columns = {key: '' for key in quantities if key in filled}
  lines = dict.fromkeys(groups, '')
  figure, panels = canvas.panels(lines, columns, 1.9, sharey=False)
  for ax, bits, key in panels:
    scale = 100 if quantities[key].endswith('(%)') else 1
    for row in groups[bits]:
      values = {layer['name']: layer.get(key) for layer in row['layers']}
      y = scale * np.array([values.get(name) for name in names], float)
      canvas.line(ax, range(len(names)), y, row)
    ax.set_ylim(bottom=0)
    ax.set(title=f'{bits} bits', ylabel=quantities[key])
    canvas.name_layers(ax, names)
  return figure


def _tuning(entries):
  """Loss before and after, layer by layer: bit widths × schedules."""
  widths = sorted({entry['bits'] for entry in entries})
  lines = dict.fromkeys(widths, 'mean squared error')
  columns = dict.fromkeys((entry['schedule'] for entry in entries), '')
  names = list(dict.fromkeys(str(entry['layer']) for entry in entries))
  figure, panels = canvas.panels(lines, columns, 1.9)
  for ax, bits, how in panels:
    panel = [e for e in entries if (e['bits'], e['schedule']) == (bits, how)]
    x = np.array([names.index(str(entry['layer'])) for entry in panel])
    before = np.array([entry.get('loss_before') for entry in panel], float)
    after = np.array([entry.get('loss_after') for entry in panel], float)
    kept = np.array([e.get('accepted') is not False for e in panel], bool)
    ax.vlines(x, before, after, color=canvas.GREY, lw=1)
    ax.plot(x, before, 's', color=canvas.ORANGE, ms=5, label='before')
    faces = {'after, kept': canvas.BLUE, 'after, undone': 'none'}
    for some, (name, face) in zip((kept, ~kept), faces.items(), strict=True):
      if some.any():
        look = {'color': canvas.BLUE, 'mfc': face, 'ms': 5, 'label': name}
        ax.plot(x[some], after[some], 'o', **look)
    if np.nanmin([*before, *after, np.inf]) > 0:
      ax.set_yscale('log')
    ax.set_title(f'{bits} bits, {how}')
    canvas.name_layers(ax, names)
  return figure


def _quiet(rows):
  """How many images became quiet at each step: a panel for each bit width."""
  key = 'quiet_histogram'
  groups = _by_bits(rows, key)
  lines, columns = {key: 'images'}, _titles(groups)
  figure, panels = canvas.panels(lines, columns, 2.4)
  for ax, _, bits in panels:
    bars = [(row[key], canvas.look(row)) for row in groups[bits]]
    first = groups[bits][0]
    # With one entry more than steps the first is step 0: no spike at all.
    start = int(len(first[key]) <= first['steps'])
    canvas.bars(ax, bars, start, hatches=('', '///', '...'))
    ax.axvline(first['T'], **canvas.MARK_T)
    canvas.count_on(ax, 'time step')
  return figure


def _training(training, metric):
  """Loss above, the metric below; a column for each stage."""
  looks = {
    'train': {'ls': '-', 'marker': '.', 'color': canvas.BLUE},
    'val': {'ls': '--', 'marker': 'x', 'color': canvas.VERMILLION},
  }
  labels = {'train': 'training', 'val': 'held out'}
  columns = {}
  for stage in filter(training.get, training):
    bits = stage.removeprefix('ann')
    title = 'float' if bits == '32' else f'{bits} bits'
    columns[stage] = title if bits.isdigit() else stage
  lines = {'loss': 'loss', metric: f'{metric} (%)'}
  figure, panels = canvas.panels(lines, columns, 1.9)
  for ax, key, stage in panels:
    for part, look in looks.items():
      y = np.array(training[stage].get(f'{part}_{key}') or [], float)
      if len(y):
        x = training[stage].get('epoch') or range(1, len(y) + 1)
        look |= {'ms': 5, 'markevery': math.ceil(len(y) / 20)}
        scale = 1 if key == 'loss' else 100
        ax.plot(x, scale * y, label=labels[part], **look)
    canvas.count_on(ax, 'epoch')
  return figure


def raster(spiking: dict, title: str):
  """One image and its spikes: a band for each layer, a line for each neuron.

  `spiking` has `layers` (names), `spikes` (an int array [steps, neurons] for
  each), `image` (uint8 [H, W, C]) and `T`, the steps with input.
  """
  layers = canvas.shown(spiking['layers'])
  chosen = _spread(len(layers), _MAX_BANDS)
  most = max(4, _MAX_NEURONS // len(chosen))
  bands = [np.asarray(spiking['spikes'][layer]) for layer in chosen]
  bands = [band[:, _spread(band.shape[1], most)] for band in bands]
  edges = np.cumsum([0, *(band.shape[1] for band in bands)])
  spikes = np.concatenate(bands, axis=1)

  steps = len(spikes)
  width, height = max(1.6, 0.2 * steps), max(2.6, 0.9 + edges[-1] / 28)
  figure = Figure((2.5 + width, height), layout='constrained')
  picture, ax = figure.subplots(1, 2, width_ratios=(1, width))
  picture.imshow(np.asarray(spiking['image']))
  picture.set_axis_off()
  picture.set_anchor('N')

  for low, high in zip(edges[:-1:2], edges[1::2], strict=True):
    shade = {'color': canvas.GREY, 'alpha': 0.14, 'lw': 0}
    ax.axhspan(low - 0.5, high - 0.5, **shade)
  for sign, colour, mark, name in (
    (1, canvas.BLUE, '|', 'positive spike'),
    (-1, canvas.VERMILLION, 'x', 'negative spike'),
  ):
    step, neuron = np.nonzero(spikes == sign)
    ax.plot(step + 1, neuron, mark, color=colour, ms=3.2, mew=1.5, label=name)
  if steps > spiking['T']:
    ax.axvline(spiking['T'] + 0.5, **(canvas.MARK_T | {'label': 'input ends'}))
  ax.set(xlim=(0.5, steps + 0.5), ylim=(edges[-1] - 0.5, -0.5))
  ax.set_ylabel('neurons, by layer')
  names = [layers[layer] for layer in chosen]
  ax.set_yticks((edges[:-1] + edges[1:] - 1) / 2, names, fontsize=7.5)
  ax.tick_params(axis='y', length=0)
  ax.grid(visible=False)
  ax.spines[:].set_visible(False)
  canvas.count_on(ax, 'time step')
  if len(chosen) < len(layers):
    title += f'\n{len(chosen)} of {len(layers)} layers'
  figure.suptitle(title)
  canvas.legend(figure, markerscale=2, handlelength=1.2, fontsize=8)
  return figure


def _spread(total, at_most):
  """Up to `at_most` indices, spread evenly over `total`."""
  return np.linspace(0, total - 1, min(total, at_most)).round().astype(int)
