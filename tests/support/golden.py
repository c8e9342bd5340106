"""Golden vectors of the official code, and how to read them.

The full set lies in the shared folder (conftest.py says where); a few files are
copied to tests/data, so that any clone can check itself. Large tensors are not
stored but drawn by an integer formula.
"""

import functools
import json
import pathlib

import numpy as np
from support.shared import find_shared

from fastsnn_jax.architectures import build
from fastsnn_jax.torch_interop.names import leaves
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch

_HERE = pathlib.Path(__file__).parents[1]
MODELS = {
  'alexnet': 'cifar_alexnet',
  'vgg11': 'cifar_vgg11',
  'resnet20': 'cifar_resnet20',
  'resnet18': 'cifar_resnet18',
  'imagenet_alexnet': 'imagenet_alexnet',
  'imagenet_vgg16': 'imagenet_vgg16',
  'tiny': 'yolov2_tiny',
  'r34': 'yolov2_resnet34',
  'vgg9': 'deeplabv1_vgg9',
  'r34aspp': 'deeplabv3_resnet34',
}


def load(name):
  """The arrays of one file, with `meta` decoded; tests/data comes first."""
  path = _HERE / 'data' / name
  with np.load(path if path.exists() else find_shared('golden', name)) as file:
    data = dict(file)
  if 'meta' in data:
    data['meta'] = json.loads(str(data['meta']))
  return data


@functools.lru_cache(maxsize=1)
def network(case):
  """(data, official state_dict, images NCHW) of net_<case>.npz."""
  data = load(f'net_{case}.npz')
  return data, state(data), images(data)


def state(data):
  """The official state_dict of a case: stored and drawn tensors, in order."""
  tensors = {
    key.removeprefix('param/'): value
    for key, value in data.items()
    if key.startswith('param/')
  }
  shapes = json.loads(str(data['gen/shapes']))
  for i, key in enumerate(map(str, data['gen/keys'])):
    drawn = _normal(data['gen/seed'], i, shapes[i], data['gen/std'][i])
    ends = np.concatenate([drawn.ravel()[:4], drawn.ravel()[-4:]])
    np.testing.assert_array_equal(ends, data['gen/fingerprint'][i], key)
    tensors[key] = drawn
  return {key: tensors[key] for key in map(str, data['state_dict_order'])}


def images(data):
  """The input of a case, NCHW."""
  if 'x' in data:
    return data['x']
  how = json.loads(str(data['x_gen']))
  batch, channels, height, width = how['shape']
  block = how['block']
  coarse = (batch, channels, -(-height // block), -(-width // block))
  coarse = _normal(how['seed'], 1, coarse).repeat(block, 2).repeat(block, 3)
  fine = _normal(how['seed'], 0, how['shape']) * np.float32(how['fine'])
  return fine + coarse[..., :height, :width] * np.float32(how['coarse'])


def _normal(seed, stream, shape, std=1.0):
  """About N(0, std^2) in float32: sums of four 16-bit fields of raw PCG64."""
  out = np.empty(int(np.prod(shape)), np.float32)
  bits = np.random.PCG64([int(seed), stream])
  for start in range(0, out.size, 1 << 22):
    part = out[start : start + (1 << 22)]
    fields = bits.random_raw(part.size).view(np.uint16).reshape(-1, 4)
    total = fields.sum(1, dtype=np.int64) - 131070
    part[:] = total.astype(np.float32) * np.float32(np.sqrt(3.0) / 65536.0)
  out *= np.float32(std)
  return out.reshape(shape)


def assert_round_trip(state, model, bits, biases):
  """In and out again, an official state is the same, in the same order.

  Args:
    state, model, bits: official keys to arrays, and whose they are.
    biases: how many stand in front of a norm; they go into its mean.
  """
  back = save_torch(load_torch(state, model, bits), model, bits)
  assert list(back) == list(state)
  network = build(model, bits)
  folded = {leaf.key for leaf in leaves(network) if leaf.kind == 'folded'}
  assert len(folded) == biases
  moved = {key.replace('.0.bias', '.1.running_mean'): key for key in folded}
  for key, value in state.items():
    if key in folded or key.endswith('num_batches_tracked'):
      value = np.zeros_like(value)
    elif key in moved:
      value = value - state[moved[key]]
    np.testing.assert_array_equal(back[key], value, key)
