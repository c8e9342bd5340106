"""Fine-tuning: each spiking layer is pulled towards its ANN twin.

docs/method.md tells the schedules apart: 'bias' (`bias`), and 'sequential' and
'parallel', which train weights (`steps`).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed, tasks
from fastsnn_jax.conversion import bias, carried, runs, steps
from fastsnn_jax.conversion.tuning import Tuning
from fastsnn_jax.data import Arrays, as_split
from fastsnn_jax.errors import UserError, check_whole
from fastsnn_jax.evaluation.evaluate import evaluate
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.nn.network import Network, check_network
from fastsnn_jax.tasks import Task
from fastsnn_jax.tasks.pixels import Pixels


def finetune(
  ann: Network,
  snn: Network,
  variables,
  data,
  tuning: Tuning | None = None,
  *,
  task: Task | None = None,
  seed: int = 0,
  batch: int = 100,
  on_layer: Callable[[dict], None] = lambda record: None,
):
  """Fine-tunes a spiking network.

  Args:
    ann, snn: the quantised network and its spiking twin.
    variables: of the ANN; the targets come from them throughout.
    data: a `Split`, or what `data.as_split` takes, with raw images: for the
      steps and, with `accept='better'` and labels, for the score.
    tuning: how; `Tuning()` if not given.
    task: scores the network; its own if not given.
    seed: of shuffling and augmentation.
    batch: images per call when scoring.
    on_layer: called with each record.

  Returns:
    (tuned variables, records): a record per layer (bias, sequential) or epoch
    (parallel) with the losses of its first and last tenth, the score and
    whether the update was kept. For bias the losses are those before and after
    the correction, of all images; None where a layer has no bias of its own.

  Raises:
    UserError: too few images for a batch, a batch that the devices cannot share
      out, no labels to score with, or 'bias' for a network that settles.

  >>> import fastsnn_jax as fs
  >>> rows = (
  ...   fs.Layer('stem', fs.Conv(4)),
  ...   fs.Layer('conv', fs.Conv(4), ('stem',)),
  ...   fs.Layer('head', fs.Dense(3, norm=False), ('conv',)),
  ... )
  >>> ann = fs.Network(
  ...   rows, fs.QuantRelu(2), classes=('a', 'b', 'c'), mean=(0.5,), std=(0.25,)
  ... )
  >>> variables = ann.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> images = np.arange(16 * 64, dtype=np.uint8).reshape(16, 8, 8, 1)
  >>> tuned, records = fs.finetune(
  ...   ann, fs.to_spiking(ann), variables, {'image': images},
  ...   fs.Tuning('parallel', batch=16, accept='always'))
  >>> [(record['layer'], record['accepted']) for record in records]
  [('conv', True)]
  """
  check_network(ann, variables, 'ann')
  check_network(snn, variables, 'snn')
  if ann.folded or snn.folded:
    raise UserError(
      'finetune: a folded network, but its weights cannot be trained; give the '
      'networks and variables that fs.fold was given'
    )
  if ann.spiking or not snn.spiking:
    raise UserError(
      f'finetune: ann has {ann.neuron}, snn {snn.neuron}, but they must be the '
      'quantised network and its spiking twin, in this order'
    )
  check_whole('seed', seed)
  tuning = Tuning() if tuning is None else tuning
  if not isinstance(tuning, Tuning):
    raise UserError(f'tuning={tuning!r}, but it must be a Tuning(epochs=…, …)')
  task = tasks.check(task) or tasks.for_network(ann)
  data = as_split(data).in_memory()
  (images,) = Pixels()(data['image'])  # in memory: one look at all
  data = Arrays({**data.arrays, 'image': images})
  size, by_bias = len(data), tuning.schedule == 'bias'
  if by_bias and snn.until_quiet:
    raise UserError(
      "schedule='bias' with settle='auto': a network that settles has no mean "
      "error; give one of mode 'signed' or 'unsigned'"
    )
  _check_count(size, 1 if by_bias else tuning.batch)
  distributed.check_batch('batch', tuning.batch)
  tuned = distributed.everywhere(variables)
  given = variables, images
  variables, images = distributed.everywhere(given, alias=True)
  pair = runs.Pair(ann, snn, variables, images, task, tuning, seed)
  if by_bias:
    return _by_bias(pair, tuned, on_layer)
  judged = tuning.accept == 'better'
  if judged and set(data.arrays) == {'image'}:
    raise UserError(
      "accept='better' scores layers by labels, but the data hold images only; "
      "use Tuning(accept='always')"
    )

  def score(tuned):
    if judged:
      folded = ready(snn, tuned, known=False)
      return evaluate(*folded, data, task=task, batch=batch)[task.metric]

  groups = [(layer,) for layer in snn.firing[1:]]
  if groups and tuning.schedule == 'parallel':
    groups = [snn.firing[1:]]
  run = (runs.RowByRow if pair.fits() else runs.Whole)(pair)
  best, records = score(tuned), []
  for layers in groups:
    opt_state = run.start(layers, tuned)
    kept = jax.tree.map(jnp.array, tuned)
    for epoch in range(tuning.epochs):
      tuned, opt_state, losses = run.epoch(layers, tuned, opt_state, epoch)
      now = score(tuned)
      accepted = not judged or now > best
      if accepted:
        best, kept = now, jax.tree.map(jnp.array, tuned)
      loss = np.sum([np.asarray(x) for x in losses.values()], 0)
      tenth = max(1, len(loss) // 10)
      record = {
        'schedule': tuning.schedule,
        'layer': layers[0].name if len(layers) == 1 else 'all',
        'epoch': epoch,
        'loss_before': float(loss[:tenth].mean()),
        'loss_after': float(loss[-tenth:].mean()),
        'accepted': accepted,
        **({task.metric: now} if judged else {}),
      }
      records.append(record)
      on_layer(record)
    tuned = kept
    run.done(layers, tuned)
  return tuned, records


def _check_count(size, batch):
  if size < batch:
    raise UserError(
      f'fine-tuning with {size} images: at least one batch of {batch} is '
      'needed; take a smaller batch or more images'
    )


def _by_bias(pair, tuned, on_layer):
  judged, held = pair.tuning.accept == 'better', None
  if judged:
    pair, held = pair.hold_out()
    _check_count(len(pair.images), 1)
  (shown, real), records = _images_for_bias(pair), []
  kept, best = tuned, pair.distance(tuned, held) if judged else None
  for epoch in range(pair.tuning.epochs):
    tuned, errors = bias.corrected(
      *(pair.ann, pair.snn, pair.frozen, tuned, shown, real)
    )
    now = pair.distance(tuned, held) if judged else None
    accepted = now is None or now < best
    if accepted:
      kept, best = tuned, now
    for name, (before, after) in errors.items():
      record = {
        'schedule': 'bias',
        'layer': name,
        'epoch': epoch,
        'loss_before': before,
        'loss_after': after,
        'accepted': accepted and before is not None,
        **({'distance': now} if judged else {}),
      }
      records.append(record)
      on_layer(record)
  return kept, records


def _images_for_bias(pair):
  """(normalised, [batches, B, …], as many as help and can be kept; which of
  them are real: the last batch is filled up)."""
  fit = max(int(carried.BYTES // pair.needed()), 1)
  size = min(len(pair.images), bias.IMAGES, fit)
  parts, batch = -(-size // pair.tuning.batch), pair.tuning.batch
  number = np.arange(parts * batch).reshape(parts, batch)
  plain = dataclasses.replace(pair.tuning, crop=0, flip=False)
  keys = jax.random.split(jax.random.key(0), parts)
  settings = {'task': pair.task, 'tuning': plain}
  shown = steps.draw_all(pair.images, number % size, keys, **settings)
  return shown, jnp.float32(number < size)
