"""What takes a table takes a function: files, calibration, fine-tuning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs

SHOWN = jax.random.normal(jax.random.key(3), (48, 4, 4, 2))
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
  'first': [jax.random.normal(KEYS[0], (32, 8)) * 0.2, jnp.full(8, 0.1)],
  'second': (jax.random.normal(KEYS[1], (8, 8)) * 0.4, None),
  'head': jax.random.normal(KEYS[2], (8, 3)),
}


def floating(params, x):
  (w, b), (v, _) = params['first'], params['second']
  x = jax.nn.relu6(x.reshape(len(x), -1) @ w + b)
  x = jax.nn.relu(x @ v) + x
  return jnp.clip(x, 0, 4) @ params['head']


def quantised(params, x):
  (w, b), (v, _) = params['first'], params['second']
  x = x.reshape(len(x), -1) @ w + b
  x = fs.quantize_activation(x, params['theta'], 2, name='first')
  x = fs.quantize_activation(x @ v, params['theta'], 2, name='second') + x
  return (
    fs.quantize_activation(x, params['theta'], 2, name='third')
    @ (params['head'])
  )


THETA = {**PARAMS, 'theta': jnp.float32(1.1)}
FIELDS = {'mean': (0.5, 0.5), 'std': (0.25, 0.25)}


def test_it_is_saved_and_loaded_with_its_function(tmp_path):
  fields = {**FIELDS, 'precision': 'highest'}
  network, variables = fs.from_function(quantised, THETA, SHOWN, **fields)
  spiking = fs.to_spiking(network, 'settled')
  fs.save(tmp_path, spiking, variables)
  loaded, tree = fs.load(tmp_path, function=quantised)
  assert loaded == spiking
  assert jax.tree.structure(tree) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, tree, variables)
  like = jax.tree.map(jnp.zeros_like, THETA)
  _, tree = fs.load(tmp_path, function=quantised, params=like)
  jax.tree.map(np.testing.assert_array_equal, tree, variables)
  with pytest.raises(fs.UserError, match='give it again'):
    fs.load(tmp_path)
  with pytest.raises(fs.UserError, match='saved with the sites'):
    fs.load(
      tmp_path,
      function=lambda p, x: fs.quantize_activation(
        quantised(p, x), p['theta'], 2
      ),
    )
  with pytest.raises(fs.UserError, match='which was not saved'):
    fs.load(tmp_path, function=quantised, params={'a': jnp.ones(3)})


@pytest.mark.parametrize('method', ['mse', 'percentile', 'max'])
def test_rectifiers_become_sites(method, tmp_path):
  network, variables = fs.calibrate(
    floating, PARAMS, SHOWN, bits=8, method=method, **FIELDS
  )
  assert [site.name for site in network.firing] == ['relu', 'relu_2', 'relu_3']
  thetas = {k: float(v) for k, v in variables['params']['theta'].items()}
  assert 0 < thetas['relu'] <= 6
  assert thetas['relu_3'] <= 4
  output, activations = network.apply(variables, SHOWN)
  wanted = floating(PARAMS, SHOWN)
  scale = float(jnp.abs(wanted).max())
  assert float(jnp.abs(output - wanted).max()) < 0.06 * scale
  assert activations['relu_3'].shape == (48, 8)
  if method != 'mse':
    return
  settled = fs.to_spiking(
    network, 'settled', settle=40, allow_differences=False
  )
  answer, _ = settled.apply(variables, SHOWN)
  far = jnp.abs(answer - output).max(1) > 1e-3 * scale
  assert far.mean() < 0.05  # ties
  fs.save(tmp_path, network, variables)
  assert fs.load(tmp_path, function=floating)[0] == network

  def loss(params):
    return jnp.square(network.function(params, SHOWN) - wanted).mean()

  grads = jax.grad(loss)(variables['params'])
  assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(grads))


def test_more_bits_are_nearer_and_mse_beats_max():
  def error(bits, method):
    network, variables = fs.calibrate(floating, PARAMS, SHOWN, bits, method)
    output, _ = network.apply(variables, SHOWN)
    return float(jnp.square(output - floating(PARAMS, SHOWN)).mean())

  coarse = error(2, 'mse')
  assert error(6, 'mse') < coarse / 10
  assert coarse < error(2, 'max')


def test_a_table_is_calibrated():
  network = fs.build('small_resnet8')
  images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
  variables = network.init(jax.random.key(1), images)
  quantised, trees = fs.calibrate(network, variables, images, bits=6)
  wanted, _ = jax.jit(network.apply)(variables, images)
  output, _ = jax.jit(quantised.apply)(trees, images)
  assert float(jnp.abs(output - wanted).max() / jnp.abs(wanted).max()) < 0.1
  assert fs.to_spiking(quantised).neuron.steps == 63


def test_each_channel_has_a_theta_of_its_own():
  """By a loop over channels, each of which is a function by itself."""
  scales = jnp.array([0.1, 1.0, 30.0])

  def three(params, x):
    return (
      jax.nn.relu(x.reshape(len(x), -1) @ params['w'] * scales) @ params['v']
    )

  def one(params, x, channel):
    x = x.reshape(len(x), -1) @ params['w'] * scales
    return jax.nn.relu(x[:, channel : channel + 1])

  params = {'w': PARAMS['first'][0][:, :3], 'v': PARAMS['head'][:3]}
  network, variables = fs.calibrate(three, params, SHOWN, per_channel=True)
  theta = variables['params']['theta']['relu']
  for channel in range(3):
    part = functools.partial(one, channel=channel)
    alone = fs.calibrate(part, params, SHOWN)[1]['params']['theta']['relu']
    np.testing.assert_allclose(theta[channel], alone, rtol=1e-6)
  coarse, own = fs.calibrate(three, params, SHOWN)
  wanted = three(params, SHOWN)
  error = lambda net, v: jnp.square(net.apply(v, SHOWN)[0] - wanted).mean()  # noqa: E731
  assert error(network, variables) < error(coarse, own)
  settled = fs.to_spiking(network, 'settled')
  found = settled.settle(variables, SHOWN)
  output, _ = network.apply(variables, SHOWN)
  np.testing.assert_allclose(found.output, output, rtol=1e-4, atol=1e-4)


def test_a_table_takes_a_theta_for_each_channel(tmp_path):
  conv = functools.partial(fs.Conv, 4)
  rows = (
    fs.Layer('stem', conv()),
    fs.Layer('body', fs.Chain((fs.MaxPool(), conv())), ('stem',)),
    fs.Layer(
      'head',
      fs.Chain((fs.GlobalAveragePool(), fs.Dense(3, norm=False))),
      ('body',),
    ),
  )
  network = fs.Network(rows, fs.Relu(), **FIELDS)
  variables = network.init(jax.random.key(0), SHOWN)
  quantised, trees = fs.calibrate(network, variables, SHOWN, per_channel=True)
  assert trees['params']['body']['theta'].shape == (4,)
  wanted, _ = quantised.apply(trees, SHOWN)
  snn = fs.to_spiking(quantised, 'settled')
  for net, own in ((snn, trees), fs.fold(snn, trees)):
    found, _ = jax.jit(net.apply)(own, SHOWN)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
  fs.save(tmp_path, quantised, trees)
  loaded, tree = fs.load(tmp_path, network=quantised)
  assert loaded == quantised
  jax.tree.map(np.testing.assert_array_equal, tree, trees)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'bits': 9}, 'from 1 to 8'),
    ({'method': 'median'}, 'the methods are mse'),
    ({'images': SHOWN[:0]}, 'some hundred'),
    ({'network': lambda p, x: x.reshape(len(x), -1)}, r'no max\(x, 0\)'),
    ({'network': fs.build('small_resnet8', bits=2)}, 'a table must have'),
  ],
)
def test_what_cannot_be_calibrated_is_refused(settings, message):
  given = {
    'network': floating,
    'variables': PARAMS,
    'images': SHOWN,
    **settings,
  }
  with pytest.raises(fs.UserError, match=message):
    fs.calibrate(**given)


def test_parameters_that_are_no_arrays_are_refused_with_the_way_out():
  with pytest.raises(fs.UserError, match=r'eqx\.partition'):
    fs.calibrate(floating, {**PARAMS, 'name': 'relu'}, SHOWN)


def test_batch_norm_in_training_mode_is_refused():
  def trained(params, x):
    x = floating(params, x)
    return (x - x.mean(0)) / jnp.sqrt(jnp.maximum(x.var(0), 0) + 1e-3)

  for images in (SHOWN, SHOWN.at[1].set(0)):  # a black one hides nothing
    with pytest.raises(fs.UserError, match='with its running statistics'):
      fs.calibrate(trained, PARAMS, images)


def test_a_function_without_forward_derivatives_is_calibrated():
  @jax.custom_vjp
  def straight(x):
    return jnp.round(x)

  straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))

  def function(params, x):
    return straight(floating(params, x))

  network, _ = fs.calibrate(function, PARAMS, SHOWN)
  assert len(network.firing) == 3


def clipped(params, x):
  x = jnp.clip(x.reshape(len(x), -1) @ params['body'], 0, 6)
  return jax.nn.relu(x @ params['middle']) @ params['head']


def test_a_calibrated_function_is_evaluated_and_compared_until_quiet():
  random = np.random.default_rng(0)
  raw = random.integers(0, 256, (10, 4, 4, 1), np.uint8)
  shapes = {'body': (16, 12), 'middle': (12, 8), 'head': (8, 3)}
  params = {name: random.normal(size=s) for name, s in shapes.items()}
  params = jax.tree.map(jnp.float32, params)
  shown = jnp.float32(raw / 255 - 0.5)
  network, variables = fs.calibrate(
    clipped, params, shown, bits=3, mean=(0.5,), std=(1.0,)
  )
  settled = fs.to_spiking(network, 'settled')
  part = {'image': raw, 'label': np.arange(10) % 3}
  found = fs.compare(network, variables, {'it': (settled, variables)}, part)
  assert found['it']['agreement'] == 1
  accuracy = fs.evaluate(network, variables, part)['accuracy']
  assert fs.evaluate(settled, variables, part)['accuracy'] == accuracy


def test_a_calibrated_function_keeps_its_lines():
  network, _ = fs.calibrate(floating, PARAMS, SHOWN)
  lines = [operation.place for operation in fs.explain(network)]
  assert all('test_tools.py:' in line for line in lines), lines


@pytest.mark.parametrize('per_channel', [False, True])
def test_a_calibrated_function_is_loaded_with_its_own_parameters(
  per_channel, tmp_path
):
  network, variables = fs.calibrate(
    floating, PARAMS, SHOWN, per_channel=per_channel
  )
  fs.save(tmp_path, network, variables)
  like = jax.tree.map(jnp.zeros_like, PARAMS)
  loaded, tree = fs.load(tmp_path, function=floating, params=like)
  assert loaded == network
  jax.tree.map(np.testing.assert_array_equal, tree, variables)


@pytest.mark.parametrize('schedule', ['bias', 'sequential', 'parallel'])
def test_it_is_tuned_as_a_table_is(schedule):
  dense = lambda n: fs.Dense(n, norm=False)  # noqa: E731
  rows = (
    fs.Layer('first', dense(24)),
    fs.Layer('second', dense(24), ('first',)),
    fs.Layer('third', fs.Residual(dense(24)), ('second', 'first')),
    fs.Layer('head', dense(3), ('third',)),
  )
  table = fs.Network(rows, fs.QuantRelu(3, 2.0), **FIELDS)
  variables = table.init(jax.random.key(0), SHOWN)

  def function(params, x):
    return table.apply({'params': params}, x)[0]

  network, own = fs.from_function(
    function, variables['params'], SHOWN, **FIELDS
  )
  images = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 2), np.uint8)
  tuning = fs.Tuning(
    *(schedule, 1, 0.05), batch=16, accept='always', crop=0, flip=False
  )

  def tune(network, variables):
    spiking = fs.to_spiking(network, 'unsigned')
    data = {'image': images}
    return fs.finetune(network, spiking, variables, data, tuning)[0]['params']

  wanted, found = tune(table, variables), tune(network, own)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted
  )
  moving = 'bias' if schedule == 'bias' else 'kernel'
  before, after = (
    tree['second']['synapse'][moving] for tree in (variables['params'], found)
  )
  assert float(jnp.abs(after - before).max()) > 1e-4
