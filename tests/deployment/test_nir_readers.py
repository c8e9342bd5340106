"""NIR files in other libraries' readers, where they are installed.

pip install spikingjelly, and sinabs with --no-deps (it asks for an older nir).
"""

import nir
import numpy as np
import pytest
from support.deployment import THETA, drawn, images_of, reference

import fastsnn_jax as fs

SHAPE, STEPS = (8, 8, 2), 3


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(path, images, {row: spikes}, output), all with channels first."""
  path = tmp_path_factory.mktemp('nir') / 'net.nir'
  rows = (
    fs.Layer('stem', fs.Conv(4, fs.EightBit())),
    fs.Layer('deep', fs.Conv(6, fs.Apot(2), stride=2), ('stem',)),
    fs.Layer('head', fs.Dense(3, fs.EightBit(), norm=False), ('deep',)),
  )
  network = fs.to_spiking(fs.Network(rows, fs.QuantRelu(2)), 'unsigned')
  images = images_of(50, *SHAPE)
  variables = drawn(network, images)
  with pytest.warns(UserWarning, match='NIR'):
    fs.export(network, variables, path, format='nir', image_shape=SHAPE)
  output, activations = reference(network, variables, images)
  spikes = {
    name: np.moveaxis(np.round(np.asarray(x) / THETA), -1, 2)
    for name, x in activations.items()
  }
  return path, np.moveaxis(np.asarray(images), -1, 1), spikes, output


def spikingjelly(path, images, as_the_file_says):
  torch = pytest.importorskip('torch')
  pytest.importorskip('spikingjelly')
  from spikingjelly.activation_based import neuron, nir_exchange

  net, seen = nir_exchange.import_from_nir(str(path), dt=1.0), {}
  for name, module in net.named_modules():
    if isinstance(getattr(module, 'module', None), neuron.IFNode):
      row = name.removesuffix('_neuron')
      module.register_forward_hook(
        lambda _, __, out, row=row: seen.setdefault(row, []).append(out[0])
      )
      if as_the_file_says:
        module.module.v_reset = None  # it subtracts then
        module.module.v = module.module.v_threshold / 2
  state, total = None, 0
  with torch.no_grad():
    for _ in range(STEPS):
      output, state = net(torch.tensor(images), state)
      total = total + output.numpy()
  return {row: np.stack(x, 1) for row, x in seen.items()}, total / STEPS


def sinabs(path, images, as_the_file_says):
  torch = pytest.importorskip('torch')
  pytest.importorskip('sinabs')
  from sinabs.activation import SingleSpike
  from sinabs.layers import IAFSqueeze
  from sinabs.nir import from_nir

  count, seen = len(images), {}
  net = from_nir(nir.read(path), batch_size=count, num_timesteps=STEPS)
  for name, module in net.named_modules():
    if isinstance(module, IAFSqueeze):
      row = name.removesuffix('_neuron')
      module.register_forward_hook(
        lambda _, __, out, row=row: seen.update({row: out})
      )
      if as_the_file_says:
        module.spike_fn, module.min_v_mem = SingleSpike, None
        theta = torch.as_tensor(module.spike_threshold)
        module.v_mem = (theta / 2).repeat(count, *[1] * theta.ndim)
  with torch.no_grad():
    output, _ = net(torch.tensor(images.repeat(STEPS, 0)))
  seen = {
    row: x.numpy().reshape(count, STEPS, *x.shape[1:])
    for row, x in seen.items()
  }
  return seen, output.numpy().reshape(count, STEPS, -1).mean(1)


@pytest.mark.filterwarnings('ignore')  # of their imports
@pytest.mark.parametrize('reader', [spikingjelly, sinabs])
def test_spikes_are_ours_when_the_reader_is_set(reader, written):
  path, images, spikes, output = written
  seen, answer = reader(path, images, True)
  assert seen.keys() == spikes.keys()
  for row, ours in spikes.items():
    assert ours.any()
    np.testing.assert_array_equal(seen[row], ours)
  scale = float(np.abs(output).max())
  np.testing.assert_allclose(answer, output, rtol=0, atol=1e-5 * scale)
  seen, _ = reader(path, images, False)  # and only then
  share = np.mean([(seen[row] != x).mean() for row, x in spikes.items()])
  print(f'{reader.__name__} as it opens the file: {share:.0%} spikes differ')
  assert share > 0.1
