"""Notices that a settled network, although quiet, is not its twin."""

import numpy as np

from fastsnn_jax.evaluation.diagnosis.diagnose import diagnose
from fastsnn_jax.nn.tables.table import IMAGE

_ROUNDING = 1e-3  # share of neurons, or of answers, that ties may move
_IMAGES = 100


def divergence(twin, pair, row, split, task):
  """(the site where a quiet network leaves its twin, words); or (None, '').

  `twin` and `pair` are (network, variables) of the quantised and the spiking
  network, `row` what `fs.compare` found of it on the split.
  """
  (ann, _), (network, _) = twin, pair
  if (ann.mean, ann.std) != (network.mean, network.std):
    return IMAGE, (
      f'the images are normalised by mean={network.mean}, std={network.std}, '
      f'but those of the quantised network by mean={ann.mean}, std={ann.std}; '
      'give both the same'
    )
  neuron = network.neuron
  exact = neuron.settle and neuron.signed and neuron.negative_threshold == 0
  if not exact or row['not_quiet']:
    return None, ''
  off = max([1 - row['agreement'], *(x['differing'] for x in row['layers'])])
  if off <= _ROUNDING:
    return None, ''
  few = min(_IMAGES, len(split))
  batch = next(split.batches(few, shared=False))
  images = np.asarray(task.present(batch['image']))
  found = diagnose(*twin, *pair, images)
  site = next((x for x in found.sites if x['name'] == found.first), None)
  if found.first is None or (site and not site['own_differing']):
    return None, ''
  return found.first, (
    'it is quiet, but it does not equal the quantised network: '
    + ' '.join(found.words[:2])
  )
