"""Every model: onnxruntime's levels of each row are ours."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from support.deployment import (
  agrees,
  answers,
  drawn,
  images_of,
  session,
  ties,
)

import fastsnn_jax as fs
from fastsnn_jax import architectures

SIDES = {'imagenet_alexnet': 95, 'small_yolo': 48}


def side_of(name):
  model = architectures.model(name)
  step = max(model.stride, 16)
  return SIDES.get(name, max(32, step) + model.remainder)


@pytest.mark.slow
@pytest.mark.parametrize('bits', [2, 3, 4])
@pytest.mark.parametrize('name', fs.models())
def test_levels_of_every_model(name, bits, tmp_path):
  network = fs.build(name, bits=bits, classes=3)
  side = side_of(name)
  images = images_of(8, side, side, 3)
  variables = drawn(network, images)
  path = tmp_path / 'net.onnx'
  fs.export(
    *(network, variables, path),
    **{'format': 'onnx', 'image_shape': (side, side, 3), 'sites': True},
  )
  got = answers(session(path), images=images)
  print(name, bits, agrees(network, variables, images, got))


@pytest.mark.slow
@pytest.mark.parametrize('bits', [3, 4])
def test_cifar_accuracy_to_the_image(bits, shared, tmp_path):
  """2,000 test images, JPEG copies of CIFAR-10."""
  file = shared('checkpoints', f'cifar10_resnet20_{bits}bit.npz')
  folder = shared('data', 'cifar10').parent
  mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
  variables = fs.load_torch(str(file), 'cifar_resnet20', bits)
  network = fs.build('cifar_resnet20', bits=bits, mean=mean, std=std)
  source = tfds.data_source('cifar10', data_dir=str(folder), split='test')
  rows = [source[i] for i in range(2000)]
  labels = np.array([x['label'] for x in rows])
  images = np.stack([x['image'] for x in rows]) / np.float32(255)
  images = ((images - np.float32(mean)) / np.float32(std)).astype('f4')
  path = tmp_path / 'net.onnx'
  about = fs.export(
    *(network, variables, path),
    **{'format': 'onnx', 'image_shape': (32, 32, 3), 'sites': True},
  )
  runner, right, levels = session(path), np.zeros(2, int), np.zeros(3, int)
  other = []  # whether an image's arg-max differs, and whether a level does
  folded, ready = fs.fold(network, variables)
  run = jax.jit(folded.apply)
  for start in range(0, 2000, 250):
    part, truth = (x[start : start + 250] for x in (images, labels))
    got = answers(runner, images=part)
    output, activations = run(ready, part)
    count, same = ties(network, variables, part, activations, got)
    sites = [got[name] for name in activations]
    levels += count, (~same).sum(), sum(x.size for x in sites)
    both = got['output'].argmax(1), np.asarray(output).argmax(1)
    right += [(x == truth).sum() for x in both]
    other += zip(both[0] != both[1], ~same, strict=True)
  differ = sum(best for best, _ in other)
  print(
    f'{bits} bits: of 2,000 images onnxruntime has {right[0]} right, JAX '
    f'{right[1]}; {levels[0]} ties, {levels[1]} images with one, of '
    f'{levels[2]} levels; arg-max differs on {differ}; {about["bytes"]} bytes'
  )
  assert right[0] == right[1]
  assert differ <= 2  # of 2,000 by rounding, as in evaluation, and at a tie
  assert all(level for best, level in other if best)
