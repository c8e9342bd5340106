"""From a quantised network to a spiking one: another neuron, nothing else."""

import dataclasses

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu


def to_spiking(
  network: Network, mode: str = 'signed', **neuron_settings
) -> Network:
  """The spiking twin of a quantised network, on the same variables.

  Modes are presets of `IntegrateAndFire(steps=2**bits - 1, …)`:

    'unsigned': the classical neuron, which cannot take a spike back.
    'signed': Fast-SNN's neuron.
    'settled': 8 steps without input answer late charge. With a threshold of 0
      for taking back and the count capped at T, as in the ST-BIF neuron
      (SpikeZIP), the count ends on the quantised level: nothing is lost.

  The variables are the same. `neuron_settings` are fields of `IntegrateAndFire`
  that override the preset.

  Raises:
    UserError: the network is not quantised, has a layer whose synapse is not
      affine, or the mode or a setting is unknown.

  >>> import fastsnn_jax as fs
  >>> fs.to_spiking(fs.build('small_resnet8', bits=2)).neuron.steps
  3
  """
  if not isinstance(network.neuron, QuantRelu):
    raise UserError(
      f'to_spiking: the neuron is {network.neuron}, but only a network with '
      'QuantRelu neurons has the levels that spikes count; build it with bits '
      'of 2 to 5'
    )
  for layer in network.layers:
    if not getattr(layer.synapse, 'affine', False):
      raise UserError(
        f'to_spiking: layer {layer.name!r} ({type(layer.synapse).__name__}) is '
        'not affine, so the mean of its outputs over time is not its output at '
        'the mean; use a strided convolution or average pooling there'
      )
  steps = neuron_settings.get('steps', 2**network.neuron.bits - 1)
  presets = {
    'unsigned': {'signed': False},
    'signed': {},
    'settled': {'negative_threshold': 0.0, 'max_count': steps, 'settle': 8},
  }
  if mode not in presets:
    raise UserError(f'mode={mode!r}: the modes are {", ".join(presets)}')
  settings = {'steps': steps, **presets[mode], **neuron_settings}
  fields = {field.name for field in dataclasses.fields(IntegrateAndFire)}
  if unknown := set(settings) - fields:
    raise UserError(
      f'to_spiking: {min(unknown)!r} is no setting of a neuron; there are '
      f'{sorted(fields)}'
    )
  return dataclasses.replace(network, neuron=IntegrateAndFire(**settings))
