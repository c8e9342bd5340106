"""Where a spiking network leaves its quantised twin, site by site, and why."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError, check_whole
from fastsnn_jax.evaluation.diagnosis.remedies import remedies
from fastsnn_jax.evaluation.diagnosis.twins import (
  check_ann,
  check_twin,
  fed,
  readout_name,
)
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.quantizers import against

_LEVEL = 0.1  # of the distance of two levels: less is rounding
_TIE = 1e-3  # of that distance, from a place half-way between two levels
_OUTPUT = 1e-3  # of the largest output: less is rounding


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What `fs.diagnose` found; printed, a line for each site and the remedies.

  Attributes:
    first: name of the first site, or of the read-out, that goes wrong by
      itself; None if there is none.
    sites: a dict for each site in order, see `fs.diagnose`.
    output: the same of the read-out: name, error, largest, own.
    words: sentences that say what is wrong, and what to do.

  >>> print(Diagnosis('conv', [], {}, ('conv: its bias differs.',)))
  conv: its bias differs.
  """

  first: str | None
  sites: list[dict[str, Any]]
  output: dict[str, Any]
  words: tuple[str, ...]

  def __str__(self):
    heads = {
      'name': 'site',
      'differing': 'differ %',
      'error': 'error',
      'own': 'own',
      'inherited': 'inherited',
      'sequential': 'order',
      'too_early': 'early %',
      'too_late': 'late %',
      'clipped_low': 'at 0 %',
      'clipped_high': 'at top %',
      'near_ties': 'ties %',
    }
    shares = {key for key, head in heads.items() if head.endswith('%')}

    def cell(key, value):
      if isinstance(value, str):
        return value
      return f'{100 * value:.2f}' if key in shares else f'{value:.4f}'

    rows = [[cell(key, site[key]) for key in heads] for site in self.sites]
    rows = [list(heads.values()), *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
      '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
      for row in rows
    ]
    return '\n'.join([*lines, *self.words])


def diagnose(
  ann: Network,
  ann_variables,
  spiking: Network,
  spiking_variables,
  images,
  *,
  batch: int = 100,
) -> Diagnosis:
  r"""Compares a spiking network with its quantised twin at every site.

  With A the twin's activation of a site, r the site's rate times theta, and q
  the level of a total charge, r - A has three parts:

    own         q(charge of the twin's activations, spread evenly) - A
    inherited   q(charge of the actual trains) - q(charge of the twin's)
    sequential  r - q(charge of the actual trains)

  Own errors are those of weights, biases, batch statistics, thetas and levels;
  sequential ones come of the order of spikes, or of charge that is left.

  Args:
    ann, ann_variables: the quantised network.
    spiking, spiking_variables: its spiking twin, a table or a function too.
    images: [B, …], normalised as for `network.apply`; some hundred.
    batch: images per call; fewer take less memory.

  Returns:
    A `Diagnosis`. `first` is the first site with an own error that is no tie,
    or else the first with a sequential one. Each of `sites` has its name and,
    of neurons and images, 'differing': the share whose rate is not the twin's;
    'error', 'largest': mean and largest |r - A| / theta; 'own', 'inherited',
    'sequential': their means; 'own_differing', 'sequential_differing': shares
    that are no ties; 'clipped_low', 'clipped_high': the share with a current
    below 0 or above theta; 'too_early', 'too_late': the share that fired more,
    or less, than its charge says; 'charge_left': the mean of the latter, in
    theta; 'near_ties': the share whose charge lies half-way between two levels.

  Raises:
    UserError: networks that are no twins, or no images.

  >>> import fastsnn_jax as fs
  >>> rows = (
  ...   fs.Layer('stem', fs.Conv(4)),
  ...   fs.Layer('conv', fs.Conv(4), ('stem',)),
  ...   fs.Layer('head', fs.Dense(3, norm=False), ('conv',)),
  ... )
  >>> ann = fs.Network(rows, fs.QuantRelu(2))
  >>> images = jax.random.normal(jax.random.key(0), (8, 6, 6, 1))
  >>> variables = ann.init(jax.random.key(1), images)
  >>> wrong = jax.tree.map(jnp.array, variables)
  >>> wrong['params']['conv']['theta'] *= 1.5
  >>> settled = fs.to_spiking(ann, 'settled')
  >>> found = fs.diagnose(ann, variables, settled, wrong, images)
  >>> found.first, fs.diagnose(ann, variables, settled, variables, images).first
  ('conv', None)
  """
  check_ann(ann, ann_variables)
  check_twin(ann, spiking, spiking_variables, 'spiking')
  check_whole('batch', batch, 1)
  images = np.asarray(images)
  if not len(images):
    raise UserError('diagnose: 0 images, but at least one is needed')
  sums: Any = None
  most: Any = None
  size = min(batch, len(images))
  for start in range(0, len(images), size):
    rows = images[start : start + size]
    mask = np.arange(size) < len(rows)
    rows = np.concatenate([rows, images[: size - len(rows)]])
    found, high = jax.device_get(
      _measure(
        ann_variables, spiking_variables, rows, mask, ann=ann, spiking=spiking
      )
    )
    if sums is None:
      sums, most = found, high
    else:
      sums = jax.tree.map(np.add, sums, found)
      most = jax.tree.map(np.maximum, most, high)
  mean = jax.tree.map(lambda x: float(x) / len(images), sums)
  names = [layer.name for layer in spiking.firing]
  high = jax.tree.map(float, most)
  sites = [{'name': x, **mean[x], 'largest': high[x]} for x in names]
  end = readout_name(spiking)
  output = {'name': end, **mean[end], **high[end]}
  first = _first(sites, output)
  words = remedies(
    (ann, ann_variables), (spiking, spiking_variables), first, sites, output
  )
  return Diagnosis(first, sites, output, words)


def _first(sites, output):
  for key in ('own_differing', 'sequential_differing'):
    for site in sites:
      if site[key] > 0:
        return site['name']
    if key == 'own_differing' and output['own_largest'] > _OUTPUT:
      return output['name']
  return None


@functools.partial(jax.jit, static_argnames=('ann', 'spiking'))
def _measure(ann_variables, variables, images, mask, *, ann, spiking):
  """({site: sums over images of means over neurons}, {site: largest error})."""
  steps = spiking.neuron.steps
  output, targets = ann.apply(ann_variables, images)
  answer, activations = spiking.apply(variables, images)
  rates = {
    name: jnp.sum(x, min(x.ndim - 1, 1)) / steps
    for name, x in activations.items()
  }
  even, even_output = fed(spiking, variables, images, targets)
  charged, _ = fed(spiking, variables, images, rates)
  thetas, units = spiking.thetas(variables), ann.thetas(ann_variables)
  sums, most = {}, {}
  for layer in spiking.firing:
    name = layer.name
    found, most[name] = _site(
      *(even[name], charged[name], rates[name], targets[name]),
      *(thetas[name], units[name], spiking.neuron, mask),
    )
    sums[name] = {key: _total(x, mask) for key, x in found.items()}
  name, scale = readout_name(spiking), _largest(output, mask)
  off, own = (
    jax.tree.map(lambda x, y: jnp.abs(x - y), one, output)
    for one in (answer, even_output)
  )
  leaves = zip(jax.tree.leaves(off), jax.tree.leaves(own), strict=True)
  parts = [(_total(x, mask), _total(y, mask)) for x, y in leaves]
  error, own_error = (sum(x) / len(parts) for x in zip(*parts, strict=True))
  sums[name] = {'error': error, 'own': own_error}
  most[name] = {
    'largest': _largest(off, mask),
    'own_largest': _largest(own, mask) / jnp.where(scale > 0, scale, 1),
  }
  return sums, most


def _site(even, charged, rate, target, theta, unit, neuron, mask):
  """({quantity: of each neuron}, the largest error)."""
  theta = against(jnp.asarray(theta, rate.dtype), rate.ndim)
  unit = against(jnp.asarray(unit, rate.dtype), rate.ndim)
  steps = neuron.steps
  cap = min(steps, neuron.max_count or steps)

  def level(current):
    """(T z / theta, the count of so much charge, whether it is a tie)."""
    ratio = steps * current.astype(rate.dtype) / theta
    count = jnp.clip(jnp.floor(ratio + 0.5), 0, cap)
    half = jnp.floor(ratio) + 0.5
    tie = (jnp.abs(ratio - half) < _TIE) & (half > 0) & (half < cap)
    return ratio, count, tie

  def differ(x):
    return jnp.abs(x) > _LEVEL / steps

  ratio, count, tie = level(even)
  charge, due, late_tie = level(charged)
  fired = rate * steps / theta
  own = (count / steps * theta - target) / unit
  inherited = (due - count) / steps * theta / unit
  order = (fired - due) / steps
  off = (rate - target) / unit
  moved = differ(order) & ~late_tie
  left = jnp.clip(jnp.clip(charge, 0, cap) - fired - 0.5, 0)
  shown = mask.reshape(-1, *(1,) * (off.ndim - 1)) if off.ndim else True
  alike = off.ndim and off.shape[0] == len(mask)
  largest = jnp.max(
    jnp.where(shown, jnp.abs(off), 0) if alike else jnp.abs(off)
  )
  return {
    'differing': differ(off),
    'error': jnp.abs(off),
    'own': jnp.abs(own),
    'inherited': jnp.abs(inherited),
    'sequential': jnp.abs(order),
    'own_differing': differ(own) & ~tie,
    'sequential_differing': moved,
    'clipped_low': ratio < 0,
    'clipped_high': ratio > steps,
    'too_early': moved & (order > 0),
    'too_late': moved & (order < 0),
    'charge_left': jnp.where(moved, left, 0),
    'near_ties': tie | late_tie,
  }, largest


def _total(x, mask):
  """The sum over the images that count of the mean over an image's values."""
  x = x.astype(jnp.float32)
  if x.ndim and x.shape[0] == len(mask):
    return jnp.sum(jnp.mean(x.reshape(len(mask), -1), 1) * mask)
  return jnp.mean(x) * jnp.sum(mask)  # of parameters alone


def _largest(tree, mask):
  found = [
    jnp.max(jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), jnp.abs(x), 0))
    for x in jax.tree.leaves(tree)
  ]
  return jnp.max(jnp.stack(found))
