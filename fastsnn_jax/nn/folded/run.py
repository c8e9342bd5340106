"""How a folded network runs: words and levels travel between its rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.folded.activity import Activity, ours, rearranged
from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.integrate_and_fire import Rule, scan_words
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.quantizers import divide, level, positive, wider
from fastsnn_jax.nn.synapses import Chain, Residual
from fastsnn_jax.nn.tables import affine
from fastsnn_jax.nn.whole import Quantum

# Each 16 steps more go through all before them again.
_STEPS_TO_UNROLL = 3 * packed.STEPS_PER_WORD


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
    inputs = [
      dataclasses.replace(known[name], quantum=quantum or Quantum())
      for name, quantum in zip(layer.inputs, quanta[layer.name], strict=True)
    ]
    rule = neuron if network.spiking and not last else Rule(1)
    if last:
      inputs = [x.total() for x in inputs]
    try:
      if network.spiking:
        affine.check(layer, [x.shape for x in inputs])
      current = _current(layer.synapse, _own(tree, 'synapse'), inputs, rule)
    except UserError as error:
      raise UserError(f'layer {layer.name!r}: {error}') from None
    if not last:
      theta = tree.get('params', {}).get('theta')
      known[layer.name], activity = _respond(neuron, current, theta)
      half = dtype.itemsize < 4
      activations[layer.name] = activity.astype(dtype) if half else activity
  return current(0), activations


def _own(tree, name):
  return {kind: part[name] for kind, part in tree.items() if name in part}


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
  if steps <= _STEPS_TO_UNROLL:
    words = packed.kept(
      lambda: packed.gather(current, theta, neuron, like),
      *(theta, like.shape, steps),
    )
  else:
    currents = jnp.stack([current(t) for t in range(steps)], 1)
    words = scan_words(currents, theta, neuron)
  fired = Activity(words, steps)
  return fired, dataclasses.replace(fired, quantum=Quantum(theta)).scaled()


def _current(part, tree, inputs, rule):
  """t -> the current of step t, [B, ...] and at least float32."""
  if part is not None and not ours(part):
    return _any(part, tree, inputs, rule)
  match part:
    case Folded():
      return _folded(part, tree['params'], inputs[0], rule)
    case Residual():
      pairs = (part.body, 'body'), (part.shortcut, 'shortcut')
      both = [
        _current(inner, _own(tree, name), (x,), rule)
        for (inner, name), x in zip(pairs, inputs, strict=True)
      ]
      return lambda t: jnp.add(*_widened(*(one(t) for one in both)))
    case Chain():
      *before, last = part.parts
      found = _before(before, inputs)
      if found is not None and isinstance(last, Folded):
        own = _own(tree, f'parts_{len(before)}')
        return _folded(last, own['params'], found, rule)
  if (found := rearranged(part, inputs)) is not None:
    return lambda t: _shown(_widened(found.at(t))[0], found, t, rule)
  return _any(part, tree, inputs, rule)


def _before(parts, inputs):
  """What the last synapse of a chain gets, if no other has weights."""
  return rearranged(Chain(tuple(parts)), inputs) if parts else inputs[0]


def _widened(*arrays):
  wide = wider(jnp.float32, *(x.dtype for x in arrays))
  return [x.astype(wide) for x in arrays]


def _shown(current, activity, t, rule):
  """An input without time is shown for `rule.steps` steps."""
  late = not activity.steps and t >= rule.steps
  return jnp.zeros_like(current) if late else current


def _folded(part, tree, x, rule):
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
    y = part.affinely(product(t), scale, tree, lit=t < rule.steps)
    return _shown(y, x, t, rule)

  return current


def _any(part, tree, inputs, rule):
  """Through a synapse that is not folded, as in a network that is not."""
  scaled = [x.scaled() for x in inputs]
  quanta = tuple(x.quantum for x in inputs)
  settings = {'quanta': quanta} if part.quantal else {}
  synapse = functools.partial(part.apply, tree, train=False, **settings)
  if not any(x.steps for x in inputs):
    (y,) = _widened(synapse(*scaled))
    return lambda t: y if t < rule.steps else jnp.zeros_like(y)
  static = tuple(not x.steps for x in inputs)
  (y,) = _widened(rule.currents(synapse, scaled, static))
  return lambda t: y[:, t]
