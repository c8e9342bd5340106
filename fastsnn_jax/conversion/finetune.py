"""Fine-tuning: each spiking layer is pulled towards its ANN twin.

docs/method.md tells the schedules apart: 'bias' (`bias`), and 'sequential' and
'parallel', which train weights (`steps`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed, tasks
from fastsnn_jax.conversion import bias, rows, steps
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
    (tuned variables, records): a record per layer (sequential) or epoch
    (parallel) with the losses of its first and last tenth, the score and
    whether the update was kept.

  Raises:
    UserError: too few images for a batch, a batch that the devices cannot share
      out, or no labels to score with.

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
  size = len(data)
  if size < tuning.batch:
    raise UserError(
      f'fine-tuning with {size} images: at least one batch of {tuning.batch} '
      'is needed; take a smaller batch or more images'
    )
  distributed.check_batch('batch', tuning.batch)
  tuned = distributed.everywhere(variables)
  given = variables, images
  variables, images = distributed.everywhere(given, alias=True)
  pair = _Pair(ann, snn, variables, images, task, tuning, seed)
  if tuning.schedule == 'bias':
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
  run = (_RowByRow if pair.fits() else _Whole)(pair)
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


@dataclasses.dataclass(frozen=True)
class _Pair:
  """The networks, and the images that they are tuned with."""

  ann: Network
  snn: Network
  frozen: Any
  images: Any
  task: Task
  tuning: Tuning
  seed: int

  def fits(self) -> bool:
    """Whether rows are tuned one by one, and what they get can be kept."""
    count = len(self.images) // self.tuning.batch * self.tuning.batch
    return (
      self.tuning.schedule == 'sequential'
      and rows.carries(self.snn)
      and self.needed() * count * self.tuning.epochs <= rows.BYTES
    )

  def needed(self) -> float:
    raw = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), self.images.dtype)
    shape = jax.eval_shape(self.task.present, raw).shape[1:]
    return rows.needed(self.ann, self.snn, self.frozen, shape)

  def draws(self, epoch):
    """(rows, keys) of an epoch's batches, the same for each layer."""
    size, batch = len(self.images), self.tuning.batch
    key = jax.random.fold_in(jax.random.key(self.seed), epoch)
    order_key, draw_key = jax.random.split(key)
    count = size // batch
    order = jax.random.permutation(order_key, size)[: count * batch]
    return order.reshape(count, batch), jax.random.split(draw_key, count)


class _Whole:
  """Every step runs both networks."""

  def __init__(self, pair):
    self.pair = pair

  def start(self, layers, tuned):
    moving = steps.moving_of(self.pair.snn, tuned['params'], layers)
    return self.pair.tuning.optimizer().init(moving)

  def epoch(self, layers, tuned, opt_state, epoch):
    pair = self.pair
    settings = {'ann': pair.ann, 'snn': pair.snn, 'tuning': pair.tuning}
    return steps.tune_chunk(
      *(tuned, opt_state, pair.frozen, pair.images, *pair.draws(epoch)),
      **settings,
      task=pair.task,
      layers=layers,
    )

  def done(self, layers, tuned):
    pass


class _RowByRow:
  """What a row gets is kept, so that a step runs this row alone."""

  def __init__(self, pair):
    self.pair = pair
    settings = {'task': pair.task, 'tuning': pair.tuning}
    drawn = [
      steps.draw_all(pair.images, *pair.draws(epoch), **settings)
      for epoch in range(pair.tuning.epochs)
    ]
    self.carried = rows.Carried(pair.ann, pair.snn, jnp.concatenate(drawn))
    self.done(pair.snn.firing[:1], pair.frozen)

  def start(self, layers, tuned):
    (layer,) = layers
    self.target = self.carried.target(layer, self.pair.frozen)
    moving = {rows.ROW: steps.movable(tuned['params'], layer)}
    return self.pair.tuning.optimizer().init(moving)

  def epoch(self, layers, tuned, opt_state, epoch):
    (layer,), pair = layers, self.pair
    count = len(self.target) // pair.tuning.epochs
    given = self.carried.inputs(layer), self.target
    mine = slice(epoch * count, (epoch + 1) * count)
    part, opt_state, losses = steps.tune_row(
      rows.part_of(layer, tuned),
      opt_state,
      *jax.tree.map(lambda x: x[mine], given),
      ann=pair.ann,
      snn=pair.snn,
      tuning=pair.tuning,
      row=rows.alone(layer),
    )
    return rows.put_back(layer, tuned, part), opt_state, losses

  def done(self, layers, tuned):
    (layer,) = layers
    target = self.carried.target(layer, self.pair.frozen)
    spikes = self.carried.fired(layer, tuned)
    self.carried.keep(layer, target, spikes)


def _by_bias(pair, tuned, on_layer):
  fit = max(int(rows.BYTES // pair.needed()), 1)
  size = min(len(pair.images), bias.IMAGES, fit)
  parts = -(-size // pair.tuning.batch)
  batch = distributed.even(size // parts)
  order = np.arange(parts * batch).reshape(parts, batch) % len(pair.images)
  plain = dataclasses.replace(pair.tuning, crop=0, flip=False)
  keys = jax.random.split(jax.random.key(0), parts)
  settings = {'task': pair.task, 'tuning': plain}
  shown = steps.draw_all(pair.images, order, keys, **settings)
  records, found = (
    [],
    bias.corrected(
      *(pair.ann, pair.snn, pair.frozen, tuned, shown, pair.tuning.epochs)
    ),
  )
  for sweep, name, moved, before, after in found:
    record = {
      'schedule': 'bias',
      'layer': name,
      'epoch': sweep,
      'loss_before': before,
      'loss_after': after,
      'accepted': before is not None,
    }
    tuned = moved
    records.append(record)
    on_layer(record)
  return tuned, records
