"""A function as a network: its values, its neurons and its rules."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.training import devices

import fastsnn_jax as fs
from fastsnn_jax import distributed
from fastsnn_jax.evaluation.evaluate import evaluate

BITS, STEPS = 3, 7


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64():
    yield


def conv(x, kernel, stride=1):
  return lax.conv_general_dilated(
    x, kernel, (stride,) * 2, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def pool(x):
  window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, 'SAME')


def model(params, x):
  """Max pooling, a skip connection, two heads, a dictionary as output."""
  act = functools.partial(fs.quantize_activation, bits=BITS)
  theta = jnp.exp(params['log_theta'])  # any computation over parameters
  x = act(conv(x, params['stem']) + params['bias'], theta[0], name='stem')
  x = pool(x)
  y = act(conv(x, params['body']) * 0.9 - params['bias'], theta[1], name='body')
  x = act(conv(y, params['body']) + x, theta[2], name='sum')
  flat = x.mean((1, 2))
  return {'logits': flat @ params['head'], 'map': (conv(x, params['body']),)}


def parameters(seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  draw = lambda key, *shape: jax.random.normal(key, shape, jnp.float64)  # noqa: E731
  return {
    'stem': draw(keys[0], 3, 3, 2, 4) * 0.3,
    'body': draw(keys[1], 3, 3, 4, 4) * 0.3,
    'bias': draw(keys[2], 4) * 0.1,
    'head': draw(keys[3], 4, 5),
    'log_theta': jnp.array([0.0, 0.1, -0.1], jnp.float64),
  }


@functools.cache
def made():
  with jax.enable_x64():
    images = jax.random.normal(jax.random.key(9), (3, 8, 8, 2), jnp.float64)
    return *fs.from_function(model, parameters(), images, classes=5), images


def apart(found, wanted):
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_its_sites_have_the_names_and_the_order_of_the_function():
  network, variables, _ = made()
  assert [site.name for site in network.firing] == ['stem', 'body', 'sum']
  assert network.neuron == fs.QuantRelu(BITS)
  thetas = network.thetas(variables)
  np.testing.assert_allclose(thetas['body'].item(), np.exp(0.1))


def test_the_quantised_network_is_the_function():
  network, variables, images = made()
  output, activations = network.apply(variables, images)
  assert output.keys() == {'logits', 'map'}
  assert apart(output, model(parameters(), images)) < 1e-12
  assert activations['sum'].shape == (3, 4, 4, 4)


def test_settled_equals_the_function():
  network, variables, images = made()
  spiking = fs.to_spiking(network, 'settled', settle=24)
  output, spikes = spiking.apply(variables, images)
  assert apart(output, model(parameters(), images)) < 1e-9
  assert spikes['stem'].shape == (3, STEPS + 24, 8, 8, 4)
  over_time = spiking.output_over_time(variables, spikes)
  assert over_time['logits'].shape == (3, STEPS + 24, 5)
  assert apart(jax.tree.map(lambda x: x[:, -1], over_time), output) < 1e-9


@pytest.mark.parametrize('mode', ['unsigned', 'signed'])
def test_two_layers_are_what_the_neuron_gives_by_hand(mode):
  def two(params, x):
    x = fs.quantize_activation(x @ params['a'] + 0.2, 1.0, 2, 'first')
    x = fs.quantize_activation(x @ params['b'] - 0.1, 0.7, 2, 'second')
    return x @ params['c'] + 0.5

  keys = jax.random.split(jax.random.key(0), 4)
  shapes = {'a': (5, 6), 'b': (6, 6), 'c': (6, 3)}
  params = {
    name: jax.random.normal(key, shape)
    for key, (name, shape) in zip(keys, shapes.items(), strict=False)
  }
  x = jax.random.normal(keys[3], (4, 5))
  network, variables = fs.from_function(two, params, x)
  output, spikes = fs.to_spiking(network, mode).apply(variables, x)
  fire = functools.partial(fs.integrate_and_fire, signed=mode == 'signed')
  first = jnp.broadcast_to(x @ params['a'] + 0.2, (3, 4, 6))
  first = fire(first, 1.0)
  second = fire(first @ params['b'] - 0.1, 0.7) * 0.7
  assert np.any(second < 0) == (mode == 'signed')
  np.testing.assert_allclose(spikes['first'], first.swapaxes(0, 1))
  np.testing.assert_allclose(spikes['second'], second.swapaxes(0, 1))
  np.testing.assert_allclose(output, second.mean(0) @ params['c'] + 0.5)


def wrapped(kind):
  """A model of which a part is called in some way."""

  def layer(params, x):
    x = x @ params['w'] + params['b']
    return fs.quantize_activation(x, params['alpha'], 2, name='layer')

  def run(params, x):
    one = functools.partial(layer, params)
    match kind:
      case 'jit':
        one = jax.jit(one)
      case 'remat':
        one = jax.checkpoint(one)
      case 'vmap':
        one = jax.vmap(one)
      case 'custom_jvp':
        one = jax.custom_jvp(one)
        one.defjvp(lambda p, t: (one(*p), t[0] @ params['w']))
      case 'custom_vjp':
        inner, one = one, jax.custom_vjp(one)
        one.defvjp(lambda x: (inner(x), None), lambda _, g: (g,))
      case 'scan':
        stacked = jax.tree.map(lambda a: jnp.stack([a, 0.9 * a]), params)

        def step(x, p):
          x = layer(p, x)
          return x, x.sum(-1)

        x, sums = lax.scan(step, x, stacked)
        return x + sums.T[:, 1:]
      case 'fori':
        return lax.fori_loop(0, 2, lambda i, x: one(x), x)
      case 'cond':
        x = lax.cond(params['b'][0] > 0, lambda x: 2 * x, lambda x: x, one(x))
      case 'platform':
        x = lax.platform_dependent(
          one(x), cpu=lambda x: 2 * x, default=lambda x: 2 * x + 0
        )
    return one(x) @ params['w']

  return run


@pytest.mark.parametrize(
  'kind',
  [
    *('plain', 'jit', 'remat', 'vmap', 'custom_jvp', 'custom_vjp', 'scan'),
    *('fori', 'cond', 'platform'),
  ],
)
def test_calls_and_loops_are_walked_into(kind):
  keys = jax.random.split(jax.random.key(1), 3)
  params = {
    'w': jax.random.normal(keys[0], (4, 4)),
    'b': jax.random.normal(keys[1], (4,)) * 0.1,
    'alpha': jnp.array(1.3),
  }
  x = jax.random.normal(keys[2], (5, 4))
  function = wrapped(kind)
  network, variables = fs.from_function(function, params, x)
  once = kind in ('plain', 'jit', 'remat', 'vmap', 'custom_jvp', 'custom_vjp')
  assert len(network.firing) == (1 if once else 2)
  assert once or network.firing[1].name == 'layer_2'
  spiking = fs.to_spiking(network, 'settled', allow_differences=False)
  output, _ = spiking.apply(variables, x)
  assert apart(output, function(params, x)) < 1e-9


def test_a_clip_for_each_model_of_a_vmap():
  def function(params, x):
    one = lambda a: fs.quantize_activation(x, a, 2).sum(-1)  # noqa: E731
    return jax.vmap(one)(params).T

  params = jnp.array([0.5, 1.0, 2.0])
  x = jax.random.normal(jax.random.key(0), (6, 4))
  network, variables = fs.from_function(function, params, x)
  (theta,) = network.thetas(variables).values()
  assert theta.shape == (3, 1, 1)
  output, _ = network.apply(variables, x)
  assert apart(output, function(params, x)) < 1e-12


def test_a_transformer_is_equal_once_it_settled():
  def block(params, x):
    act = functools.partial(fs.quantize_activation, bits=3)
    x = act(x @ params['in'], 1.0)
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
      x.var(-1, keepdims=True) + 1e-2
    )
    q, k, v = (act(y @ params[name] + 0.3, 1.5) for name in 'qkv')
    scores = jax.nn.softmax(jnp.einsum('bnc,bmc->bnm', q, k) / 2)
    x = act(x + scores @ v + 0.0137 * params['in'][0], 2.0)
    x = act(x + jax.nn.gelu(x @ params['q']), 2.0)
    return jax.nn.log_softmax(x.mean(1) @ params['k'])

  keys = jax.random.split(jax.random.key(2), 5)
  draw = lambda key, *shape: jax.random.normal(key, shape) * 0.5  # noqa: E731
  params = {k: draw(key, 8, 8) for k, key in zip('qkv', keys, strict=False)}
  params['in'] = draw(keys[3], 8, 8)
  x = jax.random.normal(keys[4], (4, 6, 8))
  network, variables = fs.from_function(block, params, x)
  spiking = fs.to_spiking(network, 'settled', settle=24)
  output, _ = spiking.apply(variables, x)
  assert apart(output, block(params, x)) < 1e-9
  with pytest.raises(fs.UserError, match=r'test_function\.py:\d+: .*site'):
    fs.to_spiking(network, allow_differences=False)


def test_a_gradient_through_spikes():
  network, variables, images = made()

  def gradient(network):
    def loss(variables):
      output, _ = network.apply(variables, images)
      return jnp.square(output['logits']).sum()

    return jax.grad(loss)(variables)

  grads = gradient(fs.to_spiking(network))
  assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))
  # The read-out sees mean spikes, which are the levels once settled.
  settled, wanted = map(gradient, (fs.to_spiking(network, 'settled'), network))
  heads = [x['params']['head'] for x in (settled, wanted, grads)]
  assert apart(heads[0], heads[1]) < 1e-9
  assert apart(heads[2], heads[1]) > 1e-3


def test_seeds_by_vmap():
  network, _, images = made()
  spiking = fs.to_spiking(network)
  seeds = [{'params': parameters(seed)} for seed in range(3)]
  together = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
  many, spikes = jax.vmap(spiking.apply, (0, None))(together, images)
  for i, variables in enumerate(seeds):
    one, own = spiking.apply(variables, images)
    assert apart(jax.tree.map(lambda x, i=i: x[i], many), one) < 1e-9
    assert apart(jax.tree.map(lambda x, i=i: x[i], spikes), own) < 1e-9


def test_its_spiking_twin_is_exported():
  network, variables, images = made()
  spiking = fs.to_spiking(network)
  run = jax.jit(lambda variables, images: spiking.apply(variables, images)[0])
  written = jax.export.export(run)(variables, images).serialize()
  exported = jax.export.deserialize(written)
  wanted = run(variables, images)
  assert apart(exported.call(variables, images), wanted) < 1e-12
  with pytest.raises(ValueError, match='shape'):  # of a batch of its size
    exported.call(variables, images[:1])


def test_devices_share_a_batch_out_without_talking():
  network, variables, _ = made()
  spiking = fs.to_spiking(network, 'settled', settle=2)
  with devices(4):
    images = distributed.by_row(np.zeros((8, 8, 8, 2)))
    variables = distributed.everywhere(variables)
    program = jax.jit(spiking.apply).lower(variables, images).compile()
  assert not re.search('all-|collective-|reduce-scatter', program.as_text())


def test_other_sizes_of_batches_are_traced_anew():
  network, variables, images = made()
  output, _ = network.apply(variables, images[:1])
  whole, _ = network.apply(variables, images)
  assert apart(jax.tree.map(lambda x: x[:1], whole), output) < 1e-12


def test_explain_has_every_operation():
  network, _, _ = made()
  lines = fs.explain(network)
  kinds = [(x.kind, x.name) for x in lines]
  assert [x for x in kinds if x[0] == 'neuron'] == [
    ('neuron', name) for name in ('stem', 'body', 'sum')
  ]
  assert ('static', 'conv_general_dilated') in kinds
  assert ('spike-driven', 'reduce_window_max') in kinds
  assert ('spike-driven', 'conv_general_dilated') in kinds
  assert 'difference' not in dict(kinds)
  assert 'test_function.py:' in str(lines)
  assert str(lines).count('\n') == len(lines) - 1


def site(x):
  return fs.quantize_activation(x, 1.0, 2)


REFUSED = {
  'sort': lambda p, x: jnp.sort(site(x @ p)) @ p,
  'argmax': lambda p, x: jnp.argmax(site(x @ p), -1),
  'while': lambda p, x: lax.while_loop(
    lambda x: x.sum() < 9, lambda x: x + 1, site(x @ p)
  ),
  'scan': lambda p, x: lax.scan(
    lambda c, i: (c @ p, None), site(x), None, length=1000
  )[0],
  'cond': lambda p, x: lax.cond(
    site(x)[0, 0] > 0, lambda x: x, lambda x: 2 * x, site(x)
  ),
  'random_bits': lambda p, x: (
    site(x) * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
  ),
  'gather': lambda p, x: p[site(x).astype(int)],
  'complex': lambda p, x: jnp.fft.fft(site(x)).real,
  'callback': lambda p, x: jax.pure_callback(
    lambda x: x, jax.ShapeDtypeStruct((2, 3), p.dtype), site(x)
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_has_no_meaning_for_spikes_is_refused(name):
  place = r'test_function\.py:\d+: .*; '
  with pytest.raises(fs.UserError, match=place):
    fs.from_function(REFUSED[name], jnp.ones((3, 3)), jnp.ones((2, 3)))


@pytest.mark.parametrize(
  ('function', 'params', 'message'),
  [
    (lambda p, x: x @ p, jnp.ones((3, 3)), 'no fs.quantize_activation'),
    (
      lambda p, x: fs.quantize_activation(site(x), 1.0, 3),
      jnp.ones(3),
      "'site' with 4 levels, 'site_2' with 8 levels",
    ),
    (lambda p, x: site(x), {'a': jnp.ones(3), 'b': 'text'}, 'hold a str'),
    (
      lambda p, x: fs.quantize_activation(x, site(x).max(), 2),
      jnp.ones(3),
      'alpha depends on spikes',
    ),
    (3, jnp.ones(3), 'a hashable function'),
  ],
)
def test_what_is_no_network_is_refused(function, params, message):
  with pytest.raises(fs.UserError, match=message):
    fs.from_function(function, params, jnp.ones((2, 3)))


def test_differences_are_refused_where_they_are_made():
  def function(params, x):
    x = site(x @ params)
    return site(jnp.tanh(x)) @ params

  network, _ = fs.from_function(function, jnp.eye(3), jnp.ones((2, 3)))
  with pytest.raises(fs.UserError, match=r'\.py:\d+: tanh: it is neither'):
    fs.to_spiking(network, allow_differences=False)
  with pytest.raises(fs.UserError, match='tanh'):
    fs.from_function(
      function, jnp.eye(3), jnp.ones((2, 3)), allow_differences=False
    )


def test_other_variables_and_images_are_refused():
  network, variables, images = made()
  less = {'params': {'stem': variables['params']['stem']}}
  with pytest.raises(fs.UserError, match='differ from those of its function'):
    network.apply(less, images)
  with pytest.raises(fs.UserError, match='images of shape'):
    network.apply(variables, images[0])
  with pytest.raises(fs.UserError, match='remat=True: call'):
    network.apply(variables, images, train=True, remat=True)


def test_it_is_evaluated_and_compared_and_answers():
  def classifier(params, x):
    return model(params, x)['logits']

  images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 2), np.uint8)
  fields = {'mean': (0.5, 0.5), 'std': (0.25, 0.25)}
  shown = jnp.ones((1, 8, 8, 2), jnp.float32)
  params = jax.tree.map(jnp.float32, parameters())
  network, variables = fs.from_function(classifier, params, shown, **fields)
  assert network.classes == tuple('01234')
  labels = fs.classify(network, variables, images)
  data = {'image': images, 'label': labels}
  assert evaluate(network, variables, data)['accuracy'] == 1
  settled = fs.to_spiking(network, 'settled')
  assert evaluate(settled, variables, data)['accuracy'] == 1
  rows = fs.compare(network, variables, {'settled': (settled, variables)}, data)
  row = rows['settled']
  assert row['agreement'] == 1
  assert row['not_quiet'] == 0
  assert row['steps'] > STEPS
  assert len(row['over_time']) == STEPS + 1
  assert row['max_logit_difference'] < 1e-5
  assert 'graded' not in row
  macs = 64 * 9 * 2 * 4 + 16 * 9 * 4 * 4 * 2 + 4 * 5
  assert row['macs_per_image'] == macs
