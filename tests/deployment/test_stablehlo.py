"""Programs run in a process that has neither this package nor Flax."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from support.deployment import THETA, drawn, images_of, reference
from support.models import three_rows

import fastsnn_jax as fs

SHAPE = 6, 6, 2
MODES = 'float', 'quantised', 'signed', 'settled'
SCRIPT = """
import sys
import jax, numpy as np
images, *paths = sys.argv[1:]
for path in paths:
  program = jax.export.deserialize(bytearray(open(path, 'rb').read()))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  np.save(path + '.npy', program.call(np.load(images)))
assert not {'flax', 'fastsnn_jax'} & {*sys.modules}
"""


def network_of(mode):
  network = fs.Network(three_rows(4), fs.QuantRelu(2))
  if mode == 'float':
    return fs.Network(three_rows(4), fs.Relu())
  return network if mode == 'quantised' else fs.to_spiking(network, mode)


@pytest.mark.parametrize('mode', MODES)
def test_outputs_and_sites_are_ours(mode, tmp_path):
  network, path = network_of(mode), tmp_path / 'net.stablehlo'
  images = images_of(5, *SHAPE)
  variables = drawn(network, images)
  written = fs.export(
    *(network, variables, path),
    **{'format': 'stablehlo', 'image_shape': SHAPE, 'sites': True},
  )
  run, about = fs.load_export(path)
  assert about == written
  assert about['mode'] == mode
  output, activations = reference(network, variables, images)
  got, sites = run(images)
  scale = float(np.abs(output).max())
  np.testing.assert_allclose(got, output, rtol=0, atol=1e-6 * scale)
  unit = {'float': None, 'quantised': THETA / 3}.get(mode, THETA)
  for name, activity in activations.items():
    if unit is None:
      np.testing.assert_allclose(sites[name], activity, rtol=1e-5, atol=1e-5)
    else:
      level = np.round(np.asarray(activity) / unit)
      np.testing.assert_array_equal(sites[name], level)
      assert sites[name].dtype == np.int32
  assert run(images[:2])[0].shape == (2, 4)  # any N


def test_a_process_without_this_package(tmp_path):
  images, outputs = images_of(5, *SHAPE), {}
  np.save(tmp_path / 'images.npy', images)
  for mode in MODES:
    network, path = network_of(mode), tmp_path / mode
    variables = drawn(network, images)
    fs.export(network, variables, path, format='stablehlo', image_shape=SHAPE)
    outputs[mode] = np.asarray(reference(network, variables, images)[0])
  subprocess.run(
    [sys.executable, '-c', SCRIPT, 'images.npy', *MODES],
    check=True,
    cwd=tmp_path,
  )
  for mode, output in outputs.items():
    got, scale = np.load(tmp_path / f'{mode}.npy'), np.abs(output).max()
    np.testing.assert_allclose(got, output, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize('mode', ['quantised', 'signed', 'settled'])
def test_a_network_of_a_function(mode, tmp_path):
  def model(params, x):
    x = fs.quantize_activation(x @ params['w'], params['a'], 2, name='hidden')
    return jax.nn.softmax(x @ params['w'])

  params = {'w': jax.random.normal(jax.random.key(1), (4, 4)), 'a': 1.5}
  images = images_of(6, 4)
  network, variables = fs.from_function(model, params, images)
  if mode != 'quantised':
    network = fs.to_spiking(network, mode)
  path = tmp_path / 'net'
  fs.export(network, variables, path, format='stablehlo', image_shape=(4,))
  run, about = fs.load_export(path)
  for some in (images, images[:1]):  # any N
    output = reference(network, variables, some)[0]
    np.testing.assert_allclose(run(some), output, rtol=1e-6)
  if mode != 'signed':
    np.testing.assert_allclose(output, model(params, some), rtol=1e-5)
  assert about['sites'] == {'hidden': {'theta': 1.5}}


def test_other_files_are_refused(tmp_path):
  (tmp_path / 'text').write_text('no program')
  with pytest.raises(fs.UserError, match=r'not a program of jax\.export'):
    fs.load_export(tmp_path / 'text')
  with pytest.raises(fs.UserError, match='there is no such file'):
    fs.load_export(tmp_path / 'none')
