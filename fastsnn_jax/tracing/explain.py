"""What a spiking network does with each operation of its function."""

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.tables.table import IMAGE
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.spiking.over_time import (
  NEURON,
  SPIKES,
  STATIC,
  Operation,
)


class Explanation(tuple[Operation, ...]):
  """Operations in order; printed, a line for each."""

  def __str__(self):
    rows = [
      (x.kind, x.name, ' x '.join(map(str, x.shape)), x.place) for x in self
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return '\n'.join(
      '  '.join(
        [*(x.ljust(w) for x, w in zip(row[:3], widths, strict=True)), row[3]]
      ).rstrip()
      for row in rows
    )

  __repr__ = __str__


def explain(network: Network) -> Explanation:
  """Every operation of a network in order, as its spiking twin runs it.

  The kinds are 'static': once, of parameters and images; 'spike-driven': at
  each step, on spikes; 'difference': at each step, on graded messages or
  making them; 'neuron'. Of a table there are its rows and their neurons.

  >>> import fastsnn_jax as fs, jax.numpy as jnp
  >>> def model(params, x):
  ...   x = fs.quantize_activation(x @ params, 1.0, 2, name='hidden')
  ...   return x @ params
  >>> network, _ = fs.from_function(model, jnp.eye(3), jnp.ones((1, 3)))
  >>> [line.kind for line in fs.explain(network)]
  ['static', 'neuron', 'spike-driven']
  """
  if isinstance(network, FunctionNetwork):
    return Explanation(network.operations)
  if not isinstance(network, Network):
    raise UserError(
      f'explain: a {type(network).__name__}, but it must be a Network, as '
      'fs.build and fs.from_function give it'
    )
  lines = []
  for layer in network.layers:
    kind = STATIC if set(layer.inputs) == {IMAGE} else SPIKES
    name = type(layer.synapse).__name__
    lines.append(Operation(kind, name, (), layer.name))
    if layer in network.firing:
      lines.append(Operation(NEURON, layer.name, (), layer.name))
  return Explanation(lines)
