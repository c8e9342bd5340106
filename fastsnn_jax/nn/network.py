"""Runs a table of layers under one neuron.

Float, quantised and spiking networks are one table under three neurons, so
they share one tree of variables, and a conversion replaces the neuron.
"""

import contextlib
import contextvars
import dataclasses
import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import run as folded
from fastsnn_jax.nn.neurons import IntegrateAndFire, Relu
from fastsnn_jax.nn.synapses import Synapse, run
from fastsnn_jax.nn.tables import affine
from fastsnn_jax.nn.tables.table import (
  IMAGE,
  Layer,
  Neuron,
  Table,
  own_variables,
)
from fastsnn_jax.nn.until_quiet import Settled, settled
from fastsnn_jax.nn.whole import Quantum, check_precision

# Set while a function is traced: rounding to whole numbers, which changes no
# value, would hide from the walk that a product is linear.
_PLAIN = contextvars.ContextVar('plain', default=False)


class Unit(nn.Module):
  synapse: Synapse
  neuron: Neuron | None
  static: tuple[bool, ...] = ()  # which inputs have no time axis

  @nn.compact
  def __call__(self, *inputs, train=False, quanta=()):
    if self.neuron is None:
      return run(self.synapse, *inputs, train=train, quanta=quanta)
    theta = None
    if (initial := self.neuron.initial_theta) is not None:
      theta = self.get_variable('params', 'theta')  # of each channel, too
      if theta is None:
        theta = self.param('theta', lambda _: jnp.float32(initial))
    synapse = functools.partial(run, self.synapse, train=train, quanta=quanta)
    activity = self.neuron.respond(synapse, inputs, theta, static=self.static)
    half = train and inputs[0].dtype.itemsize < 4  # half precision stays so
    return activity.astype(inputs[0].dtype) if half else activity


@dataclasses.dataclass(frozen=True)
class Network(Table):
  """Layers, the neuron of all but the last, and what else is static.

  Attributes:
    layers: the table; its last row is the read-out, which has no neuron.
    neuron: `Relu()`, `QuantRelu(bits)` or `IntegrateAndFire(steps, ...)`.
    model: the name that `fs.build` took, or None for a table of your own.
    bits: of the weights, where they are quantised; 32 for none.
    classes: class names.
    mean, std: per channel, of images in 0..1.
    task: what the network is for, by its registered name.
    stride, remainder: an image's sides are a multiple of `stride`, the pixels
      of a cell of the output, and `remainder` more: 1 for a segmenter, else 0.
    anchors: (width, height) in cells of the boxes that a detector starts from.
    precision: of the products at inference that are of no whole numbers; those
      of levels and spikes with APoT weights are exact in any (docs/method.md).
      'high': float kernels as two bfloat16 pieces, images in full float32, so
      all devices agree; 'default': what the device takes, a bfloat16 piece on
      accelerators: fastest; 'highest': full float32, in training too.
    overlap: IoU above which a detector keeps only the better of two boxes.
    size: side of the square that a detector sees of any image, and a segmenter
      pads smaller ones to; 0 for a side near the image's own.

  UserError for no rows, a name taken twice, or an input that is no row above. A
  network of one's own, and the spiking one with its variables:

  >>> import fastsnn_jax as fs
  >>> rows = (
  ...   fs.Layer('stem', fs.Conv(8)),
  ...   fs.Layer('conv', fs.Conv(8), ('stem',)),
  ...   fs.Layer('sum', fs.Residual(fs.Conv(8)), ('conv', 'stem')),
  ...   fs.Layer('head', fs.Dense(3, norm=False), ('sum',)),
  ... )
  >>> ann = fs.Network(rows, fs.QuantRelu(bits=2))
  >>> images = jnp.ones((1, 8, 8, 1))
  >>> variables = ann.init(jax.random.key(0), images)
  >>> snn = dataclasses.replace(ann, neuron=fs.IntegrateAndFire(steps=3))
  >>> output, activations = jax.jit(snn.apply)(variables, images)
  >>> output.shape, activations['sum'].shape
  ((1, 3), (1, 3, 8, 8, 8))
  """

  def unit(self, layer: Layer) -> nn.Module:
    static = tuple(name == IMAGE for name in layer.inputs)
    neuron = None if layer is self.layers[-1] else self.neuron
    if isinstance(neuron, IntegrateAndFire) and neuron.until_quiet:
      neuron = dataclasses.replace(neuron, settle=0)  # the T steps
    return Unit(layer.synapse, neuron, static)

  def inputs_of(self, layer: Layer, activations) -> list[Any]:
    """What feeds a row; the read-out gets means over time."""
    decode = self.neuron.decode if layer is self.layers[-1] else lambda x: x
    return [
      activations[name] if name == IMAGE else decode(activations[name])
      for name in layer.inputs
    ]

  def init(self, key, images) -> dict[str, Any]:
    """{'params': {layer: …}, 'batch_stats': {layer: …}} for such images."""
    self._check_shape(images)
    shape = (1, *np.shape(images)[1:])
    activations = {IMAGE: jax.ShapeDtypeStruct(shape, jnp.float32)}
    variables = {'params': {}, 'batch_stats': {}}
    for i, layer in enumerate(self.layers):
      unit, feed = self.unit(layer), functools.partial(self.inputs_of, layer)
      inputs = jax.eval_shape(feed, activations)
      shapes = tuple(x.shape for x in inputs)
      mine = _init_unit(jax.random.fold_in(key, i), unit=unit, shapes=shapes)
      for collection, tree in mine.items():
        variables[collection][layer.name] = tree
      activations[layer.name] = jax.eval_shape(unit.apply, mine, *inputs)
    return variables

  def apply(
    self,
    variables,
    images,
    *,
    train: bool = False,
    remat: bool = False,
    precision: str | None = None,
  ):
    """Runs the table.

    Args:
      variables: as from `init`.
      images: [B, H, W, C], normalised; maps of other axes, [B, L, C], and
        plain features, [B, F], where the table takes them. With bfloat16 the
        products take it, with sums, neurons and statistics in float32.
      train: batch norm takes the batch's statistics and updates its own; in a
        spiking network those of all B T rows, a row on images only those of B.
      remat: with `train`, the gradient computes what is inside a row again.
      precision: in place of the network's own.

    Returns:
      (output, activations): the read-out, averaged over time in a spiking
      network, and every firing layer's activity, [B, …] or [B, T, …] with
      spikes of -theta, 0, theta; with settle='auto' [B, T + 1, …], at last the
      sum of what was fired after the T steps. With `train`, a third: the new
      batch_stats.

    Raises:
      UserError: images or variables of another kind; `train` with settling.
    """
    if train and self.spiking and self.neuron.settle:
      raise UserError(
        f'train=True with settle={self.neuron.settle!r}: the steps without '
        'input are no statistics of batch norm; train the twin of mode '
        "'signed', whose variables are the same"
      )
    self._check(variables, images)
    variables = distributed.on_mesh_of(images, variables)
    precision = precision or self.precision
    check_precision(precision)
    if self.until_quiet:
      network = dataclasses.replace(self, precision=precision)
      found = settled(network, variables, images)
      return found.output, found.activations
    if self.in_words(variables) and not train:
      quanta = self.quanta(variables, images.dtype, precision)
      trees = {x.name: own_variables(variables, x.name) for x in self.layers}
      return folded.apply(self, trees, quanta, {IMAGE: images})
    activations, statistics = {IMAGE: images}, {}
    for layer in self.layers:
      name, inputs = layer.name, self.inputs_of(layer, activations)
      unit, mine = self.unit(layer).apply, own_variables(variables, name)
      if self.spiking:
        affine.check(layer, self._shapes(layer, inputs))
      quanta = self._quanta(layer, variables, images.dtype, precision, train)
      unit = functools.partial(unit, quanta=quanta)
      if train:
        unit = functools.partial(unit, train=True, mutable=['batch_stats'])
        unit = jax.checkpoint(unit) if remat else unit
      with _told(name, images):
        found = unit(mine, *inputs)
      activations[name], new = found if train else (found, {})
      if 'batch_stats' in new:
        statistics[name] = new['batch_stats']
    del activations[IMAGE]
    output = activations.pop(self.layers[-1].name)
    if images.dtype.itemsize < 4:
      activations = {k: a.astype(images.dtype) for k, a in activations.items()}
    return (output, activations, statistics) if train else (output, activations)

  def in_words(self, variables) -> bool:
    """Whether whole numbers can travel between the rows."""
    params = variables['params'].values()
    thetas = [own['theta'] for own in params if 'theta' in own]
    known = isinstance(self.neuron, Neuron)
    return self.folded and known and all(jnp.ndim(x) < 2 for x in thetas)

  def settle(self, variables, images) -> Settled:
    """Runs a network with settle='auto' until none of its neurons fires.

    T steps with input, then steps without, until all images of the batch are
    quiet: L T at most, for L rows in a chain. That is enough where counts are
    capped at T, as they are in mode 'settled'. `apply` is built on it.

    Args:
      variables, images: as for `apply`.

    Returns:
      (output, activations, spikes, steps, quiet), see `Settled`.

    Raises:
      UserError: as of `apply`; a network that does not settle in this way.

    >>> import fastsnn_jax as fs
    >>> network = fs.build('small_resnet8', bits=2)
    >>> images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    >>> variables = network.init(jax.random.key(1), images)
    >>> found = fs.to_spiking(network, 'settled').settle(variables, images)
    >>> found.steps.shape, found.quiet.tolist()
    ((2,), [True, True])
    """
    self._check_settles()
    self._check(variables, images)
    return settled(self, variables, images)

  def _check_settles(self):
    if not self.until_quiet:
      raise UserError(
        f'settle: the neuron is {self.neuron}, but this is for networks as '
        "fs.to_spiking(network, 'settled', settle='auto') makes them"
      )

  def currents(self, layer, variables, images, decoded=False):
    """What turns a row's inputs, spikes or means over time, into its current.

    Time is folded into the batch; the read-out always gets means.
    """
    mine, unit = own_variables(variables, layer.name), Unit(layer.synapse, None)
    like = images.dtype, self.precision
    quanta = self._quanta(layer, variables, *like, decoded=decoded)

    def run(*inputs):
      affine.check(layer, [x.shape for x in inputs])
      with _told(layer.name, images):
        return unit.apply(mine, *inputs, quanta=quanta)

    return run

  def _check(self, variables, images):
    self._check_shape(images, variables.get('params', {}))
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise UserError(
        f'images of shape {np.shape(images)} and dtype {images.dtype}, but '
        'they must be normalised floats, [B, H, W, C]; fs.classify takes uint8'
      )
    check_network(self, variables)

  def quanta(self, variables, dtype, precision=None):
    """{row: what is known of each of its inputs}."""
    precision = precision or self.precision
    return {
      layer.name: self._quanta(layer, variables, dtype, precision)
      for layer in self.layers
    }

  def _quanta(
    self, layer, variables, dtype, precision, train=False, decoded=False
  ):
    """What is known of each input, None for nothing.

    In training, and where nothing is rounded, products are the device's own,
    but for full precision.
    """
    plain = train or isinstance(self.neuron, Relu) or _PLAIN.get()
    if plain and precision != 'highest':
      return (None,) * len(layer.inputs)
    if dtype.itemsize < 4:
      precision = dtype.name
    quanta, decoded = [], decoded or layer is self.layers[-1]
    for name in layer.inputs:
      theta = variables['params'].get(name, {}).get('theta')
      if plain or theta is None or jnp.ndim(theta) > 1:
        quantum = Quantum()
      else:
        quantum = self.neuron.quantum(jnp.asarray(theta), decoded) or Quantum()
      quanta.append(dataclasses.replace(quantum, precision=precision))
    return tuple(quanta)

  def _shapes(self, layer, inputs):
    """Of what a spiking row's synapse gets: time is folded into the batch."""
    last = layer is self.layers[-1]
    return [
      x.shape if last or name == IMAGE else x.shape[1:]
      for name, x in zip(layer.inputs, inputs, strict=True)
    ]

  def output_over_time(self, variables, activations, images=None):
    """A spiking network's answer after each step: [B, T + settle, …].

    With settle='auto' [B, T + 1, …]: the last is the answer when all is quiet.
    `images`, which gave the activations, are needed only where the output hangs
    on them directly.
    """
    readout, decode = self.layers[-1], self.neuron.decode_over_time
    inputs = [decode(activations[name]) for name in readout.inputs]
    folded = [x.reshape(-1, *x.shape[2:]) for x in inputs]
    batch, steps = inputs[0].shape[:2]
    time = jnp.minimum(jnp.arange(1, steps + 1), self.neuron.steps)
    output = self.read_out(variables, folded, jnp.tile(time, batch))
    return output.reshape(batch, steps, *output.shape[1:])

  def read_out(self, variables, means, time):
    """The output of means over `time` steps, one number for each row: [N]."""
    readout = self.layers[-1]
    mine = own_variables(variables, readout.name)
    quanta = tuple(
      q if q.unit is None else dataclasses.replace(q, parts=time)
      for q in self._quanta(readout, variables, means[0].dtype, self.precision)
    )
    return self.unit(readout).apply(mine, *means, quanta=quanta)


_UNKNOWN = object()


@contextlib.contextmanager
def plain_products():
  """Tables that run inside multiply as they are, not in whole numbers."""
  token = _PLAIN.set(True)
  try:
    yield
  finally:
    _PLAIN.reset(token)


@contextlib.contextmanager
def _told(name, images):
  """What goes wrong in a row names it."""
  try:
    yield
  except UserError as error:
    raise UserError(f'layer {name!r}: {error}') from None
  except flax.errors.FlaxError as error:
    reason = str(error).partition(' (http')[0]
    raise UserError(
      f'layer {name!r}: images of shape {np.shape(images)}, or the '
      f'variables, do not fit it ({reason}); give variables of this '
      'network, and images of the size that it was made for'
    ) from error


def check_network(network, variables=_UNKNOWN, name: str = 'network') -> None:
  """Raises a UserError for what is no network, or no variables of it."""
  if not isinstance(network, Network):
    raise UserError(
      f'{name} is of type {type(network).__name__}, but it must be a Network, '
      'as fs.build and fs.load give it; the network stands before its variables'
    )
  if variables is not _UNKNOWN:
    network.check_variables(variables, name)


@functools.partial(jax.jit, static_argnames=('unit', 'shapes'))
def _init_unit(key, *, unit, shapes):
  # Equal rows share one compiled program.
  return unit.init(key, *(jnp.zeros(shape) for shape in shapes))
