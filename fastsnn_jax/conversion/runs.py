"""An epoch of fine-tuning: by whole networks, or row by row."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fastsnn_jax import distributed
from fastsnn_jax.conversion import carried, steps
from fastsnn_jax.conversion.tuning import Tuning
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Pair:
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
      and carried.carries(self.snn)
      and self.needed() * count * self.tuning.epochs <= carried.BYTES
    )

  def needed(self) -> float:
    raw = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), self.images.dtype)
    shape = jax.eval_shape(self.task.present, raw).shape[1:]
    return carried.needed(self.ann, self.snn, self.frozen, shape)

  def hold_out(self):
    """(the pair without the last tenth of its images, these in batches)."""
    size = len(self.images)
    count = distributed.even(max(size // 10, 1))
    parts = -(-count // self.tuning.batch)
    batch = distributed.even(-(-count // parts))
    held = self.images[jnp.arange(size - parts * batch, size)]
    held = held.reshape(parts, batch, *held.shape[1:])
    rest = self.images[: size - parts * batch]
    return dataclasses.replace(self, images=rest), held

  def distance(self, tuned, held) -> float:
    """How far the outputs are from the quantised network's: the sum of squared
    differences, as a share of that of its squares."""
    pair = {'ann': self.ann, 'snn': self.snn, 'task': self.task}
    return float(_distance(tuned, self.frozen, held, **pair))

  def draws(self, epoch):
    """(rows, keys) of an epoch's batches, the same for each layer."""
    size, batch = len(self.images), self.tuning.batch
    key = jax.random.fold_in(jax.random.key(self.seed), epoch)
    order_key, draw_key = jax.random.split(key)
    count = size // batch
    order = jax.random.permutation(order_key, size)[: count * batch]
    return order.reshape(count, batch), jax.random.split(draw_key, count)


@functools.partial(jax.jit, static_argnames=('ann', 'snn', 'task'))
def _distance(tuned, frozen, images, *, ann, snn, task):
  def run(images):
    shown = task.present(distributed.keep_by_row(images))
    answer, _ = snn.apply(tuned, shown)
    wanted, _ = ann.apply(frozen, shown)
    found, wanted = jax.tree.leaves((answer,)), jax.tree.leaves((wanted,))
    pairs = zip(found, wanted, strict=True)
    off = sum(jnp.sum(jnp.square(a - b)) for a, b in pairs)
    return off / sum(jnp.sum(jnp.square(b)) for b in wanted)

  return jnp.mean(jax.lax.map(run, images))


class Whole:
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


class RowByRow:
  """What a row gets is kept, so that a step runs this row alone."""

  def __init__(self, pair):
    self.pair = pair
    settings = {'task': pair.task, 'tuning': pair.tuning}
    drawn = [
      steps.draw_all(pair.images, *pair.draws(epoch), **settings)
      for epoch in range(pair.tuning.epochs)
    ]
    self.carried = carried.Carried(pair.ann, pair.snn, jnp.concatenate(drawn))
    self.done(pair.snn.firing[:1], pair.frozen)

  def start(self, layers, tuned):
    (layer,) = layers
    self.target = self.carried.target(layer, self.pair.frozen)
    moving = {carried.ROW: steps.movable(tuned['params'], layer)}
    return self.pair.tuning.optimizer().init(moving)

  def epoch(self, layers, tuned, opt_state, epoch):
    (layer,), pair = layers, self.pair
    count = len(self.target) // pair.tuning.epochs
    given = self.carried.inputs(layer), self.target
    mine = slice(epoch * count, (epoch + 1) * count)
    part, opt_state, losses = steps.tune_row(
      carried.part_of(layer, tuned),
      opt_state,
      *jax.tree.map(lambda x: x[mine], given),
      ann=pair.ann,
      snn=pair.snn,
      tuning=pair.tuning,
      row=carried.alone(layer),
    )
    return carried.put_back(layer, tuned, part), opt_state, losses

  def done(self, layers, tuned):
    (layer,) = layers
    target = self.carried.target(layer, self.pair.frozen)
    spikes = self.carried.fired(layer, tuned)
    self.carried.keep(layer, target, spikes)
