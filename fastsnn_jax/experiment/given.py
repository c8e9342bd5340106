"""A model that is given as a network of a function, not named in the config."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastsnn_jax import tasks
from fastsnn_jax.checkpoint import networks
from fastsnn_jax.checkpoint.functions import numbered
from fastsnn_jax.errors import UserError, told
from fastsnn_jax.tracing.calibrate import Calibrated
from fastsnn_jax.tracing.function import FunctionNetwork


class Given(NamedTuple):
  """What `fs.from_function` or `fs.calibrate` returned."""

  network: FunctionNetwork
  variables: dict[str, Any]

  @property
  def name(self) -> str:
    function = self.plain
    return getattr(function, '__name__', type(function).__name__)

  @property
  def plain(self) -> Callable:
    """The function that is given again where a file is read."""
    function = self.network.function
    return function.function if isinstance(function, Calibrated) else function

  def identity(self) -> dict[str, Any]:
    """What a stage's result depends on, as JSON values."""
    sites = [[site.name, site.levels] for site in self.network.layers]
    leaves = [[path, list(shape)] for path, shape in self.network.leaves]
    return {'sites': sites, 'leaves': leaves}

  def network_for(self, settings, dataset) -> FunctionNetwork:
    """The network with what the data decide, where it does not say it itself.

    UserError where the data do not fit.
    """
    network, task = self.network, tasks.named(self.network.task)
    fields = task.network_fields(settings, network, dataset)
    if network.mean:
      del fields['mean'], fields['std']
    names, found = network.classes, tuple(dataset.classes)
    if len(names) not in (0, len(found)):
      raise UserError(
        f'model: the function answers for {len(names)} classes, but the data '
        f'have {len(found)}; give data or a function of the same'
      )
    network = dataclasses.replace(network, classes=found, **fields)
    raw = jax.ShapeDtypeStruct((1, *dataset.test.shape), 'uint8')
    task = tasks.for_network(network)
    try:
      shown = jax.eval_shape(task.present, raw)
      jax.eval_shape(network.apply, self.variables, shown)
    except (UserError, TypeError, ValueError) as error:
      raise UserError(
        f'model: the function does not take images of shape {raw.shape}, which '
        f'the data have ({told(error)})'
      ) from error
    return network

  def load(self, directory):
    """(network, variables, metadata) of a stage that was trained from it."""
    return networks.load_with_meta(
      directory, None, self.plain, self.variables['params']
    )


@dataclasses.dataclass(frozen=True)
class Flat:
  """A function whose parameters come as a dict of numbered arrays.

  So they can be trained and saved whatever tree they are.
  """

  function: Callable
  tree: Any

  def __call__(self, params, images):
    leaves = [params[key] for key in sorted(params)]
    return self.function(jax.tree.unflatten(self.tree, leaves), images)


def flat(network: FunctionNetwork, variables):
  """(network, variables) with parameters as a dict of numbered arrays."""
  leaves, tree = jax.tree.flatten(variables['params'])
  named = numbered(map(jnp.asarray, leaves))
  changed = dataclasses.replace(
    network,
    function=Flat(network.function, tree),
    leaves=tuple((key, x.shape) for key, x in named.items()),
  )
  return changed, {'params': named, 'batch_stats': {}}


def unflat(network: FunctionNetwork, variables):
  """The variables of `flat` as they were."""
  params = variables['params']
  leaves = [params[key] for key in sorted(params)]
  return {'params': jax.tree.unflatten(network.function.tree, leaves)}


def check(model, config) -> Given:
  """What was given as `model=`; UserError where it cannot be trained."""
  try:
    given = Given(*model)
  except TypeError:
    given = Given(None, None)
  if not isinstance(given.network, FunctionNetwork) or not isinstance(
    given.variables, Mapping
  ):
    raise UserError(
      f'model: of type {type(model).__name__}, but it must be the pair '
      '(network, variables) that fs.from_function or fs.calibrate returns; a '
      'table is registered by fs.register_model and named in the config'
    )
  network = given.network
  network.check_variables(given.variables, 'model')
  if network.spiking:
    raise UserError(
      'model: a spiking network; give the quantised one, and Stage(…, '
      'spiking=True) to train its spiking twin'
    )
  bits = network.neuron.bits
  if [stage.bits for stage in config.stages] != [bits]:
    raise UserError(
      f'stages of {", ".join(str(stage.bits) for stage in config.stages)} '
      f'bits, but the activations of the function have {bits}; give one stage, '
      f'stages=(fs.Stage({bits}, …),)'
    )
  compute = config.compute
  if compute.dtype != 'float32' or compute.remat or config.pretrained:
    raise UserError(
      'compute.dtype, compute.remat, pretrained: those of a function are its '
      'own matter; cast, call jax.checkpoint or load weights there, and leave '
      'them out here'
    )
  leaves = jax.tree_util.tree_leaves_with_path(given.variables['params'])
  for (_, leaf), (path, _) in zip(leaves, network.leaves, strict=True):
    if not jnp.issubdtype(dtype := jnp.asarray(leaf).dtype, jnp.floating):
      raise UserError(
        f'model: the parameter {path} is of {dtype}, but only floats can be '
        'trained; keep it in the function (eqx.partition by '
        'eqx.is_inexact_array leaves it there)'
      )
  return given
