"""A network that is a JAX function, as `fs.from_function` gives it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.until_quiet import Settled
from fastsnn_jax.nn.whole import check_precision
from fastsnn_jax.tracing import ready
from fastsnn_jax.tracing.spiking import in_words
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.spiking.over_time import MAXIMA, Operation, OverTime
from fastsnn_jax.tracing.spiking.settling import settled
from fastsnn_jax.tracing.walk import Site, Walk, trace


@dataclasses.dataclass(frozen=True)
class FunctionNetwork(Network):
  """A network that `fs.from_function` made of a function.

  All that takes a `Network` takes it. Its rows are `Site`s, calls of
  `fs.quantize_activation`; its variables are {'params': those of the function}.

  Attributes:
    layers: the sites, in the order in which they are computed.
    function: (params, images) -> the output, an array or a tree of arrays.
    image: shape of one image, and dtype.
    leaves: path and shape of each of the parameters.
    sees_images: the output depends on the images by ways without a neuron.
    segments: for each site the numbers of the parameters that lie between it
      and the sites before, without those of thetas.
    operations: what runs, as `fs.explain` shows it.
  """

  function: Callable = None
  image: tuple[tuple[int, ...], str] = ((), 'float32')
  leaves: tuple[tuple[str, tuple[int, ...]], ...] = ()
  sees_images: bool = False
  segments: tuple[tuple[int, ...], ...] = ()
  operations: tuple[Operation, ...] = dataclasses.field(
    default=(), compare=False, repr=False
  )

  def _check_rows(self):
    pass  # `from_function` makes them

  @property
  def folded(self) -> bool:
    return isinstance(self.function, ready.Ready)

  def fold(self, variables, known=True, packed=True):
    """`fs.fold`: what hangs on parameters alone is computed now."""
    settings = self.image, known, packed
    found = ready.made(self.function, variables['params'], *settings)
    if found is None:
      return self, variables
    function, params = found
    fields = {'leaves': leaves_of(params), 'segments': ()}
    network = dataclasses.replace(self, function=function, **fields)
    return network, {'params': params}

  @property
  def single_steps(self) -> bool:
    return False

  @property
  def depth(self) -> int:
    return len(self.layers)

  @property
  def products(self) -> dict[str, Any]:
    """What a walk has to know of products, see `Walk`."""
    return {'whole': self.neuron, 'precision': self.precision}

  @property
  def firing(self) -> tuple[Site, ...]:
    """The sites: each has a neuron."""
    return self.layers

  @property
  def graded(self) -> tuple[str, ...]:
    """Operations that make graded messages, and where they stand."""
    return tuple(
      f'{x.name}, {x.place}' for x in self.operations if x.makes_graded
    )

  @property
  def differences(self) -> tuple[Operation, ...]:
    """Of those, the ones that are no max pooling: they send no spikes."""
    return tuple(
      x for x in self.operations if x.makes_graded and x.name not in MAXIMA
    )

  def unit(self, layer):
    raise UserError(
      f'{layer.name!r} is a place in a function, which has no rows of its own; '
      'use network.apply'
    )

  def init(self, key, images):
    raise UserError(
      'init: a network of a function has the parameters that it was made with; '
      'initialise them as your framework does, and call fs.from_function again'
    )

  # --- variables --------------------------------------------------------------

  def check_variables(self, variables, name: str = 'network') -> None:
    given = variables.get('params') if isinstance(variables, Mapping) else None
    if given is None:
      raise UserError(
        f'the variables of {name} are of type {type(variables).__name__}, but '
        "they must be {'params': …} with the parameters of its function, as "
        'fs.from_function returns them'
      )
    found, known = leaves_of(given), self.leaves
    if found != known:
      odd = sorted(set(found) ^ set(known))
      raise UserError(
        f'the variables of {name} differ from those of its function at '
        f'{odd[0][0] or "their root"}, there of shape '
        f'{odd[0][1]}; it was made with {len(known)} arrays, {len(found)} were '
        'given; call fs.from_function with these'
      )

  def thetas(self, variables) -> dict[str, Any]:
    shape, dtype = self.image
    walk, _ = self.walked(variables, jnp.zeros((1, *shape), dtype), Walk())
    return walk.thetas

  # --- runs -------------------------------------------------------------------

  def walked(self, variables, images, walk):
    """(the walk, the output) of a walk over the function."""
    params = variables['params']
    if self.folded:
      params, walk.kernels = self.function.opened(params)
    jaxpr, constants, tree = trace(self.function, params, images)
    leaves = jax.tree.leaves(params)
    found = walk.run(jaxpr, constants, [*leaves, images])
    if tuple(walk.sites) != self.layers:
      odd = set(walk.sites) ^ set(self.layers)
      raise UserError(
        f'the function has other sites than when it became a network: '
        f'{sorted(site.name for site in odd)}; a function must not change, and '
        'its sites must be the same for each size of images'
      )
    return walk, jax.tree.unflatten(tree, found)

  def apply(
    self,
    variables,
    images,
    *,
    train: bool = False,
    remat: bool = False,
    precision: str | None = None,
  ):
    """(output, activations), as `Network.apply` gives them.

    With `train`, which changes nothing, the third is the given 'batch_stats':
    a function has no other mode. UserError for `remat`, which is its own
    matter. `precision` is that of `Network`; products of which the function
    states the precision keep it.
    """
    if remat:
      raise UserError(
        'remat=True: call jax.checkpoint in the function, or leave it out'
      )
    check_precision(precision or self.precision)
    self.check_variables(variables)
    self._check_images(images)
    variables = distributed.on_mesh_of(images, variables)
    network = self
    if precision is not None:
      network = dataclasses.replace(self, precision=precision)
    found = _apply(variables, images, network=network)
    return (*found, variables.get('batch_stats', {})) if train else found

  def settle(self, variables, images) -> Settled:
    """`Network.settle` of a function."""
    self._check_settles()
    self.check_variables(variables)
    self._check_images(images)
    variables = distributed.on_mesh_of(images, variables)
    return settled(self, variables, images)

  def means(self, activations) -> dict[str, Any]:
    """{site: its activity's mean over T}."""
    steps = self.neuron.steps
    return {
      name: jnp.sum(x, min(x.ndim - 1, 1)) / steps
      for name, x in activations.items()
    }

  def read_out(self, variables, images, activations):
    """The output: behind the last neurons only means over time count."""
    return self.behind(variables, images, self.means(activations))

  def behind(self, variables, images, means):
    """The output for the means of all sites."""
    walk = Walk(means, decoded=True, **self.products)
    return self.walked(variables, images, walk)[1]

  def _check_images(self, images):
    shape, rank = np.shape(images), len(self.image[0]) + 1
    if len(shape) != rank or not jnp.issubdtype(images.dtype, jnp.floating):
      raise UserError(
        f'images of shape {shape} and dtype {images.dtype}, but they must be '
        f'normalised floats, [B, {str(list(self.image[0]))[1:-1]}], as those '
        'that the network was made with; fs.classify takes uint8'
      )

  def output_over_time(self, variables, activations, images=None):
    if images is None:
      if self.sees_images:
        raise UserError(
          'output_over_time: the output depends on the images directly, so '
          'they are needed, images=…'
        )
      first = next(iter(activations.values()))
      shape, dtype = self.image
      images = jnp.zeros((first.shape[0], *shape), dtype)
    return _over_time(variables, activations, images, network=self)


@functools.partial(jax.jit, static_argnames=('network',))
def _apply(variables, images, *, network):
  if not network.spiking:
    walk, output = network.walked(variables, images, Walk(**network.products))
    return output, walk.activations
  if network.until_quiet:
    found = settled(network, variables, images)
    return found.output, found.activations
  walk = in_words.walk(network, network.neuron)
  network.walked(variables, images, walk)
  steps = network.neuron.steps
  means = {name: total() / steps for name, total in walk.totals.items()}
  return network.behind(variables, images, means), walk.activations


@functools.partial(jax.jit, static_argnames=('network',))
def _over_time(variables, activations, images, *, network):
  neuron = network.neuron
  given = {
    name: Timed(_decoded(x, neuron), level=True, graded=True)
    for name, x in activations.items()
  }
  walk = OverTime(neuron, given, levels=True, **network.products)
  _, output = network.walked(variables, images, walk)

  def whole(x):
    if isinstance(x, Timed):
      return x.value
    steps = (neuron.total_steps,)
    axis = min(x.ndim, 1)
    shape = (*x.shape[:axis], *steps, *x.shape[axis:])
    return jnp.broadcast_to(jnp.expand_dims(x, axis), shape)

  return jax.tree.map(whole, output, is_leaf=lambda x: isinstance(x, Timed))


def _decoded(activity, neuron):
  if activity.ndim == 1:  # a scalar's
    return neuron.decode_over_time(activity[None])[0]
  return neuron.decode_over_time(activity)


def leaves_of(params) -> tuple[tuple[str, tuple[int, ...]], ...]:
  """(path, shape) of each leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return tuple(
    (jax.tree_util.keystr(path, simple=True, separator='/'), np.shape(leaf))
    for path, leaf in leaves
  )
