"""The YOLOv2 detectors: tables, what is static beside them, and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden

import fastsnn_jax as fs
from fastsnn_jax import architectures
from fastsnn_jax.architectures import yolo
from fastsnn_jax.evaluation import operations as counting
from fastsnn_jax.nn.layers import Conv
from fastsnn_jax.nn.synapses import Chain, Concat, MaxPool, SpaceToDepth
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch

pytestmark = pytest.mark.once

# Reference behaviour D1: parameters with thetas of VOC and COCO, and how many
# thetas; D7: tensors in the quantised state_dict.
COUNTS = {
  'yolov2_tiny': (15_864_837, 16_172_337, 8, 66),
  'yolov2_resnet34': (55_008_483, 55_315_983, 38, 286),
}
DETECTORS = (*COUNTS, 'small_yolo')


def shapes_of(network, size=96):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image)


def zeros(network):
  """Variables with nothing in them but valid thetas."""
  return jax.tree.map(lambda x: np.ones(x.shape, 'f'), shapes_of(network))


@pytest.mark.parametrize('model', COUNTS)
def test_parameter_and_tensor_counts(model):
  voc, coco, thetas, tensors = COUNTS[model]
  for classes, count in ((20, voc), (80, coco)):
    for bits, less in ((3, 0), (32, thetas)):
      network = fs.build(model, bits, classes)
      state = save_torch(zeros(network), model, bits)
      assert len(state) == tensors - less
      state_only = ('running_mean', 'running_var', 'num_batches_tracked')
      trained = [v for k, v in state.items() if not k.endswith(state_only)]
      assert sum(value.size for value in trained) == count - less


def test_space_to_depth_by_the_documented_rule():
  x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype('f')
  found = SpaceToDepth(2).apply({}, x)
  assert found.shape == (2, 2, 3, 12)
  for i, j, dy, dx, c in np.ndindex(2, 3, 2, 2, 3):
    expected = x[:, 2 * i + dy, 2 * j + dx, c]
    np.testing.assert_array_equal(
      found[:, i, j, (2 * dy + dx) * 3 + c], expected
    )
  with pytest.raises(fs.UserError, match=r'a map of 5 x 6, .* multiples of 2'):
    SpaceToDepth(2).apply({}, x[:, :3].repeat(2, 1)[:, :5])


def test_concatenation_runs_each_input_through_its_part():
  rng = np.random.default_rng(1)
  fine, coarse = (
    rng.normal(size=shape).astype('f') for shape in ((1, 4, 4, 2), (1, 2, 2, 3))
  )
  joined = Concat((SpaceToDepth(2), None))
  found = joined.apply({}, fine, coarse)
  np.testing.assert_array_equal(found[..., :8], SpaceToDepth(2).apply({}, fine))
  np.testing.assert_array_equal(found[..., 8:], coarse)
  assert joined.affine
  assert not Concat((MaxPool(), None)).affine
  with pytest.raises(ValueError, match='shorter'):
    joined.apply({}, fine)


def test_connections_of_what_is_passed_through():
  joined = Chain((Concat((SpaceToDepth(2), None)), Conv(5, padding=1)))
  rows = (
    fs.Layer('fine', Conv(2)),
    fs.Layer('coarse', Conv(3, stride=2)),
    fs.Layer('head', joined, ('fine', 'coarse')),
  )
  network = fs.Network(rows, fs.Relu())
  variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  fine, coarse = counting.connections(network, variables, (8, 8, 1))['head']
  assert fine.shape == (8, 8, 2)
  assert coarse.shape == (4, 4, 3)
  windows = np.full((4, 4), 9.0)  # that a pixel of a 4 x 4 map is in
  windows[[0, -1]] = 6
  windows[:, [0, -1]] = 6
  windows[[0, 0, -1, -1], [0, -1, 0, -1]] = 4
  np.testing.assert_array_equal(coarse, 5 * windows[..., None].repeat(3, -1))
  spread = windows.repeat(2, 0).repeat(2, 1)[..., None].repeat(2, -1)
  np.testing.assert_array_equal(fine, 5 * spread)


@pytest.mark.parametrize('model', DETECTORS)
def test_what_is_static_beside_the_layers(model):
  network = fs.build(model, 2, ['a', 'b', 'c'])
  assert network.task == 'detection'
  assert network.stride == (16 if model == 'small_yolo' else 32)
  anchors = len(network.anchors)
  head = network.layers[-1].synapse
  assert head.features == anchors * 8
  assert network.size == architectures.model(model).size
  assert network.size % network.stride == 0
  for side in (96, 160):
    output, _ = jax.eval_shape(
      network.apply,
      shapes_of(network),
      jax.ShapeDtypeStruct((2, side, 96, 3), jnp.float32),
    )
    cells = side // network.stride
    assert output.shape == (2, cells, 96 // network.stride, 8 * anchors)
  for shape in ((1, 100, 96, 3), (1, 96, 100, 3)):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(fs.UserError, match=r'must be multiples of .*resize'):
      network.init(jax.random.key(0), images)
    with pytest.raises(fs.UserError, match=r'must be multiples of .*resize'):
      jax.eval_shape(network.apply, shapes_of(network), images)


def test_anchors_are_the_data_set_s_or_one_s_own(tmp_path):
  assert fs.build('yolov2_tiny', classes=20).anchors == yolo.VOC_ANCHORS
  assert fs.build('yolov2_tiny', classes=80).anchors == yolo.COCO_ANCHORS
  assert fs.build('yolov2_resnet34', classes=3).overlap == 0.6
  assert fs.build('yolov2_tiny', classes=3).overlap == 0.5
  mine = fs.build('small_yolo', 2, 1, anchors=[[1, 2]], overlap=0.4, size=64)
  assert mine.anchors == ((1.0, 2.0),)
  assert mine.layers[-1].synapse.features == 6
  hash(mine)
  variables = mine.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  fs.save(tmp_path / 'net', mine, variables)
  again, _ = fs.load(tmp_path / 'net')
  assert again == mine


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'anchors': ()}, r'anchors=\(\)'),
    ({'anchors': [(1, 0)]}, 'both positive'),
    ({'anchors': [(1, float('nan'))]}, 'both positive'),
    ({'anchors': [1, 2]}, r'anchors=\[1, 2\]'),
    ({'classes': 0}, 'at least one class'),
    ({'model': 'small_resnet8', 'anchors': [(1, 1)]}, 'no detector'),
  ],
)
def test_a_build_out_of_range_is_refused(arguments, message):
  with pytest.raises(fs.UserError, match=message):
    fs.build(**{'model': 'small_yolo', **arguments})


def test_a_cell_starts_out_sure_to_one_in_a_hundred():
  network = fs.build('small_yolo', classes=4)
  variables = network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  bias = variables['params']['pred']['synapse']['bias']
  np.testing.assert_allclose(jax.nn.sigmoid(bias[:3]), 0.01, rtol=1e-5)
  assert jnp.all(jnp.abs(bias[3:]) <= 128**-0.5)


@pytest.mark.parametrize(
  'mode',
  [
    'settled',
    *(pytest.param(m, marks=pytest.mark.slow) for m in ('unsigned', 'signed')),
  ],
)
def test_the_small_detector_spikes_in_every_mode(mode):
  ann = fs.build('small_yolo', 2, 4)
  images = jax.random.normal(jax.random.key(1), (2, 32, 48, 3))
  variables = ann.init(jax.random.key(0), images)
  snn = fs.to_spiking(ann, mode)
  output, activations = jax.jit(snn.apply)(variables, images)
  assert output.shape == ann.apply(variables, images)[0].shape == (2, 2, 3, 27)
  over_time = snn.output_over_time(variables, activations)
  assert over_time.shape == (2, snn.neuron.total_steps, 2, 3, 27)
  np.testing.assert_allclose(over_time[:, -1], output, rtol=1e-4, atol=1e-5)


# --- checkpoints ------------------------------------------------------------


@pytest.mark.parametrize(
  'case', ['tiny_b4', pytest.param('r34_b2', marks=pytest.mark.slow)]
)
def test_round_trip_is_exact_but_for_biases_before_a_norm(case):
  state = golden.state(golden.load(f'det_{case}.npz'))
  arch, bits = case.split('_b')
  model, bits = golden.MODELS[arch], int(bits)
  golden.assert_round_trip(state, model, bits, 8 if arch == 'tiny' else 0)


def test_the_head_says_how_many_classes():
  network = fs.build('small_yolo', 2, 7)
  variables = zeros(network)
  state = save_torch(variables, 'small_yolo', 2)
  assert state['backbone.pred.block.weight'].shape == (3 * 12, 128, 1, 1)
  again = load_torch(state, 'small_yolo', 2)
  assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
  for width in (3 * 12 + 1, 15, 0):
    wrong = {**state, 'backbone.pred.block.bias': np.ones(width, 'f')}
    with pytest.raises(fs.UserError, match=rf'pred.*{width} outputs.*another'):
      load_torch(wrong, 'small_yolo', 2)
  with pytest.raises(fs.UserError, match='another model'):
    save_torch(variables, 'yolov2_tiny', 2)
  with pytest.raises(fs.UserError, match='another model'):
    load_torch(state, 'yolov2_resnet34', 2)


def test_an_official_file_is_the_bare_state_dict(tmp_path):
  torch = pytest.importorskip('torch')
  variables = zeros(fs.build('small_yolo', 2, 2))
  save_torch(variables, 'small_yolo', 2, tmp_path / 'net.pth')
  found = torch.load(tmp_path / 'net.pth')
  assert next(iter(found)) == 'backbone.layer1.block.0.weight'
  again = load_torch(tmp_path / 'net.pth', 'small_yolo', 2)
  assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))


# --- golden -----------------------------------------------------------------


@pytest.mark.parametrize(
  'case',
  [
    'tiny_b4',
    *(
      pytest.param(case, marks=pytest.mark.slow)
      for case in ('tiny_b2', 'tiny_b3', 'r34_b2', 'r34_b3')
    ),
  ],
)
def test_equal_in_float64(case):
  data = golden.load(f'det_{case}.npz')
  arch, bits = case.split('_b')
  model, bits = golden.MODELS[arch], int(bits)
  state = {
    k: v if v.dtype == np.int64 else v.astype(np.float64)
    for k, v in golden.state(data).items()
  }
  with jax.enable_x64(True):
    images = golden.images(data).transpose(0, 2, 3, 1).astype(np.float64)
    variables = load_torch(state, model, bits)
    ann = fs.build(model, bits, 20)
    for tag in ('ann', 'snn_signed', 'snn_unsigned'):
      network = ann if tag == 'ann' else fs.to_spiking(ann, tag[4:])
      logits, activations = jax.jit(network.apply)(variables, images)
      assert logits.dtype == np.float64
      expected = data[f'{tag}/logits64'].transpose(0, 2, 3, 1)
      off = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
      assert off < 1e-9, tag
      for i, layer in enumerate(network.firing):
        mine = np.moveaxis(activations[layer.name], -1, 1 + (tag != 'ann'))
        mine = mine.ravel()[data[f'{tag}/sample_idx'][i]]
        theirs = data[f'{tag}/samples64'][i]
        np.testing.assert_allclose(mine, theirs, atol=1e-9, err_msg=layer.name)
