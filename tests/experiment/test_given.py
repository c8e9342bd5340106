"""`fs.train` and `fs.convert` of a function, `model=(network, variables)`."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import registered
from support.training import CLASSES, after, assert_close, drawn_data

import fastsnn_jax as fs
from fastsnn_jax.data import Shuffle
from fastsnn_jax.experiment import train as training

pytestmark = pytest.mark.once

DATA = {'train': drawn_data(), 'test': drawn_data(1)}
FIELDS = {'mean': (0.5,), 'std': (0.25,)}
ROWS = (
  fs.Layer('stem', fs.Conv(4, norm=False)),
  fs.Layer('body', fs.Conv(4, norm=False, stride=2), ('stem',)),
  fs.Layer('out', fs.Dense(CLASSES, norm=False), ('body',)),
)
TABLE = fs.Network(ROWS, fs.QuantRelu(2), classes=tuple('0123'), **FIELDS)
SHOWN = jnp.ones((1, 4, 4, 1))


def function(params, images):
  """The table, with parameters in a tuple, some of them in a list."""
  first, (body, out) = params
  params = {'stem': first, 'body': body, 'out': out}
  return TABLE.apply({'params': params, 'batch_stats': {}}, images)[0]


def start():
  """The variables that a run of the table starts from."""
  params = TABLE.init(Shuffle(0, 2).init_key, SHOWN)['params']
  return params['stem'], [params['body'], params['out']]


def given(**fields):
  return fs.from_function(function, start(), SHOWN, **{**FIELDS, **fields})


def config_of(**changes):
  return fs.Experiment(
    **{
      'data': fs.Data(batch=10, eval_batch=50, crop=0, flip=False),
      'stages': (fs.Stage(2, epochs=2, learning_rate=0.05),),
      'convert': fs.Conversion(
        mode=('signed', 'settled'), settle=6, tune='parallel'
      ),
      **changes,
    }
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('given')
  return workdir, fs.train(config_of(), workdir, data=DATA, model=given())


def load(workdir):
  return fs.load(workdir / 'ann2', function=function)


def test_a_function_trains_as_its_table_does(trained, tmp_path):
  def table(bits, classes):
    return ROWS

  with registered('plain_rows', table, size=4):
    config = config_of(model='plain_rows', select='last')
    fs.train(config, tmp_path / 'table', data=DATA)
    _, mine = fs.load(tmp_path / 'table' / 'ann2')
  config = config_of(select='last')
  model = given(mean=(), std=())  # then the data say them
  fs.train(config, tmp_path / 'function', data=DATA, model=model)
  network, variables = load(tmp_path / 'function')
  first, (body, out) = variables['params']
  theirs = {'stem': first, 'body': body, 'out': out}
  assert_close(theirs, mine['params'], rtol=1e-3, atol=1e-4)
  moved = jax.tree.map(
    lambda a, b: np.any(a != b), start(), (first, [body, out])
  )
  assert all(jax.tree.leaves(moved))  # thetas too
  assert network.classes == ('0', '1', '2', '3')


def test_what_is_trained_is_not_trained_again(trained, capsys):
  workdir, result = trained
  assert result['ann2'] > 0.5
  again = fs.train(config_of(), workdir, data=DATA, model=given())
  assert again == result
  assert 'ann2: trained already' in capsys.readouterr().err
  network, variables = load(workdir)
  assert (
    fs.evaluate(network, variables, DATA['test'])['accuracy']
    == (result['ann2'])
  )
  (row,) = fs.compare(
    network,
    variables,
    {'settled': (fs.to_spiking(network, 'settled', settle=6), variables)},
    DATA['test'],
  ).values()
  assert row['agreement'] == 1


def test_a_cut_run_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch):
  signals = contextlib.nullcontext(after(2))
  with monkeypatch.context() as patch:
    patch.setattr(training, 'signals', lambda: signals)
    with pytest.raises(SystemExit):
      fs.train(config_of(), tmp_path, data=DATA, model=given())
  assert not (tmp_path / 'ann2').exists()
  fs.train(config_of(), tmp_path, data=DATA, model=given())
  (_, whole), (_, cut) = map(load, (trained[0], tmp_path))
  jax.tree.map(np.testing.assert_array_equal, cut, whole)


def test_it_is_converted_and_reported(trained):
  workdir, result = trained
  with pytest.raises(fs.UserError, match=r'fs\.convert\(workdir, model='):
    fs.convert(workdir, data=DATA)
  found = fs.convert(workdir, data=DATA, model=given())
  written = json.loads((workdir / 'report' / 'results.json').read_text())
  assert written['model'] == found['model'] == 'function'
  rows = {(row['mode'], row['tuned']): row for row in found['rows']}
  assert rows['settled', 'none']['agreement'] == 1
  assert rows['settled', 'none']['accuracy'] == result['ann2']
  assert ('signed', 'parallel') in rows
  network, _ = fs.load(workdir / 'snn2', function=function)
  assert network.spiking


def floating(params, images):
  x = jax.nn.relu(images.reshape(len(images), -1) @ params['w'])
  return x @ params['head']


def test_a_calibrated_function_is_trained_on_with_its_thetas(tmp_path):
  keys = jax.random.split(jax.random.key(0))
  params = {
    'w': jax.random.normal(keys[0], (16, 8)) * 0.2,
    'head': jax.random.normal(keys[1], (8, CLASSES)) * 0.2,
  }
  shown = (drawn_data()['image'] / 255 - 0.5) / 0.25
  model = fs.calibrate(floating, params, shown, bits=3, **FIELDS)
  stage = fs.Stage(3, epochs=4, learning_rate=0.1, spiking=True)
  config = config_of(stages=(stage,))
  result = fs.train(config, tmp_path, data=DATA, model=model)
  network, variables = fs.load(tmp_path / 'ann3', function=floating)
  spiking = fs.to_spiking(network)
  own = fs.evaluate(spiking, variables, DATA['test'])['accuracy']
  assert result == {'ann3': own}
  assert own > fs.evaluate(*model, DATA['test'])['accuracy'] + 0.1
  old, new = model[1]['params']['theta'], variables['params']['theta']
  assert old['relu'] != new['relu']


def with_a_count(params, images):
  return function(params['of'], images) + params['count']


@pytest.mark.parametrize(
  ('model', 'changes', 'message'),
  [
    (lambda: TABLE, {}, 'of type Network, but it must be the pair'),
    (lambda: (TABLE, {}), {}, 'of type tuple, but it must be the pair'),
    (lambda: given()[:1], {}, 'of type tuple, but it must be the pair'),
    (
      lambda: (fs.to_spiking(given()[0]), given()[1]),
      {},
      'a spiking network; give the quantised one',
    ),
    (
      given,
      {'stages': (fs.Stage(32), fs.Stage(2))},
      r'stages of 32, 2 bits, but .* have 2; .*Stage\(2',
    ),
    (
      given,
      {'compute': fs.Compute(dtype='bfloat16')},
      'those of a function are its own matter',
    ),
    (
      lambda: fs.from_function(
        with_a_count, {'of': start(), 'count': jnp.int32(3)}, SHOWN
      ),
      {},
      'the parameter count is of int32, but only floats',
    ),
    (
      lambda: given(classes=('a', 'b')),
      {},
      'answers for 2 classes, but the data have 4',
    ),
    (
      lambda: fs.from_function(
        function,
        jax.tree.map(lambda x: x, start()),
        jnp.ones((1, 4, 4, 1)),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
      ),
      {},
      'does not take images of shape',
    ),
  ],
)
def test_what_cannot_be_trained_is_said_at_once(
  tmp_path, model, changes, message
):
  with pytest.raises(fs.UserError, match=message):
    fs.train(config_of(**changes), tmp_path, data=DATA, model=model())
  assert not (tmp_path / 'ann2').exists()


def test_another_function_is_another_experiment(trained):
  workdir, _ = trained
  params = {'first': start()}
  other = fs.from_function(
    lambda params, images: function(params['first'], images),
    params,
    SHOWN,
    **FIELDS,
  )
  with pytest.raises(fs.UserError):
    fs.train(config_of(), workdir, data=DATA, model=other)


def test_decay_of_kernels_is_of_all_arrays_with_two_axes():
  from fastsnn_jax.training.optimizer import make_optimizer

  stage = fs.Stage(2, epochs=1, learning_rate=1.0, weight_decay=0.5)
  config = dataclasses.replace(config_of(decay='kernels'), momentum=0.0)
  params = {'00000': jnp.ones((2, 2)), '00001': jnp.ones(2)}
  optimizer = make_optimizer(config, stage, 1)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  assert float(updates['00000'][0, 0]) == -0.5
  assert float(updates['00001'][0]) == 0
