"""Official checkpoints in and out."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden
from support.jobs import one_line

import fastsnn_jax as fs
from fastsnn_jax.torch_interop.names import leaves
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch

# Reference behaviour C2.8: parameters of the float and the quantised network,
# tensors in the quantised and the float state_dict.
COUNTS = {
  'cifar_alexnet': (11_739_722, 11_738_357, 50, 44),
  'cifar_vgg11': (34_457_354, 34_454_621, 83, 72),
  'cifar_resnet20': (272_474, 272_513, 167, 128),
  'cifar_resnet32': (466_906, 466_969, 263, 200),
  'cifar_resnet44': (661_338, 661_425, 359, 272),
  'cifar_resnet56': (855_770, 855_881, 455, 344),
  'cifar_resnet110': (1_730_714, 1_730_933, 887, 668),
  'cifar_resnet18': (12_502_090, 12_502_107, 139, 122),
  'imagenet_alexnet': (61_118_376, 61_118_383, 53, 46),
  'imagenet_vgg16': (138_378_152, 138_378_167, 109, 94),
  'imagenet_vgg11': (132_882_472, 132_882_482, 74, 64),
}


@pytest.mark.once
@pytest.mark.parametrize(
  'model',
  [
    # Those of other depths have the rows of ResNet-20 and VGG-16.
    pytest.param(
      name,
      marks=[pytest.mark.slow]
      * name.endswith(('t32', 't44', 't56', 't110', 't_vgg11')),
    )
    for name in COUNTS
  ],
)
def test_parameter_and_tensor_counts(model):
  size, classes = (224, 1000) if model.startswith('imagenet') else (32, 10)
  floats, quantised, tensors, float_tensors = COUNTS[model]
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  for bits, parameters, count in (
    (32, floats, float_tensors),
    (2, quantised, tensors),
  ):
    network = fs.build(model, bits, classes)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = save_torch(zeros, model, bits)
    assert len(state) == count
    state_only = ('running_mean', 'running_var', 'num_batches_tracked')
    trained = [v for k, v in state.items() if not k.endswith(state_only)]
    assert sum(value.size for value in trained) == parameters


def _same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize(
  'case',
  [
    'resnet20_b2',
    'alexnet_b2',
    'alexnet_float',
    'resnet18_b2',
    pytest.param('vgg11_b2', marks=pytest.mark.slow),
    pytest.param('imagenet_alexnet_b2', marks=pytest.mark.slow),
    'resnet20_float',
  ],
)
def test_round_trip_is_exact(case):
  _, state, _ = golden.network(case)
  arch, bits = case.rsplit('_', 1)
  bits = 32 if bits == 'float' else int(bits[1:])
  model = golden.MODELS[arch]
  variables = load_torch(state, model, bits)
  back = save_torch(variables, model, bits)
  assert list(back) == list(state)  # in the official order
  expected = list(leaves(fs.build(model, bits)))
  folded = {leaf.key: leaf.path for leaf in expected if leaf.kind == 'folded'}
  keys = {leaf.path: leaf.key for leaf in expected if leaf.kind == 'copy'}
  moved = {
    keys[path]: state[keys[path]] - state[key] for key, path in folded.items()
  }
  assert bool(folded) == (arch not in ('resnet20', 'resnet18'))
  for key, value in state.items():
    if key in folded:
      value = np.zeros_like(value)
    elif key.endswith('num_batches_tracked'):
      value = np.zeros((), np.int64)
    value = moved.get(key, value)
    np.testing.assert_array_equal(back[key], value, key)
    assert back[key].dtype == value.dtype
  again = load_torch(back, model, bits)
  assert _same(variables, again)


@pytest.fixture(scope='module')
def state():
  return golden.network('resnet20_b2')[1]


def test_tree_is_that_of_init(state):
  network = fs.build('cifar_resnet20', bits=2)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  fresh = jax.eval_shape(network.init, jax.random.key(0), images)
  loaded = load_torch(state, 'cifar_resnet20', 2)
  assert jax.tree.structure(fresh) == jax.tree.structure(loaded)


def test_prefix_wrapper_and_counters(state):
  plain = load_torch(state, 'cifar_resnet20', 2)
  prefixed = {'module.' + key: value for key, value in state.items()}
  wrapped = {'epoch': 3, 'state_dict': prefixed, 'best_prec': 88.0}
  bare = {k: v for k, v in state.items() if not k.endswith('batches_tracked')}
  for other in (prefixed, wrapped, bare):
    assert _same(plain, load_torch(other, 'cifar_resnet20', 2))


def test_npz_and_dtype(state, tmp_path):
  path = tmp_path / 'net.npz'
  variables = load_torch(state, 'cifar_resnet20', 2)
  save_torch(variables, 'cifar_resnet20', 2, path)
  assert _same(variables, load_torch(path, 'cifar_resnet20', 2))
  wide = {k: np.asarray(v, np.float64) for k, v in state.items()}
  with jax.enable_x64(True):
    leaves_ = jax.tree.leaves(load_torch(wide, 'cifar_resnet20', 2))
  assert {leaf.dtype for leaf in leaves_} == {np.dtype('float64')}


def test_classes_and_channels_are_the_files():
  network = fs.build('small_resnet8', bits=3, classes=4)
  images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), shapes)
  state = save_torch(variables, 'small_resnet8', 3)
  assert state['layer4.block.2.weight'].shape == (4, 64)
  assert _same(variables, load_torch(state, 'small_resnet8', 3))


def _without(key):
  return lambda state: state.pop(key)


def _with(key, value):
  return lambda state: state.update({key: value})


@pytest.mark.parametrize(
  ('corrupt', 'model', 'bits', 'key', 'why'),
  [
    (_without('layer2.1.part1.bn.running_var'), 'cifar_resnet20', 2,
     'layer2.1.part1.bn.running_var', 'missing'),
    (_without('layer4.block.2.bias'), 'cifar_resnet20', 2,
     'layer4.block.2.bias', 'missing'),
    (_with('layer9.weight', np.zeros(3)), 'cifar_resnet20', 2,
     'layer9.weight', 'not in'),
    (_with('layer0.block.0.bias', np.zeros(16)), 'cifar_resnet20', 2,
     'layer0.block.0.bias', 'not in'),
    (_with('layer1.0.part1.conv.weight', np.zeros((16, 16, 1, 1), 'f')),
     'cifar_resnet20', 2, 'layer1.0.part1.conv.weight', 'shape'),
    (_with('layer0.block.0.weight', np.zeros((16, 2, 3, 3), 'f')),
     'cifar_resnet20', 2, 'layer0.block.0.weight', 'shape'),
    (_with('layer4.block.2.bias', np.zeros(9, 'f')), 'cifar_resnet20', 2,
     'layer4.block.2.weight', 'shape'),
    (_with('layer0.block.1.bias', np.zeros(16, int)), 'cifar_resnet20', 2,
     'layer0.block.1.bias', 'dtype'),
    (_with('layer1.0.part1.relu.act_alpha', np.float32(-0.1)),
     'cifar_resnet20', 2, 'layer1.0.part1.relu.act_alpha', 'positive'),
    (_with('layer1.0.part1.relu.act_alpha', np.float32(np.nan)),
     'cifar_resnet20', 2, 'layer1.0.part1.relu.act_alpha', 'positive'),
    (lambda state: None, 'cifar_alexnet', 2, 'layer1.block.0.weight',
     'missing'),
    (lambda state: None, 'cifar_resnet32', 2, 'layer1.3.part1.conv.weight',
     'missing'),
    (lambda state: None, 'cifar_resnet20', 32, 'layer0.block.2.act_alpha',
     'not in'),
  ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_its_key(
  state, corrupt, model, bits, key, why
):
  state = dict(state)
  corrupt(state)
  with pytest.raises(fs.UserError) as error:
    load_torch(state, model, bits)
  assert repr(key) in str(error.value)
  assert why in str(error.value)
  one_line(error)


def test_a_negative_weight_alpha_is_valid(state):
  key = 'layer1.0.part1.conv.weight_alpha'
  load_torch({**state, key: np.float32(-1.4)}, 'cifar_resnet20', 2)


@pytest.mark.once
def test_variables_of_another_model_are_refused(state):
  variables = load_torch(state, 'cifar_resnet20', 2)
  for model, bits in (
    ('cifar_resnet32', 2),
    ('cifar_resnet20', 32),
    ('cifar_alexnet', 2),
  ):
    with pytest.raises(fs.UserError, match='another model'):
      save_torch(variables, model, bits)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
  for name in ('none.npz', 'none.pth'):
    with pytest.raises(fs.UserError, match='no such file'):
      load_torch(tmp_path / name, 'cifar_resnet20', 2)
  broken = tmp_path / 'broken.npz'
  broken.write_bytes(b'PK\3\4 this is no archive')
  with pytest.raises(fs.UserError, match='cannot be read'):
    load_torch(broken, 'cifar_resnet20', 2)
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'net.pth').write_bytes(b'')
  with pytest.raises(fs.UserError, match=r"pip install 'fastsnn_jax\[torch\]'"):
    load_torch(tmp_path / 'net.pth', 'cifar_resnet20', 2)


def test_pytorch_files(state, tmp_path):
  torch = pytest.importorskip('torch')
  variables = load_torch(state, 'cifar_resnet20', 2)
  save_torch(variables, 'cifar_resnet20', 2, tmp_path / 'net.pth.tar')
  assert _same(
    variables, load_torch(tmp_path / 'net.pth.tar', 'cifar_resnet20', 2)
  )
  tensors = {
    k: torch.nn.Parameter(torch.tensor(v), False) for k, v in state.items()
  }
  assert _same(variables, load_torch(tensors, 'cifar_resnet20', 2))
  (tmp_path / 'broken.pth').write_bytes(b'no pickle')
  with pytest.raises(fs.UserError, match='cannot be read'):
    load_torch(tmp_path / 'broken.pth', 'cifar_resnet20', 2)
  torch.save([1, 2], tmp_path / 'list.pth')
  with pytest.raises(fs.UserError, match='state_dict is needed'):
    load_torch(tmp_path / 'list.pth', 'cifar_resnet20', 2)
