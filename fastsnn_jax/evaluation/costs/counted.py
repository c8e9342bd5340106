"""Counts the operations of every site, for one image at each of its steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.neurons import QuantRelu
from fastsnn_jax.nn.tables.table import IMAGE, own_variables
from fastsnn_jax.nn.weights import Apot, EightBit
from fastsnn_jax.tracing.effective import Counting, CountingOverTime
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.traced import from_function
from fastsnn_jax.tracing.walk import trace


def counted(network, variables, images, activations):
  """{site: [Product]} with arrays [B, steps], [B, 1] where there is no time.

  `activations` are of `network.apply`, in a spiking network with the trains of
  all steps. Kernels are left out; `kernels` has them.
  """
  run = _of_function if _traced(network) else _of_table
  return run(network, variables, images, activations)


def kernels(network, variables, image, activations):
  """({site: [(kernel or None, its bits)]}, {site: [fan_in]}), as of `counted`.

  Bits are those that the table states; of a function, and of a synapse of one's
  own, those that tell the different values apart, if these are fewer than half
  of the weights.
  """

  run = _of_function if _traced(network) else _of_table
  fans = {}

  @jax.jit
  def find(variables, image, activations):
    found = run(network, variables, image, activations, kernels=True)
    fans.update({k: [x.fan_in for x in part] for k, part in found.items()})
    return {k: [x.kernel for x in part] for k, part in found.items()}

  found = jax.device_get(find(variables, image, activations))
  stated = {} if isinstance(network, FunctionNetwork) else _stated(network)
  result = {}
  for name, mine in found.items():
    bits = stated.get(name, ())
    if len(bits) != len(mine):
      bits = [_bits(x) for x in mine]
    result[name] = list(zip(mine, bits, strict=True))
  return result, fans


def _traced(network):
  """Whether a walk over the whole network counts it."""
  whole = network.spiking and not network.single_steps
  return isinstance(network, FunctionNetwork) or whole


def _of_table(network, variables, images, activations, kernels=False):
  exact, found = dataclasses.replace(network, precision='highest'), {}
  for layer in network.layers:
    units = []
    alone = all(name == IMAGE for name in layer.inputs)
    timed = network.spiking and not alone
    for name in layer.inputs:
      x = images if name == IMAGE else activations[name]
      if timed:
        x = _as_train(x, name, network, variables)
      units.append(x)

    def count(*xs, layer=layer):
      xs = tuple(x[None] for x in xs)
      own = own_variables(variables, layer.name)

      def run(own, xs):
        mine = {kind: {layer.name: tree} for kind, tree in own.items()}
        mine = {'params': {}, **mine}
        current = exact.currents(layer, mine, xs[0], decoded=True)
        return current(*xs)

      jaxpr, constants, _ = trace(run, own, xs)
      walk = Counting(fed=xs)
      walk.run(jaxpr, constants, [*jax.tree.leaves(own), *xs])
      (products,) = walk.finished(layer.name).values()
      return products

    if kernels:
      first = (x[0, 0] if timed else x[0] for x in units)
      found[layer.name] = count(*first)
      continue
    shape = units[0].shape[:2] if timed else (len(images), 1)
    folded = [x.reshape(-1, *x.shape[2:]) if timed else x for x in units]
    products = jax.vmap(_light(count))(*folded)
    found[layer.name] = [
      jax.tree.map(lambda x, shape=shape: x.reshape(shape), x) for x in products
    ]
  return found


def _light(count):
  """`count` without kernels, which need no row of their own for each call."""
  return lambda *xs: [_without_kernel(x) for x in count(*xs)]


def _without_kernel(product):
  number = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
  return dataclasses.replace(
    product,
    effective=number(product.effective),
    dense=number(product.dense),
    adds=number(product.adds),
    kernel=None,
  )


def _as_train(x, name, network, variables):
  """What comes in at each step, in units of one: [B, T + k, …]."""
  steps, shown = network.neuron.total_steps, network.neuron.steps
  if name == IMAGE:
    x = jnp.repeat(x[:, None], steps, 1)
    lit = jnp.arange(steps).reshape(1, -1, *(1,) * (x.ndim - 2)) < shown
    return jnp.where(lit, x, 0)
  return jnp.sign(x)


def _of_function(network, variables, images, activations, kernels=False):
  traced, own = network, variables
  names = [layer.name for layer in network.firing]
  end = network.layers[-1].name
  if isinstance(network, FunctionNetwork):
    end = 'output'
  else:
    traced, own = _as_function(network, variables, images)
  sites = [site.name for site in traced.firing]
  given = {
    site: activations[name] for site, name in zip(sites, names, strict=True)
  }

  def count(image, given):
    image = image[None]
    if network.spiking:
      trains = {
        name: Timed(x if name in scalars else x[None])
        for name, x in given.items()
      }
      known = {'whole': network.neuron, 'precision': network.precision}
      walk = CountingOverTime(network.neuron, trains, (image,), **known)
    else:
      walk = Counting(fed=(image,))
    walk, _ = traced.walked(own, image, walk)
    return walk.finished(end)

  ranks = {name: x.ndim for name, x in given.items()}
  scalars = {k for k, n in ranks.items() if n == network.spiking}
  axes = {name: None if name in scalars else 0 for name in given}
  if kernels:
    first = {k: x if k in scalars else x[0] for k, x in given.items()}
    found = count(images[0], first)
  else:

    def light(image, given):
      products = count(image, given)
      return {k: [_without_kernel(x) for x in v] for k, v in products.items()}

    found = jax.vmap(light, (0, axes))(images, given)
    found = jax.tree.map(lambda x: x if x.ndim == 2 else x[:, None], found)
  old = dict(zip(sites, names, strict=True))
  return {old.get(name, name): part for name, part in found.items()}


def _as_function(network, variables, images):
  """A table, with max pooling say, as its quantised twin's function."""
  bits = int(network.neuron.steps).bit_length()
  ann = dataclasses.replace(network, neuron=QuantRelu(bits))

  def function(variables, images):
    return ann.apply(variables, images)[0]

  shape = jnp.zeros((1, *images.shape[1:]), images.dtype)
  return from_function(function, variables, shape, classes=network.classes)


def _stated(network):
  """{row: bits of its kernels}, where each is of a class of this library."""
  found = {}
  for layer in network.layers:
    bits = list(_bits_of(layer.synapse))
    if None not in bits:
      found[layer.name] = bits
  return found


def _bits_of(part):
  if part is None:
    return
  part = getattr(part, 'part', part)  # of a folded one
  for inner in getattr(part, 'parts', None) or ():
    yield from _bits_of(inner)
  if hasattr(part, 'kernel_init'):
    match part.weights:
      case Apot(bits):
        yield bits
      case EightBit():
        yield 8
      case _:
        yield 32


def _bits(kernel) -> int:
  """Bits that tell the values of a kernel apart; 0 without one."""
  if kernel is None:
    return 0
  kernel = np.asarray(kernel)
  count = len(np.unique(kernel))
  if 2 * count > kernel.size:
    return 8 * kernel.itemsize
  return max(int(count - 1).bit_length(), 1)
