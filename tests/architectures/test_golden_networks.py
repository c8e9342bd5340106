"""Whole networks against the official code's, in float64 and in float32.

A spiking network is chaotic: one spike decided otherwise by an ulp moves
thousands after it. So the strict comparison is made in float64; float32 is
held to the noise that the official code itself shows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden

import fastsnn_jax as fs
from fastsnn_jax.torch_interop.state_dict import load_torch

pytestmark = pytest.mark.once  # whole networks in float64

GATE = (
  'resnet20_b2',
  'resnet20_float',
  'alexnet_b3',
  'alexnet_float',
  'vgg11_b2',
  'resnet18_b2',
  'imagenet_alexnet_b2',
)
SLOW = (
  'resnet20_b3',
  'resnet20_b4',
  'alexnet_b2',
  'vgg11_b3',
  'vgg11_float',
  'resnet18_b3',
  'imagenet_alexnet_b3',
  'imagenet_vgg16_b2',
  'imagenet_vgg16_b3',
)
# Float32 is a draw of luck: the inputs are such that the official code's own
# rounding flips next to nothing, and ours rounds elsewhere. One early flip
# moved 1 to 2 % of the codes of one mode in three of the larger files.
CHAOS = 3e-2
CASES = (*GATE, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW))
NARROW = tuple(  # of the gate's cases, float32 takes the smaller ones
  pytest.param(case, marks=pytest.mark.slow)
  if case in ('vgg11_b2', 'resnet18_b2', 'imagenet_alexnet_b2')
  else case
  for case in CASES
)


@functools.lru_cache(maxsize=1)
def _prepared(case, dtype):
  """(golden data, network, variables, images) in one dtype."""
  data, state, images = golden.network(case)
  arch, bits = case.rsplit('_', 1)
  model, bits = (
    golden.MODELS[arch],
    int(bits.removeprefix('b').replace('float', '32')),
  )
  state = {
    k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in state.items()
  }
  variables = load_torch(state, model, bits)
  classes = state[list(state)[-1]].size
  images = jnp.asarray(images.transpose(0, 2, 3, 1).astype(dtype))
  return data, fs.build(model, bits, classes), variables, images


def _run(case, dtype):
  """Yields (tag, our logits in the official scale, activations as levels).

  An activation is in units of its theta, times n in the quantised network, and
  in the official order: [B, C, H, W] or [B, T, C, H, W].
  """
  data, ann, variables, images = _prepared(case, dtype)
  for tag in ('ann', 'snn_signed', 'snn_unsigned'):
    if f'{tag}/logits' not in data:
      continue
    spiking = tag != 'ann'
    network = fs.to_spiking(ann, tag[4:]) if spiking else ann
    logits, activations = jax.jit(network.apply)(variables, images)
    assert logits.dtype == dtype
    steps = network.neuron.steps if spiking else 1  # the official code sums
    codes = {}
    for name, x in activations.items() if ann.bits < 32 else ():
      scale = 1 if spiking else 2**ann.bits - 1
      x = np.asarray(x / variables['params'][name]['theta']) * scale
      codes[name] = np.moveaxis(x, -1, 1 + spiking) if x.ndim >= 4 else x
    yield tag, data, np.asarray(logits) * steps, codes


def _recorded(data, tag, codes, suffix):
  """Yields (layer, our codes, theirs): full traces, or samples of them."""
  for i, layer in enumerate(map(str, data.get(f'{tag}/layers', ()))):
    if layer not in codes:
      continue
    full = data.get(f'{tag}/code0/{layer}')
    if full is not None:
      yield layer, codes[layer][0].ravel(), full.ravel()
    elif f'{tag}/samples{suffix}' in data:
      scale = 1 if tag != 'ann' else data['meta']['levels']
      theirs = data[f'{tag}/samples{suffix}'][i] * scale
      index = data[f'{tag}/sample_idx'][i]
      yield layer, codes[layer].ravel()[index], theirs / data[f'{tag}/alpha'][i]


def _relative(ours, theirs):
  return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


@pytest.mark.parametrize('case', CASES, scope='module')
def test_equal_in_float64(case):
  with jax.enable_x64(True):
    for tag, data, logits, codes in _run(case, np.float64):
      assert _relative(logits, data[f'{tag}/logits64']) < 1e-9, tag
      compared = list(_recorded(data, tag, codes, '64'))
      assert len(compared) == len(codes), f'{tag}: a layer has no record'
      for layer, ours, theirs in compared:
        # theta is rounded to float32 in the file, hence the 1e-5.
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=layer)


@pytest.mark.parametrize('case', NARROW, scope='module')
def test_float32_is_as_near_as_the_official_code_is_to_itself(case):
  for tag, data, logits, codes in _run(case, np.float32):
    flips = data['meta'].get('flips_total', {}).get(tag, 0)
    differing = total = 0
    for i, (layer, ours, theirs) in enumerate(_recorded(data, tag, codes, '')):
      differing += np.sum(np.abs(ours - theirs) > 0.5)
      total += ours.size
      alpha = data[f'{tag}/alpha'][i]
      n = data['meta']['levels'] if tag == 'ann' else 1
      rate = data[f'{tag}/stats'][i, 0] / alpha
      assert abs(codes[layer].mean() / n - rate) < 1e-2, layer
    floor = np.max(data.get(f'{tag}/flip_fraction_f32_vs_f64', 0))
    allowed = 1e-3 if case in GATE else CHAOS
    assert differing <= np.ceil(max(floor, allowed) * total), tag
    if not differing and not flips and case in GATE:
      assert _relative(logits, data[f'{tag}/logits']) < 1e-4, tag


@pytest.mark.parametrize(
  'bits',
  [
    2,
    pytest.param(3, marks=pytest.mark.slow),
    pytest.param(4, marks=pytest.mark.slow),
    32,
  ],
)
@pytest.mark.parametrize(
  'model',
  [
    pytest.param(
      name, marks=[pytest.mark.slow] * (name[-2:] in ('32', '44', '56', '10'))
    )
    for name in fs.models()
    if name.startswith(('cifar_', 'imagenet_'))
  ],
)
def test_every_network_builds_trains_and_converts(model, bits):
  size, classes = (224, 1000) if model.startswith('imagenet') else (32, 10)
  network = fs.build(model, bits, classes)
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), images)

  def loss(params, statistics, images):
    tree = {'params': params, 'batch_stats': statistics}
    output, _, statistics = network.apply(tree, images, train=True)
    return jnp.mean(output**2), statistics

  gradient, statistics = jax.eval_shape(
    jax.grad(loss, has_aux=True),
    variables['params'],
    variables['batch_stats'],
    images,
  )

  def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)

  assert shapes(gradient) == shapes(variables['params'])
  assert shapes(statistics) == shapes(variables['batch_stats'])
  if bits < 32:
    spiking = fs.to_spiking(network)
    output, activations = jax.eval_shape(spiking.apply, variables, images)
    assert output.shape == (2, classes)
    first = activations[network.layers[0].name]
    assert first.shape[:2] == (2, 2**bits - 1)
