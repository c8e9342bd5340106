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
_LISTS = ('classes', 'mean', 'std')


def save(directory, network: Network, variables, **meta) -> None:
  """Writes a network and its variables; `load` brings both back.

  Args:
    directory: of the checkpoint; one that is there is replaced when the new
      one is complete.
    network, variables: float, quantised or spiking.
    **meta: further JSON values.
  """
  steps = None if network.bits == 32 else 2**network.bits - 1
  sized = _DETECTOR if network.anchors else ('size',) * bool(network.size)
  fields = ('model', 'bits', *sized)
  known = {
    **{name: getattr(network, name) for name in fields},
    **{name: list(getattr(network, name)) for name in _LISTS},
    'T': network.neuron.steps if network.spiking else steps,
    'neuron': dataclasses.asdict(network.neuron) if network.spiking else None,
  }
  store.save(directory, variables, {**known, **meta})


def load(directory, network: Network | None = None) -> tuple[Network, dict]:
  """A network and its variables, ready to run.

  Args:
    directory: ann32, ann4, … or snn4, … of a workdir, or what `save` wrote.
    network: for a table of your own, which no name stands for.

  Raises:
    UserError: nothing there, not readable, or of another network.
  """
  network, variables, _ = load_with_meta(directory, network)
  return network, variables


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
    network = build(
      meta['model'],
      meta['bits'],
      meta['classes'],
      mean=tuple(meta['mean']),
      std=tuple(meta['std']),
      **{key: meta[key] for key in _DETECTOR if key in meta},
    )
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
