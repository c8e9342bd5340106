"""Layer-wise fine-tuning: each spiking layer is pulled towards its ANN twin.

For a firing layer behind the first, the target is the quantised ANN's
activation, the value the spiking layer's mean output, and the gradient that of
the layer's quantised twin at the mean input (reference behaviour C5). Only the
layer's own weights move, theta stays.
docs/method.md tells the two schedules, 'sequential' and 'parallel', apart.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastsnn_jax import distributed, tasks
from fastsnn_jax.data import Arrays, as_split, crop_flip
from fastsnn_jax.errors import UserError, check_fields, check_whole
from fastsnn_jax.evaluation.evaluate import evaluate
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.nn.network import Network, check_network
from fastsnn_jax.nn.quantizers import straight_through
from fastsnn_jax.nn.tables.table import IMAGE, own_variables
from fastsnn_jax.tasks import Task
from fastsnn_jax.tasks.pixels import Pixels
from fastsnn_jax.tracing import local
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.training.optimizer import sgd


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How to fine-tune.

  Attributes:
    schedule: 'sequential' or 'parallel'.
    epochs: passes over the images per layer (sequential) or in all (parallel).
    learning_rate, momentum, weight_decay: of SGD, on all that moves.
    batch: images per step; an incomplete last batch is left out.
    batch_norm: 'train' normalises the twin with the batch's statistics and
      updates the running ones, as the official code does for ResNets; 'eval'
      leaves them, as it does for the CIFAR AlexNet and VGG. A function
      normalises as it is written.
    accept: 'better' keeps an update only where the score on the tuning images
      rises; 'always' keeps each (--force in the official code).
    crop, flip: augmentation of the tuning images.

  >>> Tuning(epochs=2).schedule
  'sequential'
  """

  schedule: str = 'sequential'
  epochs: int = 1
  learning_rate: float = 1e-3
  momentum: float = 0.9
  weight_decay: float = 1e-4
  batch: int = 128
  batch_norm: str = 'train'
  accept: str = 'better'
  crop: int = 4
  flip: bool = True

  def __post_init__(self):
    known = self.schedule in ('sequential', 'parallel')
    for name, low in (('epochs', 1), ('batch', 1), ('crop', 0)):
      check_whole(f'Tuning: {name}', getattr(self, name), low)
    for name in ('learning_rate', 'momentum', 'weight_decay'):
      value = getattr(self, name)
      real = isinstance(value, numbers.Real) and 0 <= value < math.inf
      check_fields(self, (name, real, 'a finite number of at least 0'))
    check_fields(
      self,
      ('schedule', known, 'sequential or parallel'),
      ('batch_norm', self.batch_norm in ('train', 'eval'), 'train or eval'),
      ('accept', self.accept in ('better', 'always'), 'better or always'),
    )

  def optimizer(self):
    return sgd(self.learning_rate, self.momentum, self.weight_decay)


def layer_loss(moving, tuned, spikes, target, *, ann, snn, layer, batch_norm):
  """(mean squared error of a layer's rate, its new batch_stats).

  `moving` are the layer's `movable` params, `tuned` the variables and `spikes`
  the activations of the spiking network with both, image included; `target` is
  the activation of the ANN. The gradient is that of the quantised twin.
  """
  mine = own_variables(tuned, layer.name)
  mine['params'] = {**mine['params'], **moving}
  inputs = [spikes[name] for name in layer.inputs]
  means = [
    x if name == IMAGE else snn.neuron.decode(x)
    for name, x in zip(layer.inputs, inputs, strict=True)
  ]
  rate = snn.neuron.decode(spikes[layer.name])
  twin, new = ann.unit(layer).apply(
    mine, *means, train=batch_norm == 'train', mutable=['batch_stats']
  )
  error = straight_through(rate, twin) - target
  return jnp.mean(jnp.square(error)), new.get('batch_stats', {})


def movable(params, layer):
  """The layer's params without theta."""
  return {k: v for k, v in params[layer.name].items() if k != 'theta'}


def moving_of(network, params, layers):
  """What fine-tuning of these layers moves, as one tree."""
  if isinstance(network, FunctionNetwork):
    return local.movable(network, params, [layer.name for layer in layers])
  return {layer.name: movable(params, layer) for layer in layers}


def tune_step(tuned, opt_state, frozen, images, *, ann, snn, tuning, layers):
  """One step for these layers: (tuned, opt_state, {layer: loss}).

  `tuned` and `frozen` are variables of the spiking network and of the ANN,
  `opt_state` is over {layer: movable params}, and images are normalised.
  """
  _, targets = ann.apply(frozen, images)
  _, spikes = snn.apply(tuned, images)
  spikes = {IMAGE: images, **spikes}
  loss_of = functools.partial(
    layer_loss, ann=ann, snn=snn, batch_norm=tuning.batch_norm
  )

  def of_function(moving):
    names = [layer.name for layer in layers]
    rates = {name: snn.neuron.decode(spikes[name]) for name in targets}
    mine = {'params': local.moved(tuned['params'], moving)}
    losses = local.losses(ann, mine, images, rates, targets, names)
    return sum(losses.values()), (losses, {})

  def of_table(moving):
    losses, statistics = {}, {}
    for layer in layers:
      own, target = moving[layer.name], targets[layer.name]
      losses[layer.name], new = loss_of(own, tuned, spikes, target, layer=layer)
      if new:
        statistics[layer.name] = new
    # The losses share no parameter: the gradient of the sum is each one's own.
    return sum(losses.values()), (losses, statistics)

  total = of_function if isinstance(snn, FunctionNetwork) else of_table
  moving = moving_of(snn, tuned['params'], layers)
  grads, (losses, statistics) = jax.grad(total, has_aux=True)(moving)
  updates, opt_state = tuning.optimizer().update(grads, opt_state, moving)
  moved = optax.apply_updates(moving, updates)
  if isinstance(snn, FunctionNetwork):
    params = local.moved(tuned['params'], moved)
    return {**tuned, 'params': params}, opt_state, losses
  params = dict(tuned['params'])
  for name, own in moved.items():
    params[name] = {**params[name], **own}
  statistics = {**tuned['batch_stats'], **statistics}
  return {'params': params, 'batch_stats': statistics}, opt_state, losses


@functools.partial(
  jax.jit,
  static_argnames=('ann', 'snn', 'task', 'tuning', 'layers'),
  donate_argnames=('tuned', 'opt_state'),
)
def tune_chunk(
  tuned, opt_state, frozen, images, rows, keys, *, task, tuning, **static
):
  """Steps over batches of rows, [steps, batch], of images on the device."""

  def step(carry, batch):
    indices, key = batch
    drawn = images[distributed.keep_by_row(indices)]
    drawn = crop_flip(key, drawn, padding=tuning.crop, flip=tuning.flip)
    shown = task.present(distributed.keep_by_row(drawn))
    *carry, losses = tune_step(*carry, frozen, shown, tuning=tuning, **static)
    return tuple(carry), losses

  carry, losses = jax.lax.scan(step, (tuned, opt_state), (rows, keys))
  return *carry, losses


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
  size, judged = len(data), tuning.accept == 'better'
  steps = size // tuning.batch
  if steps < 1:
    raise UserError(
      f'fine-tuning with {size} images: at least one batch of {tuning.batch} '
      'is needed; take a smaller batch or more images'
    )
  if judged and set(data.arrays) == {'image'}:
    raise UserError(
      "accept='better' scores layers by labels, but the data hold images only; "
      "use Tuning(accept='always')"
    )
  distributed.check_batch('batch', tuning.batch)
  tuned = distributed.everywhere(variables)
  given = variables, images
  variables, images = distributed.everywhere(given, alias=True)

  def score(tuned):
    if judged:
      folded = ready(snn, tuned, known=False)
      return evaluate(*folded, data, task=task, batch=batch)[task.metric]

  groups = [(layer,) for layer in snn.firing[1:]]
  if groups and tuning.schedule == 'parallel':
    groups = [snn.firing[1:]]
  best, records = score(tuned), []
  for layers in groups:
    moving = moving_of(snn, tuned['params'], layers)
    opt_state = tuning.optimizer().init(moving)
    kept = jax.tree.map(jnp.array, tuned)
    for epoch in range(tuning.epochs):
      key = jax.random.fold_in(jax.random.key(seed), len(records))
      order_key, draw_key = jax.random.split(key)
      order = jax.random.permutation(order_key, size)[: steps * tuning.batch]
      tuned, opt_state, losses = tune_chunk(
        tuned,
        opt_state,
        variables,
        images,
        order.reshape(steps, tuning.batch),
        jax.random.split(draw_key, steps),
        ann=ann,
        snn=snn,
        task=task,
        tuning=tuning,
        layers=layers,
      )
      now = score(tuned)
      accepted = not judged or now > best
      if accepted:
        best, kept = now, jax.tree.map(jnp.array, tuned)
      loss = np.sum([np.asarray(x) for x in losses.values()], 0)
      tenth = max(1, steps // 10)
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
  return tuned, records
