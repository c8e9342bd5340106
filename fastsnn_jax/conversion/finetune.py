"""Layer-wise fine-tuning: each spiking layer is pulled towards its ANN twin.

For a firing layer behind the first: the target is the quantised ANN's
activation, the input the spiking network's mean input to the layer, the value
the spiking layer's mean output, and the gradient that of the layer's quantised
twin at the mean input (reference behaviour C5). Only the layer's own weights
move, theta stays.

'sequential' tunes one layer after another, each behind the tuned ones before
it: the paper's way, O(L^2) prefixes. 'parallel' gives every layer its own loss
in one pass over the whole network, O(L).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastsnn_jax import distributed, tasks
from fastsnn_jax.data import as_split, crop_flip
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation.evaluate import evaluate
from fastsnn_jax.nn.network import IMAGE, Network, own_variables
from fastsnn_jax.nn.quantizers import straight_through
from fastsnn_jax.tasks import Task

SCHEDULES = ('sequential', 'parallel')


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How to fine-tune.

  Attributes:
    schedule: 'sequential' or 'parallel'.
    epochs: passes over the images per layer (sequential) or in all (parallel).
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: on all that moves.
    batch: images per step; an incomplete last batch is left out.
    batch_norm: 'train' normalises the twin with the batch's statistics and
      updates the running ones, as the official code does for ResNets; 'eval'
      leaves them, as it does for the CIFAR AlexNet and VGG.
    accept: 'better' keeps an update only where the spiking network's score on
      the tuning images rises; 'always' keeps each (--force in the official
      code).
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
    for name in ('epochs', 'batch'):
      if getattr(self, name) < 1:
        raise UserError(f'{name}={getattr(self, name)!r}: at least 1 is needed')
    for name, values in (
      ('schedule', SCHEDULES),
      ('batch_norm', ('train', 'eval')),
      ('accept', ('better', 'always')),
    ):
      if getattr(self, name) not in values:
        raise UserError(
          f'{name}={getattr(self, name)!r}: it is one of {", ".join(values)}'
        )

  def optimizer(self):
    return optax.chain(
      optax.add_decayed_weights(self.weight_decay),
      optax.trace(self.momentum),
      optax.scale_by_learning_rate(self.learning_rate),
    )


def layer_loss(moving, tuned, spikes, target, *, ann, snn, layer, batch_norm):
  """Error of one spiking layer, with the gradient of its quantised twin.

  Args:
    moving: the layer's own params without theta.
    tuned: variables of the spiking network.
    spikes: its activations, the image included.
    target: the ANN's activation of this layer.
    ann, snn, layer: static.
    batch_norm: of the twin, 'train' or 'eval'.

  Returns:
    (mean squared error of the rate, new batch_stats of the layer).
  """
  mine = own_variables(tuned, layer.name)
  mine['params'] = {**mine['params'], **moving}
  inputs = [spikes[name] for name in layer.inputs]
  means = [
    x if name == IMAGE else snn.neuron.decode(x)
    for name, x in zip(layer.inputs, inputs, strict=True)
  ]
  inputs, means = jax.lax.stop_gradient((inputs, means))
  # stop_gradient: the spiking unit has a derivative of its own, not wanted here
  rate = snn.neuron.decode(
    snn.unit(layer).apply(jax.lax.stop_gradient(mine), *inputs)
  )
  twin, new = ann.unit(layer).apply(
    mine, *means, train=batch_norm == 'train', mutable=['batch_stats']
  )
  error = straight_through(rate, twin) - target
  return jnp.mean(jnp.square(error)), new.get('batch_stats', {})


def movable(params, layer):
  """The layer's params without theta."""
  return {k: v for k, v in params[layer.name].items() if k != 'theta'}


def tune_step(tuned, opt_state, frozen, images, *, ann, snn, tuning, layers):
  """One step for these layers, each from its own loss.

  Args:
    tuned: variables of the spiking network.
    opt_state: of `tuning.optimizer()` over {layer: movable params}.
    frozen: variables of the ANN.
    images: normalised.
    ann, snn, tuning, layers: static.

  Returns:
    (tuned, opt_state, {layer: loss}).
  """
  _, targets = ann.apply(frozen, images)
  _, spikes = snn.apply(tuned, images)
  spikes = {IMAGE: images, **spikes}

  def total(moving):
    losses, statistics = {}, {}
    for layer in layers:
      losses[layer.name], statistics[layer.name] = layer_loss(
        moving[layer.name],
        tuned,
        spikes,
        targets[layer.name],
        ann=ann,
        snn=snn,
        layer=layer,
        batch_norm=tuning.batch_norm,
      )
    # The losses share no parameter: the gradient of the sum is each one's own.
    return sum(losses.values()), (losses, statistics)

  moving = {layer.name: movable(tuned['params'], layer) for layer in layers}
  grads, (losses, statistics) = jax.grad(total, has_aux=True)(moving)
  updates, opt_state = tuning.optimizer().update(grads, opt_state, moving)
  moving = optax.apply_updates(moving, updates)
  params, stats = dict(tuned['params']), dict(tuned['batch_stats'])
  for layer in layers:
    params[layer.name] = {**params[layer.name], **moving[layer.name]}
    if statistics[layer.name]:
      stats[layer.name] = statistics[layer.name]
  return {'params': params, 'batch_stats': stats}, opt_state, losses


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
    tuned, opt_state = carry
    indices, key = batch
    indices = distributed.keep_by_row(indices)
    drawn = crop_flip(
      key, images[indices], padding=tuning.crop, flip=tuning.flip
    )
    drawn = distributed.keep_by_row(drawn)
    shown = task.present(drawn)
    tuned, opt_state, losses = tune_step(
      tuned, opt_state, frozen, shown, tuning=tuning, **static
    )
    return (tuned, opt_state), losses

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
    ann: the quantised network.
    snn: its spiking twin.
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
  >>> ann = fs.build('small_resnet8', bits=2, mean=(0.5,), std=(0.25,))
  >>> variables = ann.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> images = np.arange(16 * 64, dtype=np.uint8).reshape(16, 8, 8, 1)
  >>> tuned, records = fs.finetune(
  ...   ann, fs.to_spiking(ann), variables, {'image': images},
  ...   fs.Tuning('parallel', batch=16, accept='always'))
  >>> [(record['layer'], record['accepted']) for record in records]
  [('all', True)]
  """
  task, tuning = task or tasks.for_network(ann), tuning or Tuning()
  behind_first = snn.firing[1:]
  data = as_split(data).in_memory()
  size = len(data)
  steps = size // tuning.batch
  if steps < 1:
    raise UserError(
      f'fine-tuning with {size} images: at least one batch of {tuning.batch} '
      'is needed; take a smaller batch or more images'
    )
  distributed.check_batch('batch', tuning.batch)
  tuned = distributed.everywhere(variables)
  variables, images = distributed.everywhere(
    (variables, data['image']), alias=True
  )
  judged = tuning.accept == 'better'
  if judged and set(data.arrays) == {'image'}:
    raise UserError(
      "accept='better' takes labels, by which layers are scored, but the data "
      "hold images only; use Tuning(accept='always')"
    )

  def score(tuned):
    return evaluate(snn, tuned, data, task=task, batch=batch)[task.metric]

  if tuning.schedule == 'sequential':
    groups = [(layer,) for layer in behind_first]
  else:
    groups = [tuple(behind_first)] if behind_first else []
  best = score(tuned) if judged else None
  records, epochs_done = [], 0
  for layers in groups:
    moving = {layer.name: movable(tuned['params'], layer) for layer in layers}
    opt_state = tuning.optimizer().init(moving)
    kept = jax.tree.map(jnp.array, tuned)
    for epoch in range(tuning.epochs):
      key = jax.random.fold_in(jax.random.key(seed), epochs_done)
      epochs_done += 1
      order_key, draw_key = jax.random.split(key)
      order = jax.random.permutation(order_key, size)
      tuned, opt_state, losses = tune_chunk(
        tuned,
        opt_state,
        variables,
        images,
        order[: steps * tuning.batch].reshape(steps, tuning.batch),
        jax.random.split(draw_key, steps),
        ann=ann,
        snn=snn,
        task=task,
        tuning=tuning,
        layers=layers,
      )
      now = score(tuned) if judged else None
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
      }
      if judged:
        record[task.metric] = now
      records.append(record)
      on_layer(record)
    tuned = kept
  return tuned, records
