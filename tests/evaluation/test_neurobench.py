"""The counts are those of NeuroBench itself, on recorded spikes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs

torch = pytest.importorskip('torch')
pytest.importorskip('neurobench')

IMAGES = np.asarray(jax.random.normal(jax.random.key(0), (2, 8, 8, 2)))


def convolutional():
  rows = (
    fs.Layer('stem', fs.Conv(4, stride=2, norm=False)),
    fs.Layer(
      'conv',
      fs.Conv(
        4, weights=fs.Apot(2), dilation=2, padding=2, groups=2, norm=False
      ),
      ('stem',),
    ),
    fs.Layer('head', fs.Dense(3, weights=fs.EightBit(), norm=False), ('conv',)),
  )
  return fs.Network(rows, fs.QuantRelu(2, 2.0), bits=2)


def dense():
  rows = (
    fs.Layer('one', fs.Dense(6, norm=False)),
    fs.Layer('two', fs.Dense(5, weights=fs.Apot(2), norm=False), ('one',)),
    fs.Layer('head', fs.Dense(3, weights=fs.Apot(3), norm=False), ('two',)),
  )
  return fs.Network(rows, fs.QuantRelu(2, 2.0), bits=2)


def module(layer, own, channels):
  """A layer as a torch module with the weights that it multiplies by."""
  synapse, tree = layer.synapse, own['synapse']
  kernel = tree['kernel']
  match synapse.weights:
    case fs.Apot(bits):
      kernel = fs.quantize_weight(kernel, tree['weight_alpha'], bits)
    case fs.EightBit():
      kernel = fs.quantize_weight_8bit(kernel)
  kernel = np.asarray(kernel)
  if isinstance(synapse, fs.Dense):
    made = torch.nn.Linear(*kernel.shape)
    weight = kernel.T
  else:
    settings = {
      name: getattr(synapse, name)
      for name in ('stride', 'padding', 'dilation', 'groups')
    }
    made = torch.nn.Conv2d(channels, synapse.features, 3, **settings)
    weight = kernel.transpose(3, 2, 0, 1)
  with torch.no_grad():
    made.weight.copy_(torch.tensor(weight))
    made.bias.copy_(torch.tensor(np.asarray(tree['bias'])))
  return made


class Recorded(torch.nn.Module):
  """Layers that are called with what was recorded, and neurons that fire it."""

  def __init__(self, layers, inputs, outputs):
    super().__init__()
    self.layers = torch.nn.ModuleDict(layers)
    self.neurons = torch.nn.ModuleDict({k: torch.nn.ReLU() for k in outputs})
    self.inputs, self.outputs = inputs, outputs

  def forward(self, index):
    for name, calls in self.inputs.items():
      for x in calls[int(index[0])]:
        found = self.layers[name](x[None])
    for name, calls in self.outputs.items():
      for x in calls[int(index[0])]:
        self.neurons[name](x[None])
    return found


@pytest.mark.parametrize('make', [convolutional, dense])
@pytest.mark.parametrize('spiking', [True, False])
def test_neurobench_counts_the_same(make, spiking):
  from neurobench.metrics.static import ConnectionSparsity, Footprint
  from neurobench.metrics.workload import (
    ActivationSparsity,
    SynapticOperations,
  )
  from neurobench.models import TorchModel

  network = make()
  variables = network.init(jax.random.key(1), IMAGES)
  if spiking:  # a spike taken back is no output of a ReLU
    network = fs.to_spiking(network, 'unsigned')
  found = fs.cost(network, variables, IMAGES)
  _, activations = network.apply(variables, jnp.asarray(IMAGES))
  maps = {'image': IMAGES[:, None]}  # one call
  for name, x in activations.items():
    x = np.asarray(x)
    maps[name] = np.sign(x) if spiking else x[:, None]
  layers, inputs, channels = {}, {}, IMAGES.shape[-1]
  for layer in network.layers:
    own = variables['params'][layer.name]
    layers[layer.name] = module(layer, own, channels)
    x = maps[layer.inputs[0]]
    if isinstance(layer.synapse, fs.Dense):
      x = x.reshape(*x.shape[:2], -1)
    else:
      x, channels = np.moveaxis(x, -1, 2), layer.synapse.features
    inputs[layer.name] = torch.tensor(x)
  outputs = {k: torch.tensor(x) for k, x in maps.items() if k != 'image'}
  model = TorchModel(Recorded(layers, inputs, outputs))
  model.register_hooks()
  operations, sparsity = SynapticOperations(), []
  for i in range(len(IMAGES)):
    index = torch.tensor([i])
    answer = model(index)
    counts = operations(model, answer, (index, index))
    sparsity.append(ActivationSparsity()(model, answer, (index, index)))
    model.reset_hooks()
  assert counts == pytest.approx(found['SynapticOperations'])
  if spiking:
    assert counts['Effective_ACs'] > 0 < counts['Effective_MACs']
  assert np.mean(sparsity) == pytest.approx(found['ActivationSparsity'])
  share = ConnectionSparsity()(model)
  assert share == pytest.approx(found['ConnectionSparsity'], abs=5e-5)
  bare = {
    k: [v['synapse']['kernel'], v['synapse']['bias']]
    for k, v in variables['params'].items()
  }
  size = 4 * sum(x.size for x in jax.tree.leaves(bare))
  assert Footprint()(model) == size
  rest = len(jax.tree.leaves(variables)) - len(jax.tree.leaves(bare))
  assert found['Footprint'] == size + 4 * rest  # clips and thetas
