"""What a network costs: multiply-accumulates, and connections per spike."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.tables.table import IMAGE, own_variables
from fastsnn_jax.tracing.connections import connections as function_connections
from fastsnn_jax.tracing.connections import macs as function_macs
from fastsnn_jax.tracing.function import FunctionNetwork


def macs(network: Network, variables, image_shape) -> dict[str, int]:
  """Multiply-accumulates of each layer's kernels for one image.

  Convolutions and dense layers count, at every output position, padding
  included, which is the usual convention; sums and batch norms do not. The
  network is not spiking; `variables` may be shapes; images are of (H, W, C).
  """
  if isinstance(network, FunctionNetwork):
    return function_macs(network, variables, image_shape, _of_equation)
  counts = {}
  for layer, shapes in _input_shapes(network, variables, image_shape):
    mine = own_variables(variables, layer.name)
    jaxpr = jax.make_jaxpr(network.unit(layer).apply)(mine, *shapes)
    counts[layer.name] = _count(jaxpr.jaxpr)
  return counts


def connections(network: Network, variables, image_shape):
  """How many connections leave each neuron, exact at borders and strides.

  Returns:
    {layer: tuple with an array per input, of the input's shape without batch}.
    An identity shortcut is one connection; an image has its entry as well.
  """
  rows = tuple(
    (layer.name, layer.synapse, tuple(shape.shape for shape in shapes))
    for layer, shapes in _input_shapes(network, variables, image_shape)
  )
  return _fans(np.float32(1), rows)


@functools.partial(jax.jit, static_argnames='rows')
def _fans(one, rows):
  """One program for all (name, synapse, shapes of its inputs).

  `one` is an argument, or the compiler would compute with constants.
  """
  result = {}
  for name, synapse, shapes in rows:
    ones = [jnp.broadcast_to(one, shape) for shape in shapes]
    output, transpose = jax.vjp(synapse.connect, *ones)
    leaving = transpose(jnp.broadcast_to(one, output.shape))
    result[name] = tuple(fan[0] for fan in leaving)
  return result


def _input_shapes(network, variables, image_shape):
  """Yields each layer with the shapes of its inputs for a batch of one."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  _, activations = jax.eval_shape(network.apply, variables, image)
  activations = {IMAGE: image, **activations}
  for layer in network.layers:
    yield layer, [activations[name] for name in layer.inputs]


def leaving(network: Network, variables, image_shape):
  """{firing layer: connections that leave each of its neurons}, as an array."""
  if isinstance(network, FunctionNetwork):
    return function_connections(network, variables, image_shape)
  fans, total = connections(network, variables, image_shape), {}
  for layer in network.layers:
    for name, fan in zip(layer.inputs, fans[layer.name], strict=True):
      if name != IMAGE:
        total[name] = total[name] + fan if name in total else fan
  return total


def _count(jaxpr):
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation):
  total, output = 0, equation.outvars[0].aval if equation.outvars else None
  if equation.primitive.name == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    features, *_ = equation.params['dimension_numbers'].rhs_spec
    total += output.size * kernel.size // kernel.shape[features]
  elif equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    left = equation.invars[0].aval.shape
    total += output.size * math.prod(left[axis] for axis in contracted)
  for value in equation.params.values():
    inner = getattr(value, 'jaxpr', value)
    if hasattr(inner, 'eqns'):
      total += _count(inner)
  return total
