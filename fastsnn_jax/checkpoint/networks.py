"""Networks on disk: a tree of variables, and what rebuilds their network."""

import dataclasses

import jax
import jax.numpy as jnp

from fastsnn_jax.architectures import build
from fastsnn_jax.checkpoint import store
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import IntegrateAndFire

_DETECTOR = ('anchors', 'overlap', 'size')  # fields that only detectors use


def save(directory, network: Network, variables, **meta) -> None:
  """Writes a network and its variables; `load` brings both back.

  A checkpoint that is there is replaced when the new one is complete. `meta`
  are further JSON values.
  """
  steps = None if network.bits == 32 else 2**network.bits - 1
  neuron = None
  if network.spiking:
    steps, neuron = network.neuron.steps, dataclasses.asdict(network.neuron)
  sized = _DETECTOR if network.anchors else ('size',) * bool(network.size)
  fields = ('model', 'bits', *sized, 'classes', 'mean', 'std')
  known = {name: getattr(network, name) for name in fields}
  meta = {**known, 'T': steps, 'neuron': neuron, **meta}
  store.save(directory, variables, meta)


def load(directory, network: Network | None = None) -> tuple[Network, dict]:
  """A network and its variables, ready to run.

  Args:
    directory: ann32, ann4, … or snn4, … of a workdir, or what `save` wrote.
    network: for a table of your own, which no name stands for.

  Raises:
    UserError: nothing there, not readable, or of another network.
  """
  return load_with_meta(directory, network)[:2]


def load_with_meta(directory, network: Network | None = None):
  """(network, variables, metadata), as `load`."""
  tree, meta = store.load(directory)
  if 'model' not in meta:
    raise UserError(
      f'{directory}: an unfinished stage, not a network; give ann4, snn4, …'
    )
  if network is None:
    if meta['model'] is None:
      raise UserError(
        f'{directory}: its network is no registered model; pass it as '
        'fs.load(directory, network=…)'
      )
    settings = {key: meta[key] for key in _DETECTOR if key in meta}
    settings |= {key: tuple(meta[key]) for key in ('mean', 'std')}
    network = build(meta['model'], meta['bits'], meta['classes'], **settings)
  if meta['neuron'] is not None and not network.spiking:
    neuron = IntegrateAndFire(**meta['neuron'])
    network = dataclasses.replace(network, neuron=neuron)
  variables = jax.tree.map(jnp.asarray, tree)
  names = {layer.name for layer in network.layers}
  if wrong := names ^ set(variables['params']):
    raise UserError(
      f'{directory}: layer {min(wrong)!r} is not in both the checkpoint and '
      f'the network; the checkpoint is of model {meta["model"]!r}'
    )
  return network, variables, meta
