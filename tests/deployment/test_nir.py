"""NIR files, read back and simulated by their own equations in NumPy."""

import nir
import numpy as np
import pytest
from support.deployment import THETA, drawn, images_of, reference
from support.models import tiny_resnet

import fastsnn_jax as fs


def convolved(node, x):
  """Of one image [C, H, W], by the definition."""
  (top, left), (down, right) = node.padding, node.stride
  x = np.pad(x, ((0, 0), (top, top), (left, left)))
  *_, rows, columns = node.weight.shape
  out = [
    [
      np.tensordot(node.weight, x[:, i : i + rows, j : j + columns], 3)
      for j in range(0, x.shape[2] - columns + 1, right)
    ]
    for i in range(0, x.shape[1] - rows + 1, down)
  ]
  return np.moveaxis(np.array(out), -1, 0) + node.bias[:, None, None]


def simulated(graph, image, steps):
  """(counts of each neuron, sum of the output), with soft reset from a half."""
  order, voltages, counts, total = [], {}, {}, 0
  while len(order) < len(graph.nodes):
    order += [
      name
      for name in graph.nodes
      if name not in order
      and all(a in order for a, b in graph.edges if b == name)
    ]
  for _ in range(steps):
    values = {}
    for name in order:
      node = graph.nodes[name]
      x = sum(values[a] for a, b in graph.edges if b == name)
      if isinstance(node, nir.Input):
        x = image
      elif isinstance(node, nir.Conv2d):
        x = convolved(node, x)
      elif isinstance(node, nir.Affine):
        x = node.weight @ x + node.bias
      elif isinstance(node, nir.Scale):
        x = node.scale * x
      elif isinstance(node, nir.AvgPool2d):
        assert (node.kernel_size == x.shape[1:]).all()
        x = x.mean((1, 2), keepdims=True)
      elif isinstance(node, nir.Flatten):
        x = x.ravel()
      elif isinstance(node, nir.IF):
        voltage = voltages.get(name, node.v_threshold / 2) + node.r * x
        x = (voltage >= node.v_threshold).astype(float)
        voltages[name] = voltage - x * node.v_threshold
        counts[name] = counts.get(name, 0) + x
      else:
        assert isinstance(node, nir.Output)
        total = total + x
      values[name] = x
  return counts, total


def test_the_file_says_the_unsigned_network(tmp_path):
  network = fs.Network(tuple(tiny_resnet(2, 4)), fs.QuantRelu(2))
  images = images_of(4, 8, 8, 2)
  variables = drawn(network, images)
  spiking, path = fs.to_spiking(network, 'unsigned'), tmp_path / 'net.nir'
  with pytest.warns(UserWarning, match='NIR') as told:
    about = fs.export(
      spiking, variables, path, format='nir', image_shape=(8, 8, 2)
    )
  said = ' '.join(str(x.message) for x in told)
  for what in ('number of steps', 'soft reset', 'half of v_threshold'):
    assert what in said
  assert about['warnings'] == [str(x.message) for x in told]
  graph = nir.read(path)
  assert graph.metadata['T'] == 3
  output, activations = reference(spiking, variables, images)
  differ = 0
  for i, image in enumerate(np.asarray(images, np.float64)):
    counts, total = simulated(graph, np.moveaxis(image, -1, 0), 3)
    for name, activity in activations.items():
      ours = np.round(np.asarray(activity[i]).sum(0) / THETA)
      theirs = np.moveaxis(counts[f'{name}.neuron'], 0, -1)
      differ += (ours != theirs).sum()
    scale = float(np.abs(output).max())
    np.testing.assert_allclose(total / 3, output[i], rtol=0, atol=1e-5 * scale)
  assert differ == 0
