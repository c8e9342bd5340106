"""What state_dicts and files of other people hold, and what is refused."""

import argparse
import contextlib
import gzip
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.jobs import one_line

import fastsnn_jax as fs
from fastsnn_jax.torch_interop import files, wrappers
from fastsnn_jax.torch_interop.names import leaves

MODEL = 'small_resnet8'
WEIGHT = 'layer1.0.part1.conv.weight'


def made(bits, model=MODEL, side=8, channels=1, **fields):
  network, draw = fs.build(model, bits, **fields), np.random.default_rng(bits)
  image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), image)
  variables = jax.tree.map(
    lambda x: draw.uniform(0.5, 1, x.shape).astype(np.float32), shapes
  )
  return variables, fs.save_torch(variables, model, bits)


VARIABLES, STATE = made(2)


def assert_read(source, bits=2, variables=VARIABLES):
  found = fs.load_torch(source, MODEL, bits)
  jax.tree.map(np.testing.assert_array_equal, found, variables)


def refused(source, match, bits=2):
  with pytest.raises(fs.UserError, match=match) as caught:
    fs.load_torch(source, MODEL, bits)
  line = one_line(caught)
  assert '\x1b' not in line
  assert 'weights_only' not in line
  assert 'allow_pickle' not in line
  return line


@pytest.mark.parametrize(
  ('kind', 'dtype'),
  [
    *(('mapping', x) for x in ('float16', 'bfloat16', 'float8_e4m3fn')),
    *(('npz', x) for x in ('float16', 'bfloat16')),
  ],
)
@pytest.mark.parametrize('part', ['weight', 'act_alpha', 'running_var', ''])
def test_half_precision_is_read_as_float32(tmp_path, dtype, part, kind):
  half = np.dtype(getattr(ml_dtypes, dtype, dtype))
  state = {
    k: x.astype(half) if x.dtype.kind == 'f' and k.endswith(part) else x
    for k, x in STATE.items()
  }
  if kind == 'npz':
    np.savez(tmp_path / 'half.npz', **state)
  found = fs.load_torch(
    state if kind == 'mapping' else tmp_path / 'half.npz', MODEL, 2
  )
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype('float32')}
  theta = np.float32(state['layer0.block.2.act_alpha'])
  assert found['params']['layer0']['theta'] == theta


def test_other_byte_orders_and_wide_floats_are_read():
  assert_read(
    {k: x.astype(x.dtype.newbyteorder('>')) for k, x in STATE.items()}
  )
  assert_read({k: np.longdouble(x) for k, x in STATE.items()})


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize('part', ['conv.weight', 'bn.bias', 'running_mean'])
def test_what_is_not_finite_is_refused_by_its_key(part, value):
  key = next(k for k in STATE if k.endswith(part))
  wrong = STATE[key].astype(np.float64)
  wrong.flat[1] = value
  assert repr(key) in refused({**STATE, key: wrong}, 'finite')


@pytest.mark.parametrize(
  ('part', 'value'),
  [('running_var', -1e-3), ('running_var', np.nan), ('weight_alpha', 0.0),
   ('weight_alpha', np.inf), ('act_alpha', np.inf), ('act_alpha', 1e-60)],
)  # fmt: skip
def test_what_no_layer_can_use_is_refused_by_its_key(part, value):
  key = next(k for k in STATE if k.endswith(part))
  wrong = np.full_like(STATE[key], value, np.float64)
  assert repr(key) in refused({**STATE, key: wrong}, 'not')


@pytest.mark.parametrize(
  'wrap',
  [
    lambda s: {'net': s, 'acc': 88.0, 'epoch': 3},
    lambda s: {'model': s, 'optimizer': {'state': {0: {'exp': np.ones(2)}}}},
    lambda s: {'checkpoint': {'model': {'state_dict': s}}},
    lambda s: {'ema': s},
    lambda s: {'model_ema': {k: 0 * x for k, x in s.items()}, 'model': s},
    lambda s: {'my_network': s, 'optim': {'m': np.ones(2)}},
    lambda s: {'params': s, 'class_weights': np.ones(10)},
    lambda s: types.SimpleNamespace(state_dict=lambda: s),
    lambda s: {'model': types.SimpleNamespace(state_dict=lambda: s)},
  ],
)
def test_wrappers_are_taken_off(wrap):
  assert_read(wrap(STATE))


@pytest.mark.parametrize(
  'prefix',
  ['_orig_mod.', 'module.', 'model.', 'backbone.', 'module._orig_mod.',
   '_orig_mod.module.module.', 'model.backbone.module.', 'student.encoder.'],
)  # fmt: skip
def test_prefixes_are_taken_off(prefix):
  assert_read({'net': {prefix + key: x for key, x in STATE.items()}})


def test_prefixes_inside_and_of_a_detector_are_taken_off():
  assert_read(
    {k.replace('.part', '._orig_mod.part'): x for k, x in STATE.items()}
  )
  variables, state = made(2, 'small_yolo', 32, 3, classes=4)
  for prefix in ('module.', 'model.', 'backbone.'):
    named = {prefix + key: x for key, x in state.items()}
    found = fs.load_torch(named, 'small_yolo', 2)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_torchvisions_names_of_a_float_network_are_read():
  variables, state = made(32)
  theirs = {}
  for key, x in state.items():
    for ours, name in (
      ('layer0.block.0', 'conv1'), ('layer0.block.1', 'bn1'),
      ('.part2.downsample', '.downsample'), ('layer4.block.2', 'fc'),
      ('part1.conv', 'conv1'), ('part2.conv', 'conv2'), ('part1.bn', 'bn1'),
      ('part2.bn', 'bn2'),
    ):  # fmt: skip
      key = key.replace(ours, name)
    theirs[key] = x
  assert 'layer2.0.downsample.0.weight' in theirs
  for named in (
    theirs,
    {f'module.{k}': x for k, x in theirs.items()},
    {k.replace('downsample', 'shortcut'): x for k, x in theirs.items()},
    {k.replace('fc.', 'linear.'): x for k, x in theirs.items()},
  ):
    assert_read(named, 32, variables)
  assert 'conv1.weight, bn1.weight' in refused(theirs, 'it holds', bits=2)


@pytest.mark.parametrize(
  ('source', 'match'),
  [
    ({1: np.ones(2)}, 'key .1. is a int, but keys are text'),
    ({**STATE, b'layer9.weight': np.ones(2)}, 'is a bytes'),
    ({**STATE, 'module.' + WEIGHT: STATE[WEIGHT]}, 'is there twice'),
    ({**STATE, WEIGHT: 'text'}, 'shape'),
    ({**STATE, WEIGHT: None}, 'no array of numbers'),
    ({**STATE, WEIGHT: [[1.0], [2.0, 3.0]]}, 'no array of numbers'),
    ({**STATE, WEIGHT: np.array([1, 'x'], object)}, 'no array of numbers'),
    ({**STATE, WEIGHT: STATE[WEIGHT].astype(complex)}, 'dtype complex128'),
    ({'generator': STATE, 'critic': STATE}, 'entries are generator, critic'),
    ({'epoch': 3, 'best': 0.5}, 'it holds epoch, best'),
    ({}, 'it holds nothing'),
    (3, 'is a int, but it must be a path'),
    (None, 'is a NoneType'),
    ([STATE], 'is a list'),
  ],
)
def test_odd_keys_and_values_are_one_line(source, match):
  refused(source, match)


def archive(*names, text=b'x'):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as members:
    for name in names:
      members.writestr(zipfile.ZipInfo(name), text)  # undated
  return file.getvalue()


@pytest.mark.parametrize('ending', ['pth', 'npz'])
@pytest.mark.parametrize(
  ('content', 'what'),
  [
    (b'', 'empty'),
    (b'<!DOCTYPE html><html>Quota exceeded</html>', 'HTML'),
    (b'\n <?xml version="1.0"?><Error/>', 'XML'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'LFS'),
    (b'Not found', 'a text'),
    (gzip.compress(b'x', mtime=0), 'packed'),
    (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    (b'\x93NUMPY\x01\x00', 'single array'),
    (b'\x40\0\0\0\0\0\0\0{"__metadata__":{}}', 'safetensors'),
    (archive('word/document.xml'), 'zip file of something else'),
    (archive('a/data.pkl', 'a/constants.pkl'), 'TorchScript'),
    (b'PK\3\4 cut', 'zip file of something else'),
    (b'\x80\x02cut', 'damaged'),
  ],
)
def test_a_file_of_something_else_is_told(
  tmp_path, monkeypatch, ending, content, what
):
  monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace())
  path = tmp_path / f'net.{ending}'
  path.write_bytes(content)
  line = refused(path, f'cannot be read as a checkpoint .*{what}')
  assert str(path) in line


def careful_torch():
  """A module whose `load` is called with the check, and finds an object."""

  def load(path, *, weights_only, map_location):
    assert weights_only is True
    raise pickle.UnpicklingError('Re-run with weights_only=False')

  serialization = types.SimpleNamespace(
    safe_globals=lambda kinds: contextlib.nullcontext()
  )
  return types.SimpleNamespace(load=load, serialization=serialization)


class Evil:
  def __reduce__(self):
    return exec, ('raise SystemExit',)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
  ('value', 'name'),
  [
    (argparse.Namespace(lr=1), 'argparse.Namespace'),
    (Evil(), 'builtins.exec'),
    (types.SimpleNamespace(a=1), 'types.SimpleNamespace'),
  ],
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_an_object_in_a_pickle_is_named_and_not_made(
  tmp_path, monkeypatch, zipped, value, name, protocol
):
  monkeypatch.setitem(sys.modules, 'torch', careful_torch())
  content = {'state_dict': OrderedDict(a=1), 'args': value}
  content = pickle.dumps(content, protocol)
  content = content.replace(b'__builtin__', b'builtins')
  path = tmp_path / 'net.pth'
  path.write_bytes(archive('net/data.pkl', text=content) if zipped else content)
  refused(path, f'it holds a {name}, an object whose code')


def test_an_object_in_a_npz_is_not_made(tmp_path):
  np.savez(tmp_path / 'net.npz', a=np.array([Evil()], object))
  refused(tmp_path / 'net.npz', 'cut or damaged')


def test_a_npz_under_another_name_and_one_with_a_key_twice(tmp_path):
  np.savez(tmp_path / 'net.npz', **STATE)
  (tmp_path / 'net.npz').rename(tmp_path / 'net.pth')
  assert_read(tmp_path / 'net.pth')
  with pytest.warns(UserWarning, match='Duplicate name'):
    twice = archive('a.npy', 'a.npy')
  (tmp_path / 'twice.npz').write_bytes(twice)
  refused(tmp_path / 'twice.npz', "holds 'a.npy' twice")


class Reader(pickle.Unpickler):
  """Finds what torch.load would find of NumPy."""

  def find_class(self, module, name):
    found = {full: kind for kind, full in files._STAND_INS}
    plain = {'_codecs.encode': str.encode, '__builtin__.bytes': bytes}
    if f'{module}.{name}' in plain:
      return plain[f'{module}.{name}']
    return found[f'{module}.{name}']


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize(
  'array',
  [np.arange(6.0).reshape(2, 3), np.ones((2, 3), '>f4', 'F'), np.float32(3),
   np.zeros(0, np.int8), np.array(True), np.ones(3, np.float16)],
)  # fmt: skip
def test_arrays_of_numpy_in_a_pickle_are_read(array, protocol):
  data = pickle.dumps(array, protocol)
  found = files.as_array('key', Reader(io.BytesIO(data)).load())
  np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
  'array',
  [np.array([{}], object), np.array(['a']), np.zeros(2, 'V8'),
   np.zeros(2, [('a', 'f4'), ('b', 'i2')]), np.zeros(2, 'M8[s]'),
   np.zeros(2, np.dtype(('f4', (2,))))],
)  # fmt: skip
def test_other_arrays_of_numpy_in_a_pickle_are_not_made(array):
  if array.dtype.hasobject:
    array = files._Array()
    array.__setstate__((1, (1,), files._Dtype('O'), False, [{}]))
  elif array.dtype.kind != 'f':
    array = Reader(io.BytesIO(pickle.dumps(array, 2))).load()
  else:
    array = files._scalar(files._Dtype('(2,)f4'), b'')
  with pytest.raises(fs.UserError, match='no array of numbers'):
    files.as_array('key', array)


def test_pytorch_reads_numpy_by_the_stand_ins_only(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'net.pth'
  tensors = {k: torch.tensor(x) for k, x in STATE.items()}
  best = {
    'best': np.float64(3),
    'name': np.str_('x'),
    'record': np.zeros(2, 'V8'),
  }
  for content in ({'state_dict': tensors, **best}, {'net': STATE, **best}):
    torch.save(content, path)
    assert_read(path)
  for half in (torch.float16, torch.bfloat16):
    torch.save({k: x.to(half) for k, x in tensors.items()}, path)
    found = fs.load_torch(path, MODEL, 2)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype('float32')}
  odd = {**tensors, WEIGHT: torch.ones(2, 2, device='meta')}
  refused(odd, 'no array of numbers')
  torch.save(torch.nn.Conv2d(1, 1, 1), path)
  refused(path, r'it holds a torch\.nn\.modules\.conv\.Conv2d')


def test_every_name_of_a_layer_is_free_of_what_is_taken_off():
  for model in fs.models():
    for leaf in leaves(fs.build(model, 2)):
      assert not wrappers._ADDED & set(leaf.key.split('.'))
