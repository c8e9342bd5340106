"""What a report says of cost, early exit and diagnosis: figures, table, lines.

`results['cost']`, `['early_exit']` and `['diagnosis']` are lists of dicts, one
for each network; all of them have 'bits', and all but a float one 'T'.
"""

import matplotlib
import numpy as np

from fastsnn_jax.report import canvas

_ENERGY = {  # of `cost`: words, colour, hatch
  'operations': ('operations', canvas.BLUE, ''),
  'neurons': ('neurons', canvas.ORANGE, '///'),
  'memory': ('memory', canvas.GREY, '...'),
}
_PARTS = {  # of `diagnosis`
  'own': ('own: other weights, theta or levels', canvas.VERMILLION, ''),
  'inherited': ('inherited from the sites before', canvas.GREY, '...'),
  'sequential': ('sequential: the order of spikes', canvas.SKY, '///'),
}
COST_HEADS = {
  'macs': 'Effective MACs',
  'acs': 'Effective ACs',
  'SynOps': 'SynOps',
  'spikes': 'Spikes',
  'packed_footprint': 'Packed bytes',
  'operations': 'Operations (nJ)',
  'neurons': 'Neurons (nJ)',
  'memory': 'Memory (nJ)',
  'firing_rate': 'Firing rate',
  'break_even_rate': 'Break-even rate',
}


def cost(entries):
  """Energy of each network, a panel for operations and neurons, one for all."""
  if not entries:
    return None
  names = [_name(entry) for entry in entries]
  panels = {
    'operations': 'operations and neurons',
    'all': 'operations, neurons and memory',
  }
  height = 0.45 + 0.34 * len(entries)
  figure, axes = canvas.panels({'': ''}, panels, height, sharey='row')
  for ax, _, panel in axes:
    left = np.zeros(len(entries))
    for key, (label, colour, hatch) in _ENERGY.items():
      if key == 'memory' and panel != 'all':
        continue
      width = np.array([entry[key] for entry in entries], float)
      look = {'color': colour, 'hatch': hatch, 'edgecolor': '#000000'}
      ax.barh(range(len(entries)), width, 0.7, left, label=label, lw=0, **look)
      left = left + width
    ax.set_yticks(range(len(entries)), names)
    ax.set_xlabel('nJ an image')
    ax.grid(visible=False, axis='y')
  axes[0][0].invert_yaxis()
  return figure


def _name(entry):
  width = 'float' if entry['bits'] == 32 else f'{entry["bits"]} bits'
  return f'{width}, {entry["network"]}' if entry['bits'] < 32 else width


def cost_table(entries, number):
  """(heads, lines) of the table of costs."""
  keys = [k for k in COST_HEADS if any(e.get(k) is not None for e in entries)]
  lines = [
    [e['bits'], e['network'], *(number(e.get(key)) for key in keys)]
    for e in entries
  ]
  return [COST_HEADS[key] for key in keys], lines


def early_exit(entries, metric):
  """The metric against the mean steps run, a panel for each bit width."""
  if not entries:
    return None
  columns = {e['bits']: f'{e["bits"]} bits, T = {e["T"]}' for e in entries}
  figure, axes = canvas.panels({'': f'{metric} (%)'}, columns, 2.4)
  for (ax, _, _), entry in zip(axes, entries, strict=True):
    value = 100 * np.array(entry[metric], float)
    look = {'color': canvas.BLUE, 'marker': '.', 'label': 'early exit'}
    ax.plot(entry['steps'], value, **look)
    at = entry['margin'].index(entry['chosen'])
    star = {'marker': '*', 'ls': '', 'ms': 12, 'color': canvas.VERMILLION}
    ax.plot(
      entry['steps'][at], value[at], label='chosen on held-out images', **star
    )
    whole = {'color': '#000000', 'ls': (0, (6, 4)), 'lw': 1}
    ax.axhline(100 * entry['full'], label='all steps', **whole)
    ax.set_xlabel('mean steps run')
  return figure


def diagnosis(entries):
  """The parts of each site's error, a panel for each bit width."""
  if not entries:
    return None
  lines = {e['bits']: 'mean error (θ)' for e in entries}
  figure, axes = canvas.panels(lines, {'': ''}, 2.0)
  for (ax, _, _), entry in zip(axes, entries, strict=True):
    sites = entry['sites']
    x, base = np.arange(len(sites)), np.zeros(len(sites))
    for key, (label, colour, hatch) in _PARTS.items():
      height = np.array([site[key] for site in sites], float)
      look = {'color': colour, 'hatch': hatch, 'edgecolor': '#000000'}
      ax.bar(x, height, 0.7, base, label=label, lw=0, **look)
      base = base + height
    names = [site['name'] for site in sites]
    if entry['first'] in names:
      at = names.index(entry['first'])
      ax.annotate(
        'begins here',
        (at, base[at]),
        (0, 12),
        textcoords='offset points',
        ha='center',
        fontsize=8,
        arrowprops={'arrowstyle': '->'},
      )
    most = base.max(initial=0)
    ax.set_ylim(0, 1.35 * max(most, 0.01))
    title = f'{entry["bits"]} bits, {entry["network"]}'
    ax.set_title(title if most > 1e-4 else f'{title}: no error at any site')
    canvas.name_layers(ax, names)
  return figure


def lines(results, metric, percent) -> dict[str, list[str]]:
  """Sentences below the three figures, by the name of the figure."""
  found: dict[str, list[str]] = {'cost': [], 'early_exit': [], 'diagnosis': []}
  for entry in results.get('cost') or ():
    if entry.get('words'):
      found['cost'].append(f'{entry["bits"]} bits: {entry["words"]}')
  for entry in results.get('early_exit') or ():
    at = entry['margin'].index(entry['chosen'])
    found['early_exit'].append(
      f'{entry["bits"]} bits: with the margin {entry["chosen"]:g} an image '
      f'takes {entry["steps"][at]:.2f} steps on the average in place of '
      f'{entry["full_steps"]:.2f}, at {percent(entry[metric][at])} {metric} in '
      f'place of {percent(entry["full"])}.'
    )
  for entry in results.get('diagnosis') or ():
    words = ' '.join(entry['words'])
    found['diagnosis'].append(f'{entry["bits"]} bits: {words}')
  return found


def save(path, make, *args) -> None:
  """Writes one of the figures by itself."""
  with matplotlib.rc_context(canvas.STYLE):
    figure = make(*args)
    canvas.legend(figure)
    figure.savefig(path)
