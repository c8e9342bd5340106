"""Neurons against traces by hand, the official vectors and NumPy."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import PartitionSpec as P
from support import oracle
from support.derivatives import every_order

import fastsnn_jax as fs

MODES = {
  'signed': {},
  'unsigned': {'signed': False},
  'zero threshold': {'negative_threshold': 0.0},
  'settled': {'negative_threshold': 0.0, 'max_count': 2},
}
all_modes = pytest.mark.parametrize('mode', MODES)


@functools.cache
def simulator(mode):
  """`integrate_and_fire` under `jit`, compiled once per mode and shape."""
  return jax.jit(functools.partial(fs.integrate_and_fire, **MODES[mode]))


def identity(x):
  return x


def currents(steps, neurons=64, seed=0):
  """Random currents that drive neurons from silence to saturation."""
  random = np.random.default_rng(seed)
  drift = random.uniform(-0.3, 1.2, neurons)
  return (drift + random.normal(size=(steps, neurons))).astype(np.float32)


# --- traces by hand (reference behaviour C3.2) ------------------------------

TRACES = [
  (
    [1, 1, -1, -2, 0.5, 0, 2],
    [1, 1, -1, -1, 0, 0, 1],
    [1, 1, 0, 0, 0, 0, 0],
  ),
  (
    [-2, 3, 0, 0, -3, 1, 1],
    [0, 1, 0, 0, -1, 0, 0],
    [0, 1, 0, 0, 0, 0, 0],
  ),
  (
    [0.5, 0.5, -1.001, 0, 0, 0, 0],
    [1, 0, -1, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0],
  ),
  (
    [0.5, -0.0009, -0.0002, 0, 0, 0, 0],
    [1, 0, -1, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0],
  ),
  (
    [4, 0, 0, -4, -4, 0, 0],
    [1, 1, 1, -1, -1, -1, 0],
    [1, 1, 1, 0, 0, 0, 0],
  ),
]


@pytest.mark.parametrize(('current', 'signed', 'unsigned'), TRACES)
def test_spikes_follow_the_traces(current, signed, unsigned):
  current = np.array(current, np.float32)
  for mode, expected in (('signed', signed), ('unsigned', unsigned)):
    eager = fs.integrate_and_fire(current, 1.0, **MODES[mode])
    np.testing.assert_array_equal(eager, expected)
    np.testing.assert_array_equal(simulator(mode)(current, 1.0), expected)


def test_a_capped_neuron_holds_its_charge_back():
  # Fires twice, may not a third time, and gives one back: by hand.
  current = np.array([2, 1, 1, -3.25, 0, 0], np.float32)
  spikes = fs.integrate_and_fire(
    current, 1.0, negative_threshold=0.0, max_count=2
  )
  np.testing.assert_array_equal(spikes, [1, 1, 0, -1, 0, 0])


# --- vectors of the official code -------------------------------------------

FOLDERS = [
  *(f'rand/T{steps}/th{i}' for steps in (3, 7, 15) for i in range(6)),
  *(f'exact/T{steps}/th{i}' for steps in (3, 7, 15) for i in range(3)),
  *(f'deadband/T{steps}' for steps in (3, 7, 15)),
  *(f'first/T{steps}' for steps in (3, 7, 15)),
]


def golden_case(golden, case):
  """(steps, currents or image, theta)"""
  kind, steps, *rest = case.split('/')
  if kind == 'rand':
    theta = golden['thresholds'][int(rest[0][2:])]
  else:
    theta = {'deadband': 1.0, 'first': 1.2}.get(kind) or golden[f'{case}/th']
  return int(steps[1:]), golden[f'{case}/x'], np.float32(theta)


@pytest.mark.parametrize('case', FOLDERS)
def test_spike_trains_equal_the_official_code_s(shared, case):
  golden = np.load(shared('golden', 'spiking_neuron.npz'))
  steps, x, theta = golden_case(golden, case)
  actual = official_modes(steps, case.startswith('first'))(x, theta)
  for mode, activity in actual.items():
    np.testing.assert_array_equal(activity, golden[f'{case}/{mode}'], mode)


@functools.cache
def official_modes(steps, static):
  def run(x, theta):
    return {
      mode: fs.IntegrateAndFire(steps, signed=mode == 'signed').respond(
        identity, (x,), theta, static=(static,)
      )
      for mode in ('signed', 'unsigned')
    }

  return jax.jit(run)


@pytest.mark.parametrize('steps', [3, 7, 15])
def test_decoding_is_the_official_sum_over_steps(shared, steps):
  golden = np.load(shared('golden', 'spiking_neuron.npz'))
  decoded = fs.IntegrateAndFire(steps).decode(golden[f'last/T{steps}/x'])
  np.testing.assert_allclose(
    decoded * steps, golden[f'last/T{steps}/y'], rtol=1e-6, atol=1e-6
  )


# --- NumPy ------------------------------------------------------------------


@pytest.mark.parametrize(
  ('mode', 'steps'),
  [
    *((mode, steps) for mode in MODES for steps in (1, 3, 7, 15, 31)),
    # Spikes are packed 16 to a word: the first of a word and of a third one.
    *(('signed', steps) for steps in (16, 17, 33)),
  ],
)
@given(seed=st.integers(0, 2**32 - 1), theta=st.floats(2**-3, 4, width=32))
def test_spikes_agree_with_numpy(mode, steps, seed, theta):
  z = currents(steps, seed=seed)
  spikes = simulator(mode)(z, theta)
  assert spikes.dtype == z.dtype
  expected = oracle.integrate_and_fire(z, np.float32(theta), **MODES[mode])
  np.testing.assert_array_equal(spikes, expected)


@pytest.mark.parametrize('steps', [3, 20])
@pytest.mark.parametrize('settle', [0, 5])
@pytest.mark.parametrize('static', [True, False])
def test_withdrawn_input_leaves_no_current(steps, settle, static):
  z, bias, theta = currents(steps + settle), np.float32(0.25), np.float32(0.9)
  x = z[0] if static else z
  shown = z.copy()
  if static:
    shown[:] = z[0]
    shown[steps:] = -bias
  neuron = fs.IntegrateAndFire(
    steps, negative_threshold=0.0, max_count=steps, settle=settle
  )
  activity = jax.jit(
    lambda x: neuron.respond(
      lambda x: x + bias, (x[None],), theta, static=(static,)
    )
  )(x)
  shown = shown + bias * (np.arange(steps + settle) < steps)[:, None]
  if static:
    shown[steps:] = 0
  expected = oracle.integrate_and_fire(
    shown, theta, negative_threshold=0.0, max_count=steps
  )
  np.testing.assert_array_equal(activity[0], expected * theta)
  np.testing.assert_allclose(
    neuron.decode(activity)[0], expected.sum(0) * theta / steps, atol=1e-6
  )


def test_an_image_beside_spikes_is_shown_and_withdrawn():
  steps, settle = 3, 2
  neuron = fs.IntegrateAndFire(steps, settle=settle)
  image, train = np.full((1, 4), 0.7, np.float32), currents(5, 4)[None]
  activity = neuron.respond(
    lambda a, b: a + b + 1, (image, train), 1.0, static=(True, False)
  )
  current = train[0].copy()
  current[:steps] += image + 1
  np.testing.assert_array_equal(
    activity[0], oracle.integrate_and_fire(current, 1.0)
  )


# --- laws -------------------------------------------------------------------


@functools.cache
def constant_counts(bits):
  """(level of the quantiser, counts of four neurons) at constant currents."""
  steps = 2**bits - 1
  settled = {'negative_threshold': 0.0, 'max_count': steps}
  neurons = (
    fs.IntegrateAndFire(steps),
    fs.IntegrateAndFire(steps, signed=False),
    fs.IntegrateAndFire(steps, **settled),
    fs.IntegrateAndFire(steps, **settled, settle=4),
  )

  def count(activity, theta):
    return jnp.round(jnp.sum(activity, 1) / theta)

  def run(z, theta):
    level = fs.quantize_activation(z, theta, bits) / theta * steps
    return jnp.round(level), [
      count(neuron.respond(identity, (z,), theta, static=(True,)), theta)
      for neuron in neurons
    ]

  return jax.jit(run)


@pytest.mark.parametrize('bits', [1, 2, 3, 4, 5])
@given(
  ratio=hnp.arrays(np.float32, 16, elements=st.floats(-0.5, 1.5, width=32)),
  theta=st.floats(2**-6, 8, width=32),
)
def test_constant_currents_are_counted_to_the_quantised_level(
  bits, ratio, theta
):
  steps = 2**bits - 1
  z = ratio * np.float32(theta)
  exact = steps * z.astype(np.float64) / np.float32(theta)
  tie = np.abs(exact - np.floor(exact) - 0.5) <= steps * 2.0**-23
  level, counts = constant_counts(bits)(z[None], theta)
  for count in counts:
    np.testing.assert_array_equal(
      np.where(tie, 0, count[0]), np.where(tie, 0, level[0])
    )


@all_modes
@given(
  currents=hnp.arrays(np.int32, (7, 16), elements=st.integers(-200, 200)),
  theta=st.integers(1, 128),
)
def test_every_spike_follows_from_the_charge_conserved(mode, currents, theta):
  # Multiples of 1/64: sums are exact, so the charge left after any spikes is
  # half a threshold plus all currents minus a threshold for each net spike.
  z, theta = currents.astype(np.float32) / 64, np.float32(theta / 64)
  setting = {
    'signed': True,
    'negative_threshold': -1e-3,
    'max_count': 99,
    **MODES[mode],
  }
  spikes = np.asarray(simulator(mode)(z, theta))
  count = np.cumsum(spikes, 0)
  before = count - spikes
  charge = theta / 2 + np.cumsum(z, 0) - theta * before
  fires = (charge >= theta) & (before < setting['max_count'])
  taken = charge - theta * fires <= np.float32(setting['negative_threshold'])
  taken &= (before + fires > 0) & setting['signed']
  np.testing.assert_array_equal(spikes, 1.0 * fires - taken)
  assert (count >= 0).all()
  assert (count <= np.arange(1, 8)[:, None]).all()
  assert (count <= setting['max_count']).all()


# --- dtypes -----------------------------------------------------------------


def test_bfloat16_currents_are_integrated_in_float32():
  z = jnp.asarray(currents(31) * 0.1 + 0.03, jnp.bfloat16)
  spikes = fs.integrate_and_fire(z, 1.0)
  assert spikes.dtype == jnp.bfloat16
  wide = oracle.integrate_and_fire(np.asarray(z, np.float32), 1.0)
  half = oracle.integrate_and_fire(
    np.asarray(z), 1.0, state_dtype=ml_dtypes.bfloat16
  )
  assert (wide != half).any()
  np.testing.assert_array_equal(spikes.astype(jnp.float32), wide)


@all_modes
def test_float64_currents_are_integrated_in_float64(mode):
  random = np.random.default_rng(0)
  z = np.round(4 * random.normal(size=(31, 100)) + 1) / 4  # many ties, which
  z[0] += np.where(np.arange(100) % 2, 1e-12, -1e-12)  # float32 cannot break
  with jax.enable_x64(True):
    spikes = fs.integrate_and_fire(z, 1.0, **MODES[mode])
  assert spikes.dtype == np.float64
  wide = oracle.integrate_and_fire(z, 1.0, **MODES[mode])
  narrow = oracle.integrate_and_fire(z.astype(np.float32), 1.0, **MODES[mode])
  assert (wide != narrow).any()
  np.testing.assert_array_equal(spikes, wide)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32])
def test_spikes_have_the_dtype_of_the_currents(dtype):
  z = jnp.asarray(currents(3), dtype)
  assert fs.integrate_and_fire(z, 1.0).dtype == dtype
  neuron = fs.IntegrateAndFire(3)
  assert neuron.respond(identity, (z[None],), 1.0).dtype == dtype


# --- transformations and derivatives ----------------------------------------


def test_vmap_over_thresholds_equals_a_loop():
  z, thetas = currents(7), np.array([0.3, 1.0, 2.5], np.float32)
  batch = jax.jit(jax.vmap(fs.integrate_and_fire, (None, 0)))(z, thetas)
  for theta, spikes in zip(thetas, batch, strict=True):
    np.testing.assert_array_equal(spikes, oracle.integrate_and_fire(z, theta))


def test_theta_broadcasts_against_one_step():
  z = currents(7)
  theta = np.linspace(0.2, 2, z.shape[1], dtype=np.float32)
  np.testing.assert_array_equal(
    fs.integrate_and_fire(z, theta), oracle.integrate_and_fire(z, theta)
  )


def twin_gradient(mean, theta, levels, g):
  """(dL/dmean, dL/dtheta) of the quantised twin."""
  dmean, terms = oracle.quantize_activation_gradient(mean, theta, levels, g)
  return dmean, terms.sum()


@pytest.mark.parametrize('mode', ['signed', 'unsigned'])
@pytest.mark.parametrize('steps', [1, 5, 17])
def test_derivative_is_that_of_the_twin_at_the_mean_current(mode, steps):
  z, theta = currents(steps), np.float32(0.8)
  g = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)

  def loss(z, theta):
    spikes = fs.integrate_and_fire(z, theta, **MODES[mode])
    return jnp.sum(g * theta * spikes)

  @jax.jit
  def both(z, theta):
    # Forward mode along a direction that moves currents and theta.
    _, tangent = jax.jvp(loss, (z, theta), (g, jnp.float32(0.3)))
    return *jax.grad(loss, (0, 1))(z, theta), tangent

  dz, dtheta, tangent = both(z, theta)
  dmean, expected = twin_gradient(z.mean(0), theta, steps, g.sum(0))
  assert np.abs(dmean).max() > 0
  np.testing.assert_allclose(
    dz, np.broadcast_to(dmean / steps, z.shape), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(dtheta, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    tangent, np.vdot(dz, g) + 0.3 * dtheta, rtol=1e-3, atol=1e-3
  )


def settled_rate(neuron, static, x, weight, bias, theta):
  """The decoded answer of neurons behind an affine synapse."""
  activity = neuron.respond(
    lambda x: weight * x + bias, (x,), theta, static=(static,)
  )
  return neuron.decode(activity)


@pytest.mark.parametrize('settle', [0, 5])
@pytest.mark.parametrize('static', [True, False])
def test_decoded_activity_has_the_twin_s_derivative(settle, static):
  steps = 3
  neuron = fs.IntegrateAndFire(
    steps, negative_threshold=0.0, max_count=steps, settle=settle
  )
  x = np.float32(0.5) * currents(steps + settle, 256)[None]
  x = x[:, 0] if static else x
  weight, bias, theta = np.float32([1.2, 0.1, 0.9])
  g = np.random.default_rng(1).normal(size=(1, 256)).astype(np.float32)
  arguments = (x, weight, bias, theta)
  _, vjp = jax.vjp(functools.partial(settled_rate, neuron, static), *arguments)
  dx, dweight, dbias, dtheta = vjp(g)
  # The bias acts in the T steps only, spikes in all.
  rate_in = x if static else x.sum(1) / steps
  dmean, expected = twin_gradient(weight * rate_in + bias, theta, steps, g)
  into = weight * (dmean if static else dmean[:, None] / steps)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(dx, np.broadcast_to(into, x.shape))
  close(dweight, np.sum(dmean * rate_in))
  close(dbias, np.sum(dmean))
  close(dtheta, expected)


# --- any-time answers -------------------------------------------------------


def test_the_answer_over_time_divides_by_the_steps_so_far():
  neuron = fs.IntegrateAndFire(3, settle=2)
  activity = jnp.array([[1.0, 0, 1, -1, 1]])
  np.testing.assert_allclose(
    neuron.decode_over_time(activity), [[1, 1 / 2, 2 / 3, 1 / 3, 2 / 3]]
  )
  np.testing.assert_allclose(neuron.decode(activity), [2 / 3])


# --- bad input --------------------------------------------------------------


@pytest.mark.parametrize(
  'settings',
  [
    {'steps': 0},
    {'steps': 2.5},
    {'steps': '3'},
    {'steps': 3, 'settle': -1},
    {'steps': 3, 'settle': 1.0},
    {'steps': 3, 'max_count': 0},
    {'steps': 3, 'signed': 1},
    {'steps': 3, 'signed': 'yes'},
    {'steps': 3, 'negative_threshold': 'x'},
    {'steps': 3, 'negative_threshold': float('-inf')},
    {'steps': 3, 'negative_threshold': None},
  ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings):
  name = list(settings)[-1]
  with pytest.raises(fs.UserError, match=f'{name}={settings[name]!r}'):
    fs.IntegrateAndFire(**settings)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'bits': 0}, 'bits=0.*from 1 to 16'),
    ({'bits': 17}, 'bits=17.*from 1 to 16'),
    ({'bits': 2.5}, 'bits=2.5.*whole number'),
    ({'bits': '2'}, "bits='2'"),
    ({'bits': 2, 'initial_theta': 0.0}, 'initial_theta=0.0'),
    ({'bits': 2, 'initial_theta': float('inf')}, 'initial_theta=inf'),
    ({'bits': 2, 'initial_theta': float('nan')}, 'initial_theta=nan'),
    ({'bits': 2, 'initial_theta': '6'}, "initial_theta='6'"),
  ],
)
def test_a_quantised_neuron_out_of_range_is_refused_by_name(settings, message):
  with pytest.raises(fs.UserError, match=message):
    fs.QuantRelu(**settings)


@pytest.mark.parametrize('bad', [np.float32(1), np.ones((3, 2), np.int32)])
def test_currents_without_time_or_fraction_are_refused(bad):
  with pytest.raises(fs.UserError, match='time first'):
    fs.integrate_and_fire(bad, 1.0)


@pytest.mark.parametrize(
  'settings',
  [
    {'max_count': 0},
    {'max_count': 1.5},
    {'negative_threshold': np.nan},
    {'signed': None},
  ],
)
def test_a_rule_out_of_range_is_refused_in_the_function_too(settings):
  name = list(settings)[-1]
  with pytest.raises(fs.UserError, match=f'{name}={settings[name]!r}'):
    fs.integrate_and_fire(currents(3), 1.0, **settings)


@pytest.mark.parametrize('theta', [0.0, -1, np.array([1.0, 0.0]), -np.inf])
def test_a_threshold_that_is_not_positive_is_refused(theta):
  with pytest.raises(fs.UserError, match='must be positive'):
    fs.integrate_and_fire(currents(3, 2), theta)


@all_modes
@pytest.mark.parametrize('steps', [3, 20])
def test_not_a_number_stays_one_from_its_step_on(mode, steps):
  z = currents(steps)
  clean = np.asarray(simulator(mode)(z, 1.0))
  for at in {0, 1, steps - 2}:
    z[at, at::7] = np.nan  # more and more neurons
    spikes = np.asarray(simulator(mode)(z, 1.0))
    lost = np.isnan(np.cumsum(z, 0))
    np.testing.assert_array_equal(spikes, np.where(lost, np.nan, clean))


@all_modes
@pytest.mark.parametrize('theta', [0.0, -1.0, np.nan, np.inf])
def test_a_threshold_without_meaning_gives_not_a_number(mode, theta):
  assert np.isnan(simulator(mode)(currents(3), jnp.float32(theta))).all()


# --- derivatives of higher order, and devices --------------------------------


@pytest.mark.parametrize('mode', ['signed', 'settled'])
def test_derivatives_of_every_order_follow_the_twin(mode):
  steps = 2
  with jax.enable_x64(True):
    z, theta = jnp.asarray(currents(steps, 6), 'float64'), jnp.float64(0.9)
    mix = jnp.asarray(np.random.default_rng(0).normal(size=(steps, 6)))
    value = fs.integrate_and_fire(z, theta, **MODES[mode])

    def twin(z, theta):  # each step has the rate's tangent
      mean, stop = z.mean(0), jax.lax.stop_gradient
      rate = theta * stop(jnp.clip(mean / theta, 0, 1))
      ratio = stop(mean / theta)
      level = stop(jnp.round(jnp.clip(ratio, 0, 1) * steps) / steps)
      inside = stop((ratio > 0) & (ratio <= 1))
      slope = jnp.where(ratio > 1, 1, level - jnp.maximum(ratio, 0))
      rate = jnp.where(inside, mean, 0) + slope * theta
      scaled = stop(theta * value - rate) + rate
      return scaled / theta

    def spikes(z, theta):
      return fs.integrate_and_fire(z, theta, **MODES[mode])

    def orders(function):
      def loss(z, theta):
        return jnp.sum(mix * (theta * function(z, theta) + z) ** 3)

      return (
        *every_order(loss, z, theta, mix),
        jax.vmap(jax.hessian(loss, 1), (None, 0))(z, theta + jnp.zeros(2)),
      )

    got = jax.jit(lambda: orders(spikes))()
    want = jax.jit(lambda: orders(twin))()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    jax.tree.map(close, got, want)


@pytest.mark.parametrize('where', ['currents', 'theta', 'both'])
def test_spikes_and_gradients_within_shard_map(where):
  z = currents(5, 8)
  theta = np.linspace(0.3, 1, 8, dtype=np.float32)
  if where == 'currents':
    theta = theta[0]
  mesh = jax.make_mesh((4,), ('d',), (jax.sharding.AxisType.Auto,))
  specs = (
    P() if where == 'theta' else P(None, 'd'),
    P() if where == 'currents' else P('d'),
  )
  if where == 'theta':
    z = z[:, :2]  # each device has two of the thresholds

  def both(z, theta):
    def loss(theta):
      return jnp.sum(theta * fs.integrate_and_fire(z, theta))

    return fs.integrate_and_fire(z, theta), jax.grad(loss)(theta)

  out = P(None, 'd'), specs[1]
  spikes, grad = jax.jit(
    jax.shard_map(both, mesh=mesh, in_specs=specs, out_specs=out)
  )(z, theta)
  whole = np.tile(z, 4) if where == 'theta' else z
  want, dtheta = both(whole, theta)
  np.testing.assert_array_equal(spikes, want)
  np.testing.assert_allclose(grad, dtheta, rtol=1e-5, atol=1e-6)


def test_spikes_under_explicit_sharding():
  z = currents(5, 8)
  mesh = jax.make_mesh((4,), ('d',), (jax.sharding.AxisType.Explicit,))
  with jax.set_mesh(mesh):
    shared = jax.device_put(z, jax.NamedSharding(mesh, P(None, 'd')))
    spikes = jax.jit(fs.integrate_and_fire)(shared, 0.7)
    assert jax.typeof(spikes).sharding.spec == P(None, 'd')
  np.testing.assert_array_equal(spikes, oracle.integrate_and_fire(z, 0.7))


def test_ranks_are_promoted_explicitly():
  z, theta = currents(4, 6).reshape(4, 2, 3), np.linspace(0.5, 1, 3)
  want = fs.integrate_and_fire(z, theta)
  neuron = fs.IntegrateAndFire(3, settle=1)
  with jax.numpy_rank_promotion('raise'):
    np.testing.assert_array_equal(fs.integrate_and_fire(z, theta), want)
    jax.grad(lambda th: fs.integrate_and_fire(z, th).sum())(theta)
    neuron.decode_over_time(neuron.respond(identity, (z[None],), theta))
