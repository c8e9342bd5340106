"""How a folded network runs: words and levels travel between its rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.folded.activity import Activity, ours, rearranged
from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.integrate_and_fire import scan_words
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.quantizers import divide, level, positive, wider
from fastsnn_jax.nn.synapses import Chain, Residual
from fastsnn_jax.nn.tables import affine
from fastsnn_jax.nn.tables.table import own_variables
from fastsnn_jax.nn.whole import Quantum

# Each 16 steps more go through all before them again.
STEPS_TO_UNROLL = 3 * packed.STEPS_PER_WORD


def apply(network, trees, quanta, shown):
  """(output, activations) of `Network.apply`, without training.

  Args:
    network: folded.
    trees: {'params': …, 'batch_stats': …} of each row.
    quanta: a tuple for each row, see `Network`.
    shown: {the name of the network's input: images}.
  """
  known = {name: Activity(images) for name, images in shown.items()}
  (dtype,) = (images.dtype for images in shown.values())
  neuron, activations = network.neuron, {}
  for layer in network.layers:
    tree, last = trees[layer.name], layer is network.layers[-1]
    inputs = [known[name] for name in layer.inputs]
    if last:
      inputs = [x.total() for x in inputs]
    lit = neuron.steps if network.spiking and not last else 1
    current = current_of(
      layer, tree, inputs, quanta[layer.name], lit, network.spiking
    )
    if not last:
      theta = tree.get('params', {}).get('theta')
      known[layer.name], activity = _respond(neuron, current, theta)
      half = dtype.itemsize < 4
      activations[layer.name] = activity.astype(dtype) if half else activity
  return current(0), activations


def current_of(layer, tree, inputs, quanta, lit, spiking=True):
  """t -> the current of a row at step t, [B, ...] and at least float32.

  Args:
    layer, tree: the row and its variables.
    inputs: an `Activity` each; static ones are shown for `lit` steps.
    quanta: what is known of each.
    lit: from this step on there is no bias.
    spiking: whether the synapse has to be affine.
  """
  inputs = [
    dataclasses.replace(x, quantum=quantum or Quantum())
    for x, quantum in zip(inputs, quanta, strict=True)
  ]
  try:
    if spiking:
      affine.check(layer, [x.shape for x in inputs])
    return _current(layer.synapse, own_variables(tree, 'synapse'), inputs, lit)
  except UserError as error:
    raise UserError(f'layer {layer.name!r}: {error}') from None


def _respond(neuron: Relu | QuantRelu | IntegrateAndFire, current, theta):
  """(what is handed on, what stands in the activations)."""
  if isinstance(neuron, Relu):
    activity = jnp.maximum(current(0), 0)
    return Activity(activity), activity
  like = jax.eval_shape(lambda: current(0))
  theta = positive(jnp.asarray(theta, like.dtype))
  if isinstance(neuron, QuantRelu):
    count = 2**neuron.bits - 1
    levels = level(current(0), theta, count)
    return Activity(levels), divide(levels, count) * theta
  steps = neuron.total_steps
  if steps <= STEPS_TO_UNROLL:
    start = functools.partial(packed.at_rest, like, theta)
    words = packed.kept(
      lambda: packed.gather(current, theta, neuron, steps, start),
      *(theta, current, steps),
    )
  else:
    currents = jnp.stack([current(t) for t in range(steps)], 1)
    words = scan_words(currents, theta, neuron)
  fired = Activity(words, steps)
  return fired, dataclasses.replace(fired, quantum=Quantum(theta)).scaled()


def _current(part, tree, inputs, lit):
  if part is not None and not ours(part):
    return _any(part, tree, inputs, lit)
  match part:
    case Folded():
      return _folded(part, tree['params'], inputs[0], lit)
    case Residual():
      pairs = (part.body, 'body'), (part.shortcut, 'shortcut')
      both = [
        _current(inner, own_variables(tree, name), (x,), lit)
        for (inner, name), x in zip(pairs, inputs, strict=True)
      ]
      return lambda t: jnp.add(*_widened(*(one(t) for one in both)))
    case Chain():
      *before, last = part.parts
      found = _before(before, inputs)
      if found is not None and isinstance(last, Folded):
        own = own_variables(tree, f'parts_{len(before)}')
        return _folded(last, own['params'], found, lit)
  if (found := rearranged(part, inputs)) is not None:
    return lambda t: _shown(_widened(found.at(t))[0], found, t, lit)
  return _any(part, tree, inputs, lit)


def _before(parts, inputs):
  """What the last synapse of a chain gets, if no other has weights."""
  return rearranged(Chain(tuple(parts)), inputs) if parts else inputs[0]


def _widened(*arrays):
  wide = wider(jnp.float32, *(x.dtype for x in arrays))
  return [x.astype(wide) for x in arrays]


def _shown(current, activity, t, lit):
  """An input without time is shown while there is light."""
  late = not activity.steps and t >= lit
  return jnp.zeros_like(current) if late else current


def _folded(part, tree, x, lit):
  kernel, scale = part.scaled(tree, x.quantum)
  if x.packed:
    product = part.products(x.values, kernel, x.quantum, x.steps)
  else:
    y = part.product(x.values, kernel, x.quantum)
    if x.steps:
      y = y.reshape(-1, x.steps, *y.shape[1:])

    def product(t):
      return y[:, t] if x.steps else y

  def current(t):
    y = part.affinely(product(t), scale, tree, lit=t < lit)
    return _shown(y, x, t, lit)

  return current


def _any(part, tree, inputs, lit):
  """Through a synapse that is not folded, as in a network that is not."""
  scaled = [x.scaled() for x in inputs]
  quanta = tuple(x.quantum for x in inputs)
  settings = {'quanta': quanta} if part.quantal else {}
  synapse = functools.partial(part.apply, tree, train=False, **settings)
  if not any(x.steps for x in inputs):
    (y,) = _widened(synapse(*scaled))
    return lambda t: y if t < lit else jnp.zeros_like(y)
  static = tuple(not x.steps for x in inputs)
  steps = max(x.steps for x in inputs)
  if lit:
    rule = IntegrateAndFire(lit, settle=steps - lit)
    y = rule.currents(synapse, scaled, static)
  else:
    y = _late(synapse, scaled, static, steps)
  (y,) = _widened(y)
  return lambda t: y[:, t]


def _late(synapse, inputs, static, steps):
  """Currents without light: static inputs are dark, and biases are gone."""
  dark = [
    jnp.zeros_like(x[:1] if alone else x[:1, 0])
    for x, alone in zip(inputs, static, strict=True)
  ]
  batch = inputs[0].shape[0]
  folded = [
    jnp.zeros((batch * steps, *x.shape[1:]), x.dtype)
    if alone
    else x.reshape(-1, *x.shape[2:])
    for x, alone in zip(inputs, static, strict=True)
  ]
  y = synapse(*folded) - synapse(*dark)
  return y.reshape(batch, steps, *y.shape[1:])
