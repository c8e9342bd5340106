"""From a quantised network to a spiking one: another neuron, nothing else."""

import dataclasses
import itertools

import jax
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.layers import convertible
from fastsnn_jax.nn.network import Network, check_network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu
from fastsnn_jax.nn.tables import affine
from fastsnn_jax.nn.tables.table import IMAGE
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.traced import check_differences


def to_spiking(
  network: Network,
  mode: str = 'signed',
  *,
  allow_differences: bool = True,
  **neuron_settings,
) -> Network:
  """The spiking twin of a quantised network, on the same variables.

  Modes are presets of `IntegrateAndFire(steps=2**bits - 1, …)`:

    'unsigned': the classical neuron, which cannot take a spike back.
    'signed': Fast-SNN's neuron.
    'settled': steps without input answer late charge, until no neuron fires
      (settle='auto'), or as many as `settle` says. With a threshold of 0 for
      taking back and the count capped at T, as in the ST-BIF neuron (SpikeZIP),
      the count ends on the quantised level: nothing is lost.

  The variables are the same. `neuron_settings` are fields of `IntegrateAndFire`
  that override the preset. In a network of `fs.from_function`, what is not
  linear sends graded differences; `allow_differences=False` refuses them, but
  for max pooling.

  Raises:
    UserError: the network is not quantised, has a layer whose synapse is not
      affine, or the mode or a setting is unknown. A class of one's own that
      does not say `affine = True` is tried at random inputs here, if a usual
      size of images fits the table, and at the first images in any case.

  >>> import fastsnn_jax as fs
  >>> fs.to_spiking(fs.build('small_resnet8', bits=2)).neuron.steps
  3
  """
  check_network(network)
  if not isinstance(network.neuron, QuantRelu):
    raise UserError(
      f'to_spiking: the neuron is {network.neuron}, but only a network with '
      'QuantRelu neurons has the levels that spikes count; build it with bits '
      'of 2 to 5'
    )
  if isinstance(network, FunctionNetwork):
    check_differences(network, allow_differences)
  else:
    shapes = _input_shapes(network)
    for layer in network.layers:
      affine.check(layer, shapes.get(layer.name))
  steps = neuron_settings.get('steps', 2**network.neuron.bits - 1)
  settled = {'negative_threshold': 0.0, 'max_count': steps, 'settle': 'auto'}
  presets = {'unsigned': {'signed': False}, 'signed': {}, 'settled': settled}
  if not isinstance(mode, str) or mode not in presets:
    raise UserError(f'mode={mode!r}: the modes are {", ".join(presets)}')
  settings = {'steps': steps, **presets[mode], **neuron_settings}
  fields = {field.name for field in dataclasses.fields(IntegrateAndFire)}
  if unknown := set(settings) - fields:
    raise UserError(
      f'to_spiking: {min(unknown)!r} is no setting of a neuron; there are '
      f'{sorted(fields)}'
    )
  return dataclasses.replace(network, neuron=IntegrateAndFire(**settings))


def _input_shapes(network):
  """{row: shapes of its inputs} at images that fit; {} where none is needed.

  A table does not say what images it is for, and its rows may fit few.
  """
  if all(convertible(layer.synapse) is not None for layer in network.layers):
    return {}
  sides = [network.size] * bool(network.size) + [8, 32, 16, 28, 64, 224, 4]
  step = network.stride
  sides = [-(-side // step) * step + network.remainder for side in sides]
  channels = (len(network.mean),) if network.mean else (3, 1, 4, 8, 16, 32)
  for axes, count, side in itertools.product((2, 1, 0, 3), channels, sides):
    image = jax.ShapeDtypeStruct((1, *[side] * axes, count), np.float32)
    try:
      variables = jax.eval_shape(network.init, jax.random.key(0), image)
      _, found = jax.eval_shape(network.apply, variables, image)
    except Exception:  # whatever a synapse makes of it
      continue
    found[IMAGE] = image
    return {
      layer.name: [found[name].shape for name in layer.inputs]
      for layer in network.layers
    }
  return {}
