"""A network as one compiled-anywhere program, by `jax.export`."""

import jax
import jax.numpy as jnp
from jax import export as exporter

from fastsnn_jax.errors import UserError, told
from fastsnn_jax.nn.folded.fold import fold
from fastsnn_jax.nn.integrate_and_fire import at_each_step
from fastsnn_jax.nn.neurons import QuantRelu
from fastsnn_jax.tracing.dependence import check_alone
from fastsnn_jax.tracing.function import FunctionNetwork

PLATFORMS = 'cpu', 'cuda', 'tpu'


def program(network, variables, image_shape, sites) -> bytes:
  """The serialised program, images [N, *image_shape] -> output; with `sites`
  -> (output, {row: levels, or spikes -1, 0, 1 with time as second axis})."""
  if isinstance(network, FunctionNetwork):
    images = jax.random.normal(
      jax.random.key(0), (2, *image_shape), jnp.float32
    )
    check_alone(network.function, variables['params'], images)
  folded, ready = fold(network, variables)

  def run(images):
    output, activities = folded.apply(ready, images)
    if not sites:
      return output
    thetas = folded.thetas(ready)
    levels = {
      name: _whole(network.neuron, activity, thetas.get(name))
      for name, activity in activities.items()
    }
    return output, levels

  (count,) = exporter.symbolic_shape('N')
  images = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
  try:
    made = exporter.export(jax.jit(run), platforms=PLATFORMS)(images)
  except UserError:
    raise
  except Exception as error:  # whatever a function does with a size
    raise UserError(
      'the network could not be exported for batches of any size '
      f'({told(error)}); in a function write images.shape[0] for len(images), '
      'and -1 where a shape can have it'
    ) from error
  return made.serialize()


def _whole(neuron, activity, theta):
  """Levels or spikes of an activity; a float one stays."""
  if theta is None:
    return activity
  if isinstance(neuron, QuantRelu):
    unit = theta / (2**neuron.bits - 1)
  else:
    unit = at_each_step(jnp.asarray(theta), activity)
  return jnp.round(activity / unit).astype(jnp.int32)


def opened(path):
  """images -> what the program at a path answers, compiled once a shape."""
  try:
    program = exporter.deserialize(bytearray(path.read_bytes()))
  except Exception as error:  # whatever the reader makes of other bytes
    raise UserError(
      f'{path}: not a program of jax.export ({told(error)}); give a file that '
      "fs.export wrote with format='stablehlo', and a JAX not older than its"
    ) from error
  return jax.jit(program.call)
