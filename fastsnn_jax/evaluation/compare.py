"""How near spiking networks come to their quantised network, step by step."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed, tasks
from fastsnn_jax.data import as_split
from fastsnn_jax.errors import DivergesWarning, UserError
from fastsnn_jax.evaluation import operations
from fastsnn_jax.evaluation.batches import accumulate, kept_rows, spiked
from fastsnn_jax.evaluation.diagnosis.diverging import divergence
from fastsnn_jax.evaluation.diagnosis.twins import check_ann, check_twin
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks import Task


def compare(
  ann: Network,
  ann_variables,
  spiking: dict[str, tuple[Network, Any]],
  data,
  *,
  task: Task | None = None,
  batch: int = 100,
  advance: Callable[[], None] = lambda: None,
) -> dict[str, dict]:
  """Judges spiking networks beside their quantised ANN, in one pass each.

  Args:
    ann, ann_variables: the quantised network.
    spiking: {label: (network, variables)}.
    data: a `Split`, or what `data.as_split` takes, such as a dict of arrays.
    task: the networks' own if not given.
    batch: images per call; fewer take less memory.
    advance: called after each batch.

  Returns:
    {label: row}: 'images' judged, the metric after the last step and
    'over_time', the ANN's, 'agreement' of the predictions with the ANN's and
    'agreement_over_time', 'max_logit_difference', 'spikes_per_image' (non-zero
    outputs), 'mean_firing_rate' (spikes per neuron and step run),
    'synops_per_image' (spikes times their connections, plus the first layer's
    MACs once), 'macs_per_image' of the ANN, 'layers' with name, error (mean
    |rate - activation| / theta), differing (share of counts that differ) and
    firing_rate; 'graded', operations of a function that send differences, if
    there are any; with settling 'quiet_histogram', the images whose last spike
    came at step t, 'quiet_step', the last of those steps, and 'not_quiet', the
    images that were not quiet after the last step: that fired in it, or with
    settle='auto' would fire behind the bound. Where that is not 0, take
    settle='auto' and max_count=T, the preset of mode 'settled'.

    A settled network that is quiet equals its twin. Where it does not, its row
    has 'diverges_at', the site where that begins, and 'warning', which is given
    as a warning too: weights, batch statistics or preprocessing are others.

    With settle='auto' 'steps' are those that the slowest image took, and what
    is 'over_time' has T + 1 entries: the last one is for when all is quiet.

  >>> import fastsnn_jax as fs
  >>> rows = (
  ...   fs.Layer('stem', fs.Conv(4)),
  ...   fs.Layer('conv', fs.Conv(4), ('stem',)),
  ...   fs.Layer('head', fs.Dense(4, norm=False), ('conv',)),
  ... )
  >>> ann = fs.Network(
  ...   rows, fs.QuantRelu(2), classes=tuple('abcd'), mean=(0.5,), std=(0.25,)
  ... )
  >>> variables = ann.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> data = {'image': np.zeros((4, 8, 8, 1), np.uint8), 'label': np.arange(4)}
  >>> settled = fs.to_spiking(ann, 'settled')
  >>> rows = fs.compare(ann, variables, {'settled': (settled, variables)}, data)
  >>> rows['settled']['agreement'], rows['settled']['not_quiet']
  (1.0, 0)
  """
  _check(ann, ann_variables, spiking)
  task = tasks.check(task) or tasks.for_network(ann)
  split = as_split(data)
  raw = jax.ShapeDtypeStruct((1, *split.shape), 'uint8')
  shape = jax.eval_shape(task.present, raw).shape[1:]
  fans = operations.leaving(ann, ann_variables, shape)
  macs = operations.macs(ann, ann_variables, shape)
  put = functools.partial(distributed.everywhere, alias=True)
  twin, given = (ann, ann_variables), spiking
  ann, ann_variables = ready(ann, ann_variables)
  ann_variables, fans = put((ann_variables, fans))
  spiking = {label: ready(*pair) for label, pair in spiking.items()}
  spiking = {k: (network, put(tree)) for k, (network, tree) in spiking.items()}

  def judge(batch):
    twin, sums = _ann(ann_variables, batch, network=ann, task=task)
    # A program for each network, or the memory of all were needed at once.
    for label, (network, variables) in spiking.items():
      mine = _compare(variables, fans, batch, twin, network=network, task=task)
      for part, value in mine.items():
        sums.setdefault(part, {}).setdefault('spiking', {})[label] = value
    return sums

  total = accumulate(judge, split, batch, task, advance=advance)
  neurons = {name: float(np.size(fan)) for name, fan in fans.items()}
  sums, rows = total['sums']['ann'], total.get('rows')
  kept = rows and {'found': rows['ann'], 'truth': rows['truth']}
  metric = task.summarize(sums, kept)[task.metric]
  of_ann = {task.metric: metric, **task.details(sums, kept)}
  of_ann = {f'ann_{name}': value for name, value in of_ann.items()}
  found = {
    label: _row(network, total, label, task, of_ann, macs, neurons)
    for label, (network, _) in spiking.items()
  }
  for label, pair in given.items():
    site, words = divergence(twin, pair, found[label], split, task)
    if site:
      found[label] |= {'diverges_at': site, 'warning': words}
      warnings.warn(f'{label}: {words}', DivergesWarning, stacklevel=2)
  return found


def _check(ann, variables, spiking):
  """Raises a UserError where these are no networks that can be compared."""
  check_ann(ann, variables)
  pairs = spiking.values() if isinstance(spiking, Mapping) else [None]
  if not all(
    isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs
  ):
    raise UserError(
      f'spiking of type {type(spiking).__name__}, but it must be a dict '
      '{label: (network, variables)}'
    )
  for label, (network, own) in spiking.items():
    name = f'spiking[{label!r}]'
    check_twin(ann, network, own, name)


@functools.partial(jax.jit, static_argnames=('network', 'task'))
def _ann(variables, batch, *, network, task):
  """((output, activations, predictions), what is summed up of them)."""
  output, activations = network.apply(variables, task.present(batch['image']))
  predictions = task.predict(output)
  return (output, activations, predictions), {
    'sums': {
      'ann': task.measure(predictions, batch),
      'images': jnp.sum(batch['mask']),  # without what could not be decoded
    },
    'rows': kept_rows(task, batch, ann=task.rows(predictions)),
  }


@functools.partial(jax.jit, static_argnames=('network', 'task'))
def _compare(variables, fans, batch, twin, *, network, task):
  """What is summed up of a spiking network beside its ANN, see `_ann`."""
  (output, targets, wanted), mask = twin, batch['mask']
  images = task.present(batch['image'])
  activations, spikes, last, quiet = spiked(network, variables, images)
  outputs = network.output_over_time(variables, activations, images)
  # A step at a time.
  outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), outputs)
  predicted = jax.lax.map(task.predict, outputs)
  pairs = jax.tree.map(lambda x, y: jnp.abs(x[-1] - y), outputs, output)
  difference = [x.reshape(len(x), -1).max(1) for x in jax.tree.leaves(pairs)]
  difference = jnp.max(jnp.stack(difference), 0) * mask
  synops = [_masked_sum(spikes[k] * fan, mask) for k, fan in fans.items()]
  bins = jax.nn.one_hot(last, network.most_steps + 1)
  sums = {
    'metric': jax.vmap(lambda p: task.measure(p, batch))(predicted),
    'agree': jax.vmap(lambda p: task.agree(p, wanted, batch))(predicted),
    'layers': _layer_sums(
      network, variables, activations, spikes, targets, mask
    ),
    'synops': sum(synops),
    'quiet': jnp.sum(bins * mask[:, None], 0),
    'not_quiet': jnp.sum(~quiet * mask),
  }
  result = {'sums': sums, 'max': jnp.max(difference)}
  if task.truth(batch):
    result['rows'] = jax.vmap(task.rows, out_axes=1)(predicted)
  return result


def _layer_sums(network, variables, activations, spikes, targets, mask):
  """Of each firing layer, over images: spikes, error, differing counts."""
  sums, thetas = {}, network.thetas(variables)
  for layer in network.firing:
    activity, target = activations[layer.name], targets[layer.name]
    theta = thetas[layer.name]
    off = jnp.abs(network.neuron.decode(activity) - target) / theta
    half_level = 0.5 / network.neuron.steps
    summands = spikes[layer.name], off, off > half_level
    sums[layer.name] = jnp.stack([_masked_sum(x, mask) for x in summands])
  return sums


def _masked_sum(x, mask):
  rows = jnp.sum(x.reshape(x.shape[0], -1).astype(jnp.float32), 1)
  return jnp.sum(rows * mask)


def _row(network, total, label, task, of_ann, macs, neurons):
  mine, rows = total['sums']['spiking'][label], total.get('rows')
  images, quiet = float(total['sums']['images']), {}
  entries = steps = network.neuron.total_steps
  if network.neuron.settle:  # else the last spike says nothing
    last = int(np.flatnonzero(mine['quiet'])[-1])
    steps = max(last, network.neuron.steps) if network.until_quiet else steps
    quiet = {
      'quiet_step': last,
      'quiet_histogram': mine['quiet'][: steps + 1].tolist(),
      'not_quiet': int(mine['not_quiet']),
    }

  def at(t):
    """What the task takes for the answers after step t."""
    sums = jax.tree.map(lambda x: x[t], mine['metric'])
    if not rows:
      return sums, None
    found = jax.tree.map(lambda x: x[:, t], rows['spiking'][label])
    return sums, {'found': found, 'truth': rows['truth']}

  over_time = [task.summarize(*at(t))[task.metric] for t in range(entries)]
  layers, spikes = [], 0.0
  for layer in network.firing:
    per_image, name = mine['layers'][layer.name] / images, layer.name
    fired, error, off = (per_image / neurons[name]).tolist()
    rates = {'differing': off, 'firing_rate': fired / steps}
    layers.append({'name': name, 'error': error, **rates})
    spikes += per_image[0]
  agree = np.divide(*mine['agree']).tolist()
  first_macs = next(iter(macs.values()))
  graded = list(getattr(network, 'graded', ()))  # not driven by spikes
  return {
    'images': int(images),
    'T': network.neuron.steps,
    'steps': steps,
    task.metric: over_time[-1],
    'agreement': agree[-1],
    'max_logit_difference': float(total['max']['spiking'][label]),
    'mean_firing_rate': spikes / sum(neurons.values()) / steps,
    'spikes_per_image': spikes,
    'synops_per_image': float(mine['synops']) / images + first_macs,
    'macs_per_image': sum(macs.values()),
    **quiet,
    **({'graded': graded} if graded else {}),
    **of_ann,
    **task.details(*at(entries - 1)),
    'over_time': over_time,
    'agreement_over_time': agree,
    'layers': layers,
  }
