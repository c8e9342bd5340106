"""The DeepLab segmenters: tables, what is static beside them, checkpoints, and
the upsampling of their maps."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden

import fastsnn_jax as fs
from fastsnn_jax import architectures
from fastsnn_jax.evaluation import operations as counting
from fastsnn_jax.nn.weights import kaiming, torch_bias, torch_uniform, zero_bias
from fastsnn_jax.tasks.segmentation.upsample import sides, upsample
from fastsnn_jax.torch_interop.names import leaves
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch

pytestmark = pytest.mark.once

# Reference behaviour S1: parameters of VOC (21 classes) and COCO (81), thetas,
# 10^9 multiply-accumulates at 513 and 641 pixels; S6: tensors with thetas.
Facts = collections.namedtuple('Facts', 'voc coco thetas macs tensors')
FACTS = {
  'deeplabv1_vgg9': Facts(4_121_685, 4_183_185, 8, (26.5, 41.6), 66),
  'deeplabv3_resnet34': Facts(27_060_821, 27_076_241, 40, (36.5, 56.5), 300),
}
SEGMENTERS = (*FACTS, 'small_deeplab', 'medium_deeplab')
NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
BLOCKS = (3, 4, 6, 3)
TAGS = ('ann', 'snn_signed', 'snn_unsigned')


def shapes_of(network, size=97):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image)


def ones(network):
  """Variables with nothing in them but valid thetas."""
  one = np.float32(1)  # without the memory of so many
  return jax.tree.map(
    lambda x: np.broadcast_to(one, x.shape), shapes_of(network)
  )


def lively(network):
  """Variables with which every layer takes on most of its levels."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    if len(x.shape) == 4:
      scale = 2 / np.sqrt(np.prod(x.shape[:-1]))
      return (rng.normal(size=x.shape) * scale).astype('f')
    return np.full(x.shape, path[-1].key in ('scale', 'var', 'theta'), 'f')

  return jax.tree_util.tree_map_with_path(draw, shapes_of(network))


# --- tables -----------------------------------------------------------------


@pytest.mark.parametrize('model', FACTS)
def test_parameter_and_tensor_counts(model):
  facts = FACTS[model]
  for classes, count in ((21, facts.voc), (81, facts.coco)):
    for bits, thetas in ((3, facts.thetas), (32, 0)):
      state = save_torch(ones(fs.build(model, bits, classes)), model, bits)
      assert len(state) == facts.tensors - facts.thetas + thetas
      trained = [v for k, v in state.items() if not k.endswith(NORM[2:])]
      assert sum(value.size for value in trained) == count + thetas


def vgg9_keys():
  for i in range(1, 9):
    yield from (f'0.layer{i}.block.0.{name}' for name in ('weight', 'bias'))
    yield from (f'0.layer{i}.block.1.{name}' for name in NORM)
    yield f'0.layer{i}.block.2.act_alpha'
  yield from (f'0.layer9.block.0.{name}' for name in ('weight', 'bias'))


def resnet34_keys():
  def unit(name):
    yield f'0.{name}.block.0.weight'
    yield from (f'0.{name}.block.1.{part}' for part in NORM)

  yield from unit('layer0')
  yield '0.relu0.act_alpha'
  for stage, count in enumerate(BLOCKS, 1):
    for i in range(count):
      for part in (1, 2):
        yield from unit(f'layer{stage}.{i}.part{part}')
        if part == 2 and i == 0 and stage > 1:
          yield from unit(f'layer{stage}.0.downsample')
        yield f'0.layer{stage}.{i}.relu{part}.act_alpha'
  for name in (*(f'aspp{i}' for i in range(1, 6)), 'project', 'head0'):
    yield from unit(name)
    yield f'0.{name}.block.2.act_alpha'
  yield from (f'0.head1.block.0.{name}' for name in ('weight', 'bias'))


@pytest.mark.parametrize(
  ('model', 'keys'),
  [('deeplabv1_vgg9', vgg9_keys), ('deeplabv3_resnet34', resnet34_keys)],
)
def test_official_keys(model, keys):
  for bits in (32, 4):
    found = [leaf.key for leaf in leaves(fs.build(model, bits))]
    assert found == [
      key for key in keys() if bits < 32 or not key.endswith('act_alpha')
    ]


@pytest.mark.parametrize('model', FACTS)
def test_maps_and_costs_at_513_and_641_pixels(model):
  vgg = model == 'deeplabv1_vgg9'
  for size, classes, macs in zip(
    (513, 641), (21, 81), FACTS[model].macs, strict=True
  ):
    network = fs.build(model, 4, classes)
    shapes = shapes_of(network)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    output, maps = jax.eval_shape(network.apply, shapes, image)
    cells = (size - 1) // network.stride + 1
    assert output.shape == (1, cells, cells, classes)
    assert sides(cells, network.stride) == size
    found = [maps[layer.name].shape[1] for layer in network.firing]
    halves = [(size - 1) // 2**i + 1 for i in range(5)]
    at = (0, 1, 1, 2, 3, 3, 3, 3) if vgg else (*[2] * 7, *[3] * 8, *[4] * 25)
    assert found == [halves[i] for i in at]
    counts = counting.macs(network, shapes, (size, size, 3))
    assert abs(sum(counts.values()) / 1e9 - macs) < 0.06
    if vgg and size == 513:
      each = [round(count / 1e9, 3) for count in counts.values()]
      assert each == [
        *(0.455, 2.435, 4.870, 2.454, 1.246, 2.492, 2.492, 9.968, 0.091)
      ]


@pytest.mark.parametrize('model', SEGMENTERS)
def test_what_is_static_beside_the_layers(model, tmp_path):
  network = fs.build(model, 2, ['a', 'b', 'c'])
  assert network.task == 'segmentation'
  assert (
    network.stride == dict(zip(SEGMENTERS, (8, 16, 4, 8), strict=True))[model]
  )
  assert network.remainder == 1
  assert architectures.model(model).size % network.stride == 1
  images = jax.ShapeDtypeStruct((2, 49, 97, 3), jnp.float32)
  output, _ = jax.eval_shape(network.apply, shapes_of(network), images)
  upsampled = jax.eval_shape(lambda x: upsample(x, network.stride), output)
  assert upsampled.shape == (2, 49, 97, 3)
  for shape in ((1, 96, 97, 3), (1, 97, 100, 3)):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(
      fs.UserError, match=r'of (4|8|16) and 1 more .*pad them'
    ):
      jax.eval_shape(network.apply, shapes_of(network), images)
  if model == 'small_deeplab':
    fs.save(tmp_path / 'net', network, ones(network))
    again, _ = fs.load(tmp_path / 'net')
    assert again == network
    sizes = jax.tree.leaves(shapes_of(network)['params'])
    assert sum(leaf.size for leaf in sizes) < 300_000


@pytest.mark.parametrize('model', SEGMENTERS)
def test_no_more_classes_than_a_map_of_bytes_has(model):
  assert len(fs.build(model, 2, 255).classes) == 255
  with pytest.raises(fs.UserError, match='classes: 256 are more than the 255'):
    fs.build(model, 2, 256)


def test_only_what_stands_on_the_trunk_starts_as_in_pytorch():
  def starts(model):
    for layer in fs.build(model).layers:
      synapse = layer.synapse
      if isinstance(synapse, fs.Chain):
        synapse = synapse.parts[1]
      yield layer.name, getattr(synapse, 'body', synapse)

  for _, synapse in starts('deeplabv1_vgg9'):
    assert (synapse.kernel_init, synapse.bias_init) == (kaiming, zero_bias)
  new = []
  for name, synapse in starts('deeplabv3_resnet34'):
    if synapse.kernel_init is torch_uniform:
      new.append(name)
  assert new == [*(f'aspp{i}' for i in range(1, 6)), 'project', 'head0', name]
  assert synapse.bias_init is torch_bias


# --- as networks ------------------------------------------------------------


def test_the_small_segmenter_settles_on_its_quantised_twin():
  ann = fs.build('small_deeplab', 2, 4)
  images = jax.random.normal(jax.random.key(1), (2, 17, 25, 3))
  variables = lively(ann)
  snn = fs.to_spiking(ann, 'settled', settle=16)
  output, activations = jax.jit(snn.apply)(variables, images)
  expected, levels = jax.jit(ann.apply)(variables, images)
  assert output.shape == (2, 5, 7, 4)
  np.testing.assert_allclose(output, expected, atol=1e-5)
  for name, level in levels.items():
    assert len(np.unique(level)) > 2, name
    mean = snn.neuron.decode(activations[name])
    np.testing.assert_allclose(mean, level, atol=1e-5, err_msg=name)


def test_connections_of_a_pyramid():
  network = fs.build('small_deeplab', 2, 4)
  fans = counting.connections(network, shapes_of(network), (17, 17, 3))
  one = np.ones((5, 5, 1))
  (found,) = fans['aspp1']
  np.testing.assert_array_equal(found, 64 * one.repeat(64, -1))
  # A map of 5 x 5 under windows with two pixels left out: what is three away.
  reach = np.array([2, 2, 1, 2, 2])
  (found,) = fans['aspp2']
  expected = 64 * np.outer(reach, reach)[..., None]
  np.testing.assert_array_equal(found, expected.repeat(64, -1))
  assert len(fans['project']) == 3
  for found in fans['project']:
    np.testing.assert_array_equal(found, 64 * one.repeat(64, -1))
  np.testing.assert_array_equal(fans['head'][0], 4 * one.repeat(64, -1))


@pytest.mark.parametrize('model', ['deeplabv1_vgg9', 'small_deeplab'])
def test_training_and_spiking_run_in_the_images_precision(model):
  network = fs.build(model, 2, 5)
  variables = ones(network)
  images = jax.ShapeDtypeStruct((2, 33, 33, 3), jnp.bfloat16)

  def loss(params, images):
    tree = {**variables, 'params': params}
    output, _, _ = network.apply(tree, images, train=True, remat=True)
    return jnp.mean(upsample(output, network.stride) ** 2)

  training = str(jax.make_jaxpr(jax.grad(loss))(variables['params'], images))
  found = re.findall(r':(\w+)\[[\d,]*\] = conv_general_dilated', training)
  assert len(found) >= 10
  assert set(found) == {'bf16'}
  spiking = jax.jit(fs.to_spiking(network, 'settled').apply)
  text = spiking.lower(variables, images).as_text()
  found = [
    tuple(re.findall(r'tensor<[\dx]*x(\w+)>', line))
    for line in text.splitlines()
    if 'stablehlo.convolution' in line
  ]
  assert len(found) >= 10
  assert set(found) == {('bf16', 'bf16', 'f32')}  # sums are in float32


# --- checkpoints ------------------------------------------------------------


@pytest.mark.parametrize(
  'case', ['vgg9_b4', pytest.param('r34aspp_b2', marks=pytest.mark.slow)]
)
def test_round_trip_is_exact_but_for_biases_before_a_norm(case):
  state = golden.state(golden.load(f'seg_{case}.npz'))
  arch, bits = case.split('_b')
  model, bits = golden.MODELS[arch], int(bits)
  golden.assert_round_trip(state, model, bits, 8 if arch == 'vgg9' else 0)


def test_a_file_says_its_classes_and_is_of_one_model():
  variables = ones(fs.build('small_deeplab', 2, 7))
  state = save_torch(variables, 'small_deeplab', 2)
  assert state['0.head.block.0.weight'].shape == (7, 64, 1, 1)
  again = load_torch(state, 'small_deeplab', 2)
  assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
  with pytest.raises(fs.UserError, match=r"'0.layer1.block.2.act_alpha'.*bit"):
    load_torch(state, 'small_deeplab', 32)
  with pytest.raises(fs.UserError, match='another model'):
    load_torch(state, 'deeplabv1_vgg9', 2)
  with pytest.raises(fs.UserError, match='another model'):
    save_torch(variables, 'deeplabv3_resnet34', 2)
  del state['0.project.block.1.running_var']
  with pytest.raises(fs.UserError, match=r"project.*running_var'"):
    load_torch(state, 'small_deeplab', 2)


def test_an_official_file_has_numpy_beside_its_weights(tmp_path):
  torch = pytest.importorskip('torch')
  variables = ones(fs.build('small_deeplab', 2, 2))
  save_torch(variables, 'small_deeplab', 2, tmp_path / 'net.pth')
  content = torch.load(tmp_path / 'net.pth')
  assert next(iter(content['state_dict'])) == '0.layer1.block.0.weight'
  content['meta'] = {'best': np.float64(0.7), 'lr': np.array([0.007]), 'it': 3}
  content['optimizer'] = {'state': {0: {'momentum_buffer': torch.ones(2)}}}
  torch.save(content, tmp_path / 'official.pth')
  again = load_torch(tmp_path / 'official.pth', 'small_deeplab', 2)
  assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))


# --- golden -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('case', 'tags'),
  [
    ('vgg9_b2', TAGS),
    ('r34aspp_b2', TAGS[:2]),
    *(
      pytest.param(case, tags, marks=pytest.mark.slow)
      for case, tags in (
        ('vgg9_b3', TAGS),
        ('vgg9_b4', TAGS),
        ('r34aspp_b2', TAGS[2:]),
        ('r34aspp_b3', TAGS),
      )
    ),
  ],
)
def test_equal_in_float64(case, tags):
  data = golden.load(f'seg_{case}.npz')
  arch, bits = case.split('_b')
  model, bits = golden.MODELS[arch], int(bits)
  # The official VGG-9 runs for one step more than it has levels at 3 bits.
  steps = bits**2 - 1 if arch == 'vgg9' else 2**bits - 1
  state = {
    k: v if v.dtype == np.int64 else v.astype(np.float64)
    for k, v in golden.state(data).items()
  }
  with jax.enable_x64(True):
    images = golden.images(data).transpose(0, 2, 3, 1).astype(np.float64)
    variables = load_torch(state, model, bits)
    ann = fs.build(model, bits, 21)
    for tag in tags:
      network = ann
      if tag != 'ann':
        network = fs.to_spiking(ann, tag[4:], steps=steps)
      output, activations = jax.jit(network.apply)(variables, images)
      assert output.dtype == np.float64
      theirs = data[f'{tag}/c5_64'].transpose(0, 2, 3, 1)
      scale = np.max(np.abs(theirs))
      assert np.max(np.abs(output - theirs)) < 1e-12 * scale, tag
      pixels = np.asarray(upsample(output, network.stride))
      flat = np.moveaxis(pixels, -1, 1).ravel()[::97]
      assert np.max(np.abs(flat - data[f'{tag}/logits64'])) < 1e-12 * scale
      classes = np.argmax(pixels, -1)
      oracle = upsample_oracle(theirs, network.stride)
      np.testing.assert_array_equal(classes, np.argmax(oracle, -1))
      if not data['meta']['flips_total'][tag]:  # theirs is of float32
        np.testing.assert_array_equal(classes, data[f'{tag}/class_map'])
      for i, layer in enumerate(network.firing):
        mine = np.moveaxis(activations[layer.name], -1, 1 + (tag != 'ann'))
        mine = mine.ravel()[data[f'{tag}/sample_idx'][i]]
        theirs = data[f'{tag}/samples64'][i]
        np.testing.assert_allclose(mine, theirs, atol=1e-9, err_msg=layer.name)


# --- upsampling -------------------------------------------------------------


def upsample_oracle(x, factor):
  """Pixel by pixel, from the four cells around it."""
  batch, height, width, channels = x.shape
  rows, columns = ((n - 1) * factor + 1 for n in (height, width))
  out = np.zeros((batch, rows, columns, channels))
  for i, j in np.ndindex(rows, columns):
    (up, k), (left, m) = divmod(i, factor), divmod(j, factor)
    down, right = min(up + 1, height - 1), min(left + 1, width - 1)
    top = x[:, up, left] * (factor - m) + x[:, up, right] * m
    bottom = x[:, down, left] * (factor - m) + x[:, down, right] * m
    out[:, i, j] = (top * (factor - k) + bottom * k) / factor**2
  return out


@settings(max_examples=12)
@given(
  st.tuples(st.integers(1, 2), *[st.integers(1, 5)] * 2, st.integers(1, 3)),
  st.sampled_from([1, 2, 3, 8, 16]),
  st.integers(0, 9),
)
def test_upsampling_is_linear_between_cells(shape, factor, seed):
  x = np.random.default_rng(seed).normal(size=shape).astype('f')
  found = upsample(x, factor)
  np.testing.assert_allclose(found, upsample_oracle(x, factor), atol=1e-6)
  np.testing.assert_array_equal(found[:, ::factor, ::factor], x)


@pytest.mark.parametrize('factor', [8, 16])
def test_upsampling_weights_are_exact(factor):
  cell = np.zeros((1, 3, 3, 1), 'f')
  cell[0, 1, 1] = 1
  hat = (factor - np.abs(np.arange(2 * factor + 1) - factor)) / factor
  found = jax.jit(lambda x: upsample(x, factor))(cell)
  np.testing.assert_array_equal(found[0, ..., 0], np.outer(hat, hat))


def test_upsampling_widens_and_refuses():
  assert upsample(jnp.ones((1, 2, 2, 1), jnp.bfloat16), 8).dtype == jnp.float32
  for x, factor, message in (
    (jnp.ones((2, 2)), 8, r'shape \(2, 2\)'),
    (jnp.ones((1, 0, 2, 1)), 8, 'one cell'),
    (jnp.ones((1, 2, 2, 1)), 0, 'factor=0'),
    (jnp.ones((1, 2, 2, 1)), 1.5, 'factor=1.5'),
  ):
    with pytest.raises(fs.UserError, match=message):
      upsample(x, factor)
