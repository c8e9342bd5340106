"""What a diagnosis says in words: what is wrong where, and what to do."""

import numpy as np

from fastsnn_jax.evaluation.diagnosis.twins import leaves_between, readout_name

_CLIPPED, _TIES = 0.1, 0.01  # shares of neurons that are worth a sentence


def remedies(twin, spiking, first, sites, output) -> tuple[str, ...]:
  """Sentences; `twin` and `spiking` are (network, variables)."""
  network, _ = spiking
  by_name = {site['name']: site for site in sites}
  words = []
  if first is None:
    words.append(
      f'All {len(sites)} sites and the read-out {output["name"]} do what the '
      'quantised twin does, but for ties.'
    )
  elif first == readout_name(network) or by_name[first]['own_differing'] > 0:
    words += _own(twin, spiking, first, by_name.get(first))
  else:
    words += _sequential(network, first, sites)
  for site in sites:
    if site['clipped_high'] > _CLIPPED:
      words.append(
        f'{site["name"]}: {100 * site["clipped_high"]:.0f} % of the currents '
        'are above theta, the clip, which may be too small; train or calibrate '
        'with a larger one.'
      )
  tied = [site['name'] for site in sites if site['near_ties'] > _TIES]
  if tied:
    words.append(
      f'Near-ties at {_named(tied)}: charges half-way between two levels, '
      'which rounding decides; a mean of levels, as of fs.AveragePool in a row '
      'by itself, makes them.'
    )
  return tuple(words)


def _own(twin, spiking, name, site):
  """Of a site that is wrong though it gets what the twin's gets."""
  (ann, ann_variables), (network, variables) = twin, spiking
  share = (
    f' in {100 * site["own_differing"]:.1f} % of its neurons' if site else ''
  )
  said = (
    f"{name}: fed with the twin's own activations, it differs from the twin"
    f'{share}; so the cause is in this site.'
  )
  if changed := _changed(ann, ann_variables, network, variables, name):
    return [
      said,
      f'It has other variables than the twin: {_named(changed)}. Give the '
      'spiking network the variables of its twin (fine-tuning changes them on '
      'purpose).',
    ]
  levels = _levels(ann, name)
  steps = network.neuron.steps
  if levels not in (None, steps):
    return [
      said,
      f'The twin has {levels} levels above 0 there, but T = {steps}; give the '
      'site the same bits, or the spiking network as many steps.',
    ]
  return [
    said,
    'Its variables are those of the twin, so its operations are others: '
    'compare the rows, or functions, of both, and their levels.',
  ]


def _changed(ann, ann_variables, network, variables, name):
  """Paths of the variables of a site that are not the twin's."""
  if type(ann) is not type(network):
    return []
  theirs = leaves_between(ann, ann_variables, name)
  ours = leaves_between(network, variables, name)
  odd = [
    path
    for path in {**theirs, **ours}
    if path not in theirs
    or path not in ours
    or not np.array_equal(theirs[path], ours[path])
  ]
  pairs = (
    ann.thetas(ann_variables).get(name),
    network.thetas(variables).get(name),
  )
  known = any(path.split('/')[-1] == 'theta' for path in odd)
  if not known and not np.array_equal(*pairs):
    odd.append('theta')
  return odd


def _levels(network, name):
  for layer in network.firing:
    if layer.name == name and hasattr(layer, 'levels'):
      return layer.levels
  bits = getattr(network.neuron, 'bits', None)
  return bits and 2**bits - 1


def _sequential(network, first, sites):
  """Of sites whose spikes come in an order that the neurons do not undo."""
  moved = [site for site in sites if site['sequential_differing'] > 0]
  early, late = (
    sum(site[key] for site in moved) / len(moved)
    for key in ('too_early', 'too_late')
  )
  where = f'sites {moved[0]["name"]} to {moved[-1]["name"]}'
  where = where if len(moved) > 1 else f'site {moved[0]["name"]}'
  words = [
    f'{first}: its charge is that of its inputs, but its spikes are not: at '
    f'{where} {100 * early:.1f} % of the neurons fired too early (more than '
    f'their charge says) and {100 * late:.1f} % too late (charge is left). The '
    'order in which spikes arrive makes this error.'
  ]
  neuron = network.neuron
  settles = neuron.settle and neuron.signed and neuron.negative_threshold == 0
  if neuron.settle and not (settles and neuron.max_count):
    words.append(
      'Its neurons do not settle exactly: take the preset of '
      "fs.to_spiking(network, 'settled'), whose threshold for taking back is 0 "
      'and whose count is capped at T.'
    )
  elif neuron.settle:
    words.append(
      f'It needs more settling steps than settle={neuron.settle!r}: take '
      "settle='auto', or a larger number."
    )
  else:
    words.append(
      "Take fs.to_spiking(network, 'settled'), which loses nothing, or "
      f'fine-tune {where} (fs.finetune).'
    )
  if graded := getattr(network, 'graded', ()):
    words.append(
      f'It sends graded differences at {_named(graded)}: these operations are '
      'exact only when all is quiet; put fs.quantize_activation there, or an '
      'affine operation.'
    )
  return words


def _named(names):
  names = list(names)
  more = f' and {len(names) - 6} more' if len(names) > 6 else ''
  return ', '.join(names[:6]) + more
