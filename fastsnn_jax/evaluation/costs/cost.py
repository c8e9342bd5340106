"""What a network costs: operations, memory, and energy by a named model."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError, check_whole
from fastsnn_jax.evaluation import operations
from fastsnn_jax.evaluation.costs.counted import counted
from fastsnn_jax.evaluation.costs.energy import EnergyModel
from fastsnn_jax.evaluation.costs.sites import Sites, quantised, totals
from fastsnn_jax.nn.network import Network, check_network

NEUROBENCH = (
  *('Footprint', 'ParameterCount', 'ConnectionSparsity'),
  *('ActivationSparsity', 'SynapticOperations'),
)
_ROUND = 8  # steps without input are compiled for multiples of so many


def cost(
  network: Network,
  variables,
  images,
  *,
  energy: EnergyModel | None = None,
  batch: int = 20,
) -> dict[str, Any]:
  """What an image costs on the average, of all sites and of each.

  The keys and meanings of NeuroBench 2.3 (https://neurobench.readthedocs.io):
  'Footprint' in bytes, of parameters and batch statistics as they are stored;
  'ParameterCount'; 'ConnectionSparsity', the share of zero weights;
  'ActivationSparsity', the share of zero outputs of neurons, over steps;
  'SynapticOperations' of an image: 'Effective_MACs' and 'Effective_ACs' without
  zero weights, zero inputs and padding, 'Dense' with zero weights and inputs. A
  call is a layer at a step of an image; it accumulates if all its inputs are in
  {-1, 0, 1}, spikes in units of theta. A layer on the image is called once.

  And of an image: 'SynOps', as of `fs.compare`: spikes times the connections
  that leave them, plus the first layer's MACs, at their site; MACs of a network
  that does not spike. 'packed_footprint' in bytes, with weights of as many bits
  as their levels need. 'spikes', 'neuron_updates' (neurons times steps).
  'bits_moved': weights once a call, a neuron's output out and in once a step (2
  bits for a spike, 1 without a sign, 8 for a pixel), its voltage of 32 bits in
  and out. 'energy' in nJ by `energy`: 'operations', 'neurons', 'memory'.

  A spiking network has more: 'steps', the mean number run; 'firing_rate',
  spikes per neuron and step; 'quantised', the same of the quantised network of
  the same bits; 'break_even_rate', the firing rate at which operations and
  neurons would cost as much as its; 'words', a sentence on who wins.

  Args:
    network, variables: float, quantised or spiking, a table or a function.
    images: [B, …], normalised as for `network.apply`; some dozens.
    energy: another `EnergyModel`.
    batch: images per call; fewer take less memory.

  Returns:
    The totals, and {'sites': {name: the same of one}}. What lies between a site
    and those before counts at the site; the read-out has its row's name, or
    'output' in a function.

  Raises:
    UserError: no network, or no images.

  >>> import fastsnn_jax as fs
  >>> rows = (
  ...   fs.Layer('hidden', fs.Dense(4, weights=fs.Apot(2))),
  ...   fs.Layer('head', fs.Dense(3, norm=False), ('hidden',)),
  ... )
  >>> network = fs.to_spiking(fs.Network(rows, fs.QuantRelu(2)), 'settled')
  >>> images = jnp.ones((2, 5))
  >>> variables = network.init(jax.random.key(0), images)
  >>> found = fs.cost(network, variables, images)
  >>> found['sites']['head']['SynapticOperations']['Effective_MACs']
  0.0
  >>> found['sites']['hidden']['SynapticOperations']['Dense']
  20.0
  """
  check_network(network, variables)
  check_whole('batch', batch, 1)
  images = jnp.asarray(images)
  if not len(images):
    raise UserError('cost: 0 images, but at least one is needed')
  energy = EnergyModel() if energy is None else energy
  found = _cost(network, variables, images, energy, batch)
  if network.spiking:
    _beside_quantised(found, network, variables, images, energy, batch)
  return found


def neurobench(found: dict[str, Any]) -> dict[str, Any]:
  """NeuroBench's part of what `cost` found, of the network and of its sites."""
  sites = found.get('sites', {})
  own = {key: found[key] for key in NEUROBENCH}
  parts = {name: neurobench(site) for name, site in sites.items()}
  return {**own, 'sites': parts} if parts else own


def _cost(network, variables, images, energy, batch):
  sums: Any = None
  still = quantised(network) if network.spiking else network
  fans = operations.leaving(still, variables, images.shape[1:])
  for start in range(0, len(images), batch):
    rows = images[start : start + batch]
    trains, steps = _with_trains(network, variables, rows)
    part = _sums(variables, rows, fans, steps, network=trains)
    part = jax.tree.map(lambda x: np.asarray(x, np.float64), part)
    sums = part if sums is None else jax.tree.map(np.add, sums, part)
  mean = jax.tree.map(lambda x: float(x) / len(images), sums)
  sites = Sites(network, variables, images[:1], energy).all(mean, fans)
  return totals(network, variables, mean, sites)


def _with_trains(network, variables, images):
  """(a network that keeps the trains of all steps, steps of each image)."""
  neuron = network.neuron
  if not network.until_quiet:
    return network, jnp.full(len(images), getattr(neuron, 'total_steps', 1))
  steps = np.maximum(network.settle(variables, images).steps, neuron.steps)
  late = _ROUND * math.ceil((steps.max() - neuron.steps) / _ROUND)
  neuron = dataclasses.replace(neuron, settle=late)
  return dataclasses.replace(network, neuron=neuron), jnp.asarray(steps)


@functools.partial(jax.jit, static_argnames='network')
def _sums(variables, images, fans, steps, *, network):
  """What is summed over images."""
  _, activations = network.apply(variables, images)
  spikes, synops = {}, {}
  for name, x in activations.items():
    fired = (x != 0).astype(jnp.float32)
    spikes[name] = jnp.sum(fired)
    if network.spiking:
      fired = jnp.sum(fired, min(fired.ndim - 1, 1))
    synops[name] = jnp.sum(fired * fans[name])
  found = counted(network, variables, images, activations)
  products = {k: [_summed(x, steps) for x in v] for k, v in found.items()}
  total = jnp.sum(steps.astype(jnp.float32))
  return {
    'spikes': spikes,
    'SynOps': synops,
    'products': products,
    'steps': total,
  }


def _summed(product, steps):
  shape, adds = product.effective.shape, product.adds
  live = jnp.arange(shape[1]) < steps[:, None] if shape[1] > 1 else 1.0
  live = jnp.broadcast_to(live, shape).astype(jnp.float32)
  accumulated = product.effective * adds
  return {
    'Effective_MACs': jnp.sum(product.effective - accumulated),
    'Effective_ACs': jnp.sum(accumulated),
    'Dense': jnp.sum(product.dense * live),
    'calls': jnp.sum(live),
  }


def _beside_quantised(found, network, variables, images, energy, batch):
  twin = _cost(quantised(network), variables, images, energy, batch)
  found['quantised'] = twin
  ours, theirs = found['energy'], twin['energy']
  goal = theirs['operations'] + theirs['neurons']
  fixed = ours['operations'] - ours['by_spikes'] + ours['neurons']
  rate, spent = found['firing_rate'], ours['by_spikes']
  even = rate * max(goal - fixed, 0) / spent if spent else math.nan
  found['break_even_rate'] = even
  total = ours['operations'] + ours['neurons']
  bits, steps = int(network.neuron.steps).bit_length(), network.neuron.steps
  verdict = 'less' if total < goal else 'more'
  balance = (
    f'at {100 * even:.1f} % both would cost the same'
    if even > 0
    else 'its first layer and its neurons alone cost as much as that'
  )
  found['words'] = (
    f'By {energy.name}, operations and neurons of the spiking network at '
    f'T = {steps} take {total:.3g} nJ an image, those of the quantised network '
    f'of {bits} bits {goal:.3g} nJ: the spiking network costs {verdict}. It '
    f'fires {100 * rate:.1f} % of the time; {balance}. Memory: '
    f'{ours["memory"]:.3g} nJ and {theirs["memory"]:.3g} nJ.'
  )
