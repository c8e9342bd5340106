"""How a folded network runs: words and levels travel between its rows."""

import functools

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn import affine
from fastsnn_jax.nn import words as packed
from fastsnn_jax.nn.folded.activity import Activity, rearranged
from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.integrate_and_fire import Rule, scan_words
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.quantizers import against, divide, level, positive, wider
from fastsnn_jax.nn.synapses import Chain, Residual

# Each 16 steps more go through all before them again.
_STEPS_TO_UNROLL = 3 * packed.STEPS_PER_WORD


def apply(network, trees, images, image_name):
  """(output, activations) of `Network.apply`, without training.

  `trees` has {'params': …, 'batch_stats': …} of each row.
  """
  neuron, known, activations = network.neuron, {}, {}
  known[image_name] = Activity(images)
  for layer in network.layers:
    inputs, tree = [known[name] for name in layer.inputs], trees[layer.name]
    theta, rule = tree['params'].get('theta'), neuron
    last = layer is network.layers[-1]
    if last or not network.spiking:
      rule = Rule(1)
      inputs = [x.mean(neuron.steps) if x.steps else x for x in inputs]
    try:
      if network.spiking:
        affine.check(layer, [x.shape for x in inputs])
      current = _current(layer.synapse, _own(tree, 'synapse'), inputs, rule)
      if last:
        return current(0), activations
      fired, activity = _respond(neuron, current, theta)
    except UserError as error:
      raise UserError(f'layer {layer.name!r}: {error}') from None
    half = images.dtype.itemsize < 4
    activations[layer.name] = activity.astype(images.dtype) if half else activity
    known[layer.name] = fired


def _own(tree, name):
  return {kind: part[name] for kind, part in tree.items() if name in part}


def _respond(neuron, current, theta):
  """(what is handed on, what stands in the activations)."""
  if isinstance(neuron, Relu):
    activity = jnp.maximum(current(0), 0)
    return Activity(activity), activity
  theta = jnp.asarray(theta)
  if isinstance(neuron, QuantRelu):
    x = current(0)
    theta, count = positive(theta.astype(x.dtype)), 2**neuron.bits - 1
    levels = level(x, theta, count)
    return Activity(levels, theta / count), divide(levels, count) * theta
  like = jax.eval_shape(lambda: current(0))
  theta = positive(theta.astype(like.dtype))
  steps = neuron.total_steps
  if steps <= _STEPS_TO_UNROLL:
    words = packed.kept(
      lambda: packed.gather(current, theta, neuron, like),
      *(theta, like.shape, steps),
    )
  else:
    currents = jnp.stack([current(t) for t in range(steps)], 1)
    words = scan_words(currents, theta, neuron)
  fired = Activity(words, theta, steps)
  return fired, fired.scaled()


def _current(part, tree, inputs, rule):
  """t -> the current of step t, [B, ...] and at least float32."""
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
      found = rearranged(Chain(tuple(before)), inputs)
      if found is not None and isinstance(last, Folded):
        own = _own(tree, f'parts_{len(before)}')
        return _folded(last, own['params'], found, rule)
  if (found := rearranged(part, inputs)) is not None:
    return lambda t: _shown(found.at(t), found, t, rule)
  return _any(part, tree, inputs, rule)


def _widened(*arrays):
  wide = wider(jnp.float32, *(x.dtype for x in arrays))
  return [x.astype(wide) for x in arrays]


def _shown(x, activity, t, rule):
  """An input without time is shown for `rule.steps` steps."""
  (x,) = _widened(x)
  return x if activity.steps or t < rule.steps else jnp.zeros_like(x)


def _folded(part, tree, x, rule):
  kernel, scale = part.scaled(tree, x.unit)
  if x.packed:
    sums = part.products(x.values, kernel, x.steps)
  else:
    y = part.product(x.values, kernel)
    if x.steps:
      y = y.reshape(-1, x.steps, *y.shape[1:])
    sums = lambda t: y[:, t] if x.steps else y

  def current(t):
    (y,) = _widened(sums(t))
    y = y * against(scale, y.ndim)
    if t < rule.steps:
      y = y + against(tree['offset'], y.ndim)
    return y if x.steps or t < rule.steps else jnp.zeros_like(y)

  return current


def _any(part, tree, inputs, rule):
  """Through a synapse that is not folded, as in a network that is not."""
  scaled = [x.scaled() for x in inputs]
  quanta = tuple(x.unit for x in inputs)
  settings = {'quanta': quanta} if part.quantal else {}
  synapse = functools.partial(part.apply, tree, train=False, **settings)
  if not any(x.steps for x in inputs):
    (y,) = _widened(synapse(*scaled))
    return lambda t: y if t < rule.steps else jnp.zeros_like(y)
  static = tuple(not x.steps for x in inputs)
  (y,) = _widened(rule._current(synapse, scaled, static))
  return lambda t: y[:, t]
