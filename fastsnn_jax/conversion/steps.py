"""A step of layer-wise fine-tuning: each layer's own loss, and its update.

For a firing layer behind the first, the target is the quantised ANN's
activation, the value the spiking layer's mean output, and the gradient that of
the layer's quantised twin at the mean input (reference behaviour C5). Only the
layer's own weights move, theta stays.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from fastsnn_jax import distributed
from fastsnn_jax.conversion import carried
from fastsnn_jax.data import crop_flip
from fastsnn_jax.nn.quantizers import straight_through
from fastsnn_jax.nn.tables.table import IMAGE, own_variables
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.spiking import local


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
  settings = {'ann': ann, 'snn': snn, 'tuning': tuning, 'layers': layers}
  return updated(tuned, opt_state, spikes, targets, **settings)


def updated(tuned, opt_state, spikes, targets, *, ann, snn, tuning, layers):
  """The same, where the activations of both networks are there."""
  loss_of = functools.partial(
    layer_loss, ann=ann, snn=snn, batch_norm=tuning.batch_norm
  )

  def of_function(moving):
    names = [layer.name for layer in layers]
    rates = {name: snn.neuron.decode(spikes[name]) for name in targets}
    mine = {'params': local.moved(tuned['params'], moving)}
    losses = local.losses(ann, mine, spikes[IMAGE], rates, targets, names)
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


def draw(images, rows, key, *, task, tuning):
  """A batch of rows of raw images, augmented, as the network is shown it."""
  drawn = images[distributed.keep_by_row(rows)]
  drawn = crop_flip(key, drawn, padding=tuning.crop, flip=tuning.flip)
  return task.present(distributed.keep_by_row(drawn))


@functools.partial(jax.jit, static_argnames=('task', 'tuning'))
def draw_all(images, rows, keys, *, task, tuning):
  """[steps, batch, …] for rows [steps, batch]."""

  def one(drawn):
    return draw(images, *drawn, task=task, tuning=tuning)

  return jax.lax.map(one, (rows, keys))


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
    shown = draw(images, *batch, task=task, tuning=tuning)
    *carry, losses = tune_step(*carry, frozen, shown, tuning=tuning, **static)
    return tuple(carry), losses

  carry, losses = jax.lax.scan(step, (tuned, opt_state), (rows, keys))
  return *carry, losses


@functools.partial(jax.jit, static_argnames=('ann', 'snn', 'tuning', 'row'))
def tune_row(part, opt_state, inputs, target, *, ann, snn, tuning, row):
  """Steps of a row alone, see `rows`: what it gets and its target are there."""

  def step(carry, batch):
    part, opt_state = carry
    coded, target = distributed.keep_by_row(batch)
    given = carried.trains(row, part, coded)
    fired = carried.respond(snn, row, part, tuple(given.values()))
    *carry, losses = updated(
      *(part, opt_state, {**given, row.name: fired}, {row.name: target}),
      **{'ann': ann, 'snn': snn, 'tuning': tuning, 'layers': (row,)},
    )
    return tuple(carry), losses

  carry, losses = jax.lax.scan(step, (part, opt_state), (inputs, target))
  return *carry, losses
