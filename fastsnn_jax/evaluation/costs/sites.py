"""What is made of the counts: costs of each site, and of all together."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.evaluation import operations
from fastsnn_jax.evaluation.costs.counted import kernels
from fastsnn_jax.evaluation.diagnosis.twins import (
  leaves_between,
  readout_name,
)
from fastsnn_jax.nn.neurons import QuantRelu, Relu
from fastsnn_jax.nn.tables.table import IMAGE
from fastsnn_jax.tracing.function import FunctionNetwork

_FLOAT, _PIXEL, _STATE = 32, 8, 32  # bits of a number, a pixel, a voltage


class Sites:
  """Costs of each site from the means over images."""

  def __init__(self, network, variables, image, energy):
    self.network, self.variables, self.energy = network, variables, energy
    self.image = image
    trains = network
    if network.until_quiet:
      neuron = dataclasses.replace(network.neuron, settle=1)
      trains = dataclasses.replace(network, neuron=neuron)
    _, shapes = jax.eval_shape(trains.apply, variables, image)
    given = {k: jnp.zeros(x.shape, x.dtype) for k, x in shapes.items()}
    self.kernels, self.fans = kernels(trains, variables, image, given)
    self.macs = None
    if not network.spiking:
      self.macs = operations.macs(network, variables, image.shape[1:])
    steps = network.neuron.steps if network.spiking else 0
    self.bits = int(steps).bit_length() or getattr(network.neuron, 'bits', 0)
    self.bits = self.bits or _FLOAT

  def all(self, mean, fans):
    names = [layer.name for layer in self.network.firing]
    end = readout_name(self.network)
    neurons = {name: int(np.size(fans[name])) for name in names}
    return {
      name: self.site(name, mean, neurons.get(name, 0), name == names[0])
      for name in [*names, end]
    }

  def site(self, name, mean, neurons, first):
    steps = mean['steps']
    stored, products = self.kernels[name], mean['products'][name]
    keys = 'Effective_MACs', 'Effective_ACs', 'Dense'
    counts = {key: sum(x[key] for x in products) for key in keys}
    shown = self._shows_image(name, first)
    leaves = leaves_between(self.network, self.variables, name)
    table = not isinstance(self.network, FunctionNetwork)
    params = [
      x for k, x in leaves.items() if not table or k.startswith('params')
    ]
    weights = [x for x, _ in stored if x is not None]
    size = sum(x.size for x in weights)
    zeros = sum(int(np.sum(x == 0)) for x in weights)
    narrow = [(x, bits) for x, bits in stored if bits and bits < _FLOAT]
    saved = sum(x.size * (x.itemsize - bits / 8) for x, bits in narrow)
    spikes = mean['spikes'].get(name, 0.0)
    outputs = neurons * steps
    synops = self._synops(name, mean, products, first)
    found = {
      'Footprint': _bytes(leaves.values()),
      'ParameterCount': sum(int(np.size(x)) for x in params),
      'ConnectionSparsity': zeros / size if size else 0.0,
      'ActivationSparsity': 1 - spikes / outputs if outputs else 0.0,
      'SynapticOperations': counts,
      'SynOps': synops,
      'packed_footprint': _bytes(leaves.values()) - saved,
      'spikes': spikes,
      'neuron_updates': outputs,
      'bits_moved': self._moved(name, products, outputs, shown),
      'neurons': neurons,
      'weights': size,
      'zero_weights': zeros,
    }
    found['energy'] = self._energy(name, products, found, shown)
    return found

  def _shows_image(self, name, first):
    """Whether a site gets pixels alone."""
    if isinstance(self.network, FunctionNetwork):
      return first
    layer = next(x for x in self.network.layers if x.name == name)
    return set(layer.inputs) == {IMAGE}

  def _synops(self, name, mean, products, first):
    if self.macs is not None:
      return float(self.macs.get(name, 0))
    return mean['SynOps'].get(name, 0.0) + first * self.first_macs

  @functools.cached_property
  def first_macs(self):
    ann = quantised(self.network)
    shape = self.image.shape[1:]
    return next(iter(operations.macs(ann, self.variables, shape).values()))

  def _input_bits(self, shown):
    quantised = not isinstance(self.network.neuron, Relu)
    if shown:
      return _PIXEL if quantised else _FLOAT
    graded = self.network.spiking and isinstance(self.network, FunctionNetwork)
    return _FLOAT if graded else self.bits

  def _moved(self, name, products, outputs, shown):
    stored = self.kernels[name]
    weights = sum(
      x.size * bits * product['calls']
      for (x, bits), product in zip(stored, products, strict=True)
      if x is not None
    )
    neuron, wide, state = self.network.neuron, self.bits, 0
    if self.network.spiking:
      wide, state = 1 + neuron.signed, 2 * _STATE * outputs
    pixels = self.image.size * self._input_bits(True) if shown else 0
    return weights + pixels + 2 * wide * outputs + state

  def _energy(self, name, products, found, shown):
    """In nJ."""
    model, spent, width = self.energy, {True: 0.0, False: 0.0}, 1
    for (x, bits), fan_in, product in zip(
      self.kernels[name], self.fans[name], products, strict=True
    ):
      wide = bits if x is not None else _FLOAT
      mac = model.mac(wide, self._input_bits(shown), fan_in)
      add = model.accumulate(wide, fan_in)
      spent[shown] += product['Effective_MACs'] * mac
      spent[shown] += product['Effective_ACs'] * add
      width = max(width, wide + self.bits + math.ceil(math.log2(fan_in)))
    return {
      'operations': sum(spent.values()) / 1e3,
      'by_spikes': spent[False] / 1e3,
      'neurons': found['neuron_updates'] * model.update(width) / 1e3,
      'memory': found['bits_moved'] * model.move / 1e3,
    }


def totals(network, variables, mean, sites):
  parts = list(sites.values())
  total = {key: sum(part[key] for part in parts) for key in _SUMS}
  for key in ('SynapticOperations', 'energy'):
    names = parts[0][key]
    total[key] = {x: sum(part[key][x] for part in parts) for x in names}
  saved = sum(x['Footprint'] - x['packed_footprint'] for x in parts)
  total['Footprint'] = _bytes(jax.tree.leaves(variables))
  params = jax.tree.leaves(variables['params'])
  total['ParameterCount'] = sum(int(np.size(x)) for x in params)
  total['packed_footprint'] = total['Footprint'] - saved
  weights, outputs = total['weights'], total['neuron_updates']
  total['ConnectionSparsity'] = total['zero_weights'] / max(weights, 1)
  total['ActivationSparsity'] = 1 - total['spikes'] / outputs
  if network.spiking:
    total['steps'] = mean['steps']
    total['firing_rate'] = total['spikes'] / outputs
  return {**total, 'sites': sites}


_SUMS = (
  *('SynOps', 'spikes', 'neuron_updates', 'bits_moved', 'neurons'),
  *('weights', 'zero_weights'),
)


def quantised(network):
  """The quantised network of as many bits as a spiking one's steps need."""
  bits = int(network.neuron.steps).bit_length()
  return dataclasses.replace(network, neuron=QuantRelu(bits))


def _bytes(leaves):
  return sum(int(np.size(x)) * jnp.result_type(x).itemsize for x in leaves)
