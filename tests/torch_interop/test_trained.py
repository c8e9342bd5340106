"""Trained networks in the official format, beside what the official code says.

The figures are those of the checkpoints' README: per cent of the first 2,000
test images of CIFAR-10 (JPEG copies).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.shared import find_shared

import fastsnn_jax as fs
from fastsnn_jax import data
from fastsnn_jax.torch_interop.state_dict import load_torch

pytestmark = pytest.mark.once

MODEL = 'cifar_resnet20'
IMAGES = 2000
# bits: quantised ANN, signed, unsigned
OFFICIAL = {4: (88.05, 87.80, 80.70), 3: (86.70, 86.75, 60.30)}


@pytest.fixture(scope='module')
def cifar():
  pytest.importorskip('tensorflow_datasets')
  return data.load('cifar10', str(find_shared('data', 'cifar10').parent))


def checkpoint(bits):
  return find_shared('checkpoints', f'cifar10_resnet20_{bits}bit.npz')


def build(dataset, bits):
  return fs.build(
    MODEL, bits, dataset.classes, mean=dataset.mean, std=dataset.std
  )


@pytest.mark.slow
def test_the_float_network_is_as_good_as_the_official_code_says(cifar):
  variables = load_torch(checkpoint(32), MODEL, 32)
  found = fs.evaluate(build(cifar, 32), variables, cifar.test)
  assert 100 * found['accuracy'] == pytest.approx(88.16, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('bits', OFFICIAL)
def test_every_mode_is_as_good_as_the_official_code_says(cifar, bits):
  ann = build(cifar, bits)
  variables = load_torch(checkpoint(bits), MODEL, bits)
  some = cifar.test.take(slice(IMAGES))
  modes = ('signed', 'unsigned', 'settled')
  rows = fs.compare(
    ann,
    variables,
    {mode: (fs.to_spiking(ann, mode), variables) for mode in modes},
    some,
  )
  print(
    {m: (100 * r['accuracy'], 100 * r['agreement']) for m, r in rows.items()}
  )
  quantised, signed, unsigned = OFFICIAL[bits]
  ours = {mode: 100 * row['accuracy'] for mode, row in rows.items()}
  found = 100 * rows['signed']['ann_accuracy']
  assert found == pytest.approx(quantised, abs=0.1)
  assert ours['signed'] == pytest.approx(signed, abs=0.7)
  assert ours['unsigned'] == pytest.approx(unsigned, abs=0.7)
  differing = round(IMAGES * (1 - rows['settled']['agreement']))
  assert differing <= IMAGES / 1000


def test_trained_checkpoints_agree_across_formats():
  pytest.importorskip('torch')
  for bits in (32, 4, 3):
    name = f'cifar10_resnet20_{bits}bit'
    a, b = (
      load_torch(find_shared('checkpoints', name + end), MODEL, bits)
      for end in ('.npz', '.pth')
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ('bits', 'images'),
  [
    (3, 20),
    pytest.param(3, 200, marks=pytest.mark.slow),
    pytest.param(4, 200, marks=pytest.mark.slow),
  ],
)
def test_a_trained_network_settles_on_its_anns_logits(cifar, bits, images):
  x = cifar.test['image'][:images] / 255.0
  x = (x - np.array(cifar.mean)) / np.array(cifar.std)
  with np.load(checkpoint(bits)) as arrays:
    state = {k: np.asarray(arrays[k], np.float64) for k in arrays.files}
  with jax.enable_x64(True):
    variables = load_torch(state, MODEL, bits)
    ann = fs.build(MODEL, bits)
    snn = fs.to_spiking(ann, 'settled')
    run = jax.jit(lambda net, x: net.apply(variables, x)[0], static_argnums=0)
    for start in range(0, images, 20):
      part = jnp.asarray(x[start : start + 20])
      np.testing.assert_allclose(run(snn, part), run(ann, part), atol=1e-9)
