"""One program on 1, 2, 4 and 8 devices: the same training, judged the same.

Tolerances: sums over devices are taken in another order. In float64 that stays
below 1e-9 for a dozen steps; in float32 a last bit may move a value across the
edge between two levels, so only the first five steps are compared there.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import training as support
from support.training import (
  CLASSES,
  IMAGES,
  after,
  assert_close,
  compiled_once,
  devices,
  drawn_data,
  experiment,
)

import fastsnn_jax as fs
from fastsnn_jax import distributed, tasks
from fastsnn_jax.conversion.finetune import Tuning, finetune
from fastsnn_jax.data import as_split
from fastsnn_jax.evaluation import batches, compare, evaluate
from fastsnn_jax.training import loop
from fastsnn_jax.training.gradients import gradients

pytestmark = pytest.mark.once  # programs for eight devices

BATCH, EPOCH = 16, 4  # 2 real rows in the last batch

NETWORK = fs.Network(
  (
    fs.Layer('stem', fs.Conv(4, weights=fs.EightBit())),
    fs.Layer('first', fs.Conv(4, weights=fs.Apot(2)), ('stem',)),
    fs.Layer(
      'block', fs.Residual(fs.Conv(4, weights=fs.Apot(2))), ('first', 'stem')
    ),
    fs.Layer('out', fs.Dense(CLASSES, norm=False), ('block',)),
  ),
  fs.QuantRelu(2, 2.0),
  bits=2,
  classes=tuple('abcd'),
  mean=(0.5,),
  std=(0.25,),
)
TASK = tasks.for_network(NETWORK)
settings = functools.partial(experiment, batch=BATCH)


@functools.cache
def initial(dtype='float32'):
  """On the host; float64 ones make a float64 network."""
  drawn = NETWORK.init(jax.random.key(7), jnp.zeros((1, 4, 4, 1)))
  return jax.tree.map(lambda x: np.asarray(x, dtype), drawn)


# --- training ---------------------------------------------------------------


def curve(count, steps, wide='float32', **changes):
  """Loss of the epoch so far at each step, and the variables behind all."""
  with devices(count):
    state, reports = support.train_steps(
      NETWORK, initial(wide), settings(**changes), steps
    )
  assert all(bad_step == -1 for _, bad_step in reports)
  return [float(sums['loss']) for sums, _ in reports], state.variables


@functools.cache
def alone(dtype, steps):
  return curve(1, steps, dtype)


@pytest.mark.last_bit
@pytest.mark.parametrize(
  'count',
  [
    pytest.param(2, marks=pytest.mark.slow),
    pytest.param(4, marks=pytest.mark.slow),
    8,
  ],
)
def test_float64_curves_are_the_same_on_any_number_of_devices(count):
  with jax.enable_x64(True):
    losses, variables = curve(count, 3 * EPOCH, 'float64')
    wanted, same = alone('float64', 3 * EPOCH)
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)
    assert_close(variables, same, rtol=1e-8, atol=1e-10)
  leaves = jax.tree.leaves(variables)
  assert {str(leaf.dtype) for leaf in leaves} == {'float64'}
  assert all(leaf.sharding.is_fully_replicated for leaf in leaves)


@pytest.mark.parametrize('count', [pytest.param(2, marks=pytest.mark.slow), 8])
def test_float32_curves_start_the_same_on_any_number_of_devices(count):
  losses, variables = curve(count, 5)
  wanted, same = alone('float32', 5)
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)
  assert_close(variables, same, rtol=1e-3, atol=1e-4)


# --- what crosses between devices -------------------------------------------

COLLECTIVE = re.compile(
  r'= (?P<shape>\S.*?) (?P<name>all-reduce|all-gather|all-to-all|'
  r'collective-permute|reduce-scatter|collective-broadcast)(-start)?\('
)
ARRAY = re.compile(r'(f64|f32|bf16|s64|s32|u32|u8|pred)\[([\d,]*)\]')


def collectives(text):
  """[(name, elements)] of a compiled program."""
  found = []
  for match in COLLECTIVE.finditer(text):
    shapes = ARRAY.findall(match['shape'])
    assert shapes, match[0]
    elements = sum(
      math.prod(int(n) for n in shape.split(',') if n) for _, shape in shapes
    )
    found.append((match['name'], elements))
  return found


@pytest.mark.parametrize('batch_stats', ['global', 'device'])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_step_reduces_gradients_statistics_and_sums(accumulate, batch_stats):
  config = settings(accumulate=accumulate, batch_stats=batch_stats)
  with devices(8):
    step = compiled_once(NETWORK, TASK, config, config.stages[0], EPOCH)
    split = as_split(drawn_data())
    state = step.start(initial(), split.shapes(BATCH))
    state, key = distributed.everywhere((state, jax.random.key(3)))
    batch = distributed.by_row(next(split.batches(BATCH)))
    program = step.advance.lower(state, batch, key, None).compile()
  found = collectives(program.as_text())
  assert {name for name, _ in found} == {'all-reduce'}
  params = sum(x.size for x in jax.tree.leaves(initial()['params']))
  stats = sum(x.size for x in jax.tree.leaves(initial()['batch_stats']))
  total = sum(elements for _, elements in found)
  # Mean and variance forward; backward the same two sums of each norm, and
  # those of its scale and bias; three sums to report, and small change.
  assert params <= total <= params + 3 * stats + 16


def test_judging_reduces_a_few_sums():
  with devices(8):
    variables = distributed.everywhere(initial())
    split = as_split(drawn_data())
    batch = distributed.by_row(next(split.batches(BATCH)))
  settled = functools.partial(fs.to_spiking, NETWORK, 'settled')
  for network in (NETWORK, settled(settle=2), settled(settle='auto')):
    lowered = evaluate._measure.lower(
      variables, batch, network=network, task=TASK
    )
    found = collectives(lowered.compile().as_text())
    assert {name for name, _ in found} == {'all-reduce'}
    assert sum(elements for _, elements in found) == 2  # correct and count
    images = batch['image'].astype(jnp.float32)
    run = jax.jit(functools.partial(batches.applied, network))
    applied = run.lower(variables, images).compile()
    assert not collectives(applied.as_text())


# --- the ways to compute gradients ------------------------------------------


def shown_batch(mask=None):
  data = drawn_data()
  mask = np.ones(BATCH) if mask is None else mask
  images = np.float32(data['image'][:BATCH]) / 255 * 4 - 2
  return {
    'image': images,
    'label': data['label'][:BATCH],
    'mask': np.asarray(mask, np.float32),
  }


@functools.cache
def taken(mesh, **how):
  """`gradients`, once for each set of devices and way."""
  del mesh
  return jax.jit(
    functools.partial(gradients, network=NETWORK, task=TASK, **how)
  )


def compiled(variables, batch, **how):
  return taken(distributed.mesh(), **how)(variables, batch)


def summed_loss(params, statistics, part):
  """Written out once more, for the oracle."""
  output, _, new = NETWORK.apply(
    {'params': params, 'batch_stats': statistics}, part['image'], train=True
  )
  log_p = jax.nn.log_softmax(output)
  picked = log_p[jnp.arange(len(output)), part['label']]
  right = (jnp.argmax(output, -1) == part['label']) * part['mask']
  return -jnp.sum(picked * part['mask']), (new, jnp.sum(right))


value_and_gradient = jax.jit(jax.value_and_grad(summed_loss, has_aux=True))


def oracle(batch, parts, in_turn):
  """Means of the parts' gradients by their real rows, part after part.

  The statistics go through the parts one after another, or are the mean of
  what each makes of the same old ones.
  """
  variables, stats = initial('float64'), []
  grads, sums = [], []
  for rows in parts:
    part = {name: x[rows] for name, x in batch.items()}
    (value, (new, right)), grad = value_and_gradient(
      variables['params'], variables['batch_stats'], part
    )
    stats.append(new)
    grads.append(grad)
    sums.append({'loss': value, 'correct': right, 'count': part['mask'].sum()})
    if in_turn:
      variables = {**variables, 'batch_stats': new}
  add = functools.partial(jax.tree.map, lambda *x: sum(x))
  sums = add(*sums)
  count = max(sums['count'], 1)
  mean_grads = jax.tree.map(lambda g: g / count, add(*grads))
  if not in_turn:
    new = jax.tree.map(lambda x: x / len(parts), add(*stats))
  return mean_grads, sums, new


MASKS = {
  'full': np.ones(BATCH),
  'some rows': np.arange(BATCH) < 11,
  'an empty part': np.arange(BATCH) < 1,
  'none': np.zeros(BATCH),
}


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('parts', [1, 2, 4])
def test_accumulated_gradients_are_the_mean_over_real_rows(parts, mask):
  with jax.enable_x64(True):
    batch = shown_batch(MASKS[mask])
    ours = compiled(initial('float64'), batch, accumulate=parts)
    rows = [np.arange(part, BATCH, parts) for part in range(parts)]
    assert_close(ours, oracle(batch, rows, True), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('mask', ['full', 'some rows', 'an empty part'])
def test_statistics_per_device_are_those_of_each_devices_rows(mask):
  with jax.enable_x64(True), devices(4):
    batch = shown_batch(MASKS[mask])
    placed = distributed.by_row(batch)
    variables = distributed.everywhere(initial('float64'))
    ours = compiled(variables, placed, batch_stats='device')
    rows = np.arange(BATCH).reshape(4, -1)
    assert_close(ours, oracle(batch, rows, False), rtol=1e-9, atol=1e-12)
    # Otherwise they are those of the whole batch.
    ours = compiled(variables, placed)
    whole = oracle(batch, [np.arange(BATCH)], True)
    assert_close(ours, whole, rtol=1e-9, atol=1e-12)


def test_accumulating_on_each_device_goes_through_its_own_rows():
  with jax.enable_x64(True), devices(2):
    batch = shown_batch(MASKS['some rows'])
    grads, sums, _ = compiled(
      distributed.everywhere(initial('float64')),
      distributed.by_row(batch),
      accumulate=2,
      batch_stats='device',
    )
    own = np.arange(BATCH).reshape(2, -1)
    rows = [part[first::2] for part in own for first in (0, 1)]
    wanted = oracle(batch, rows, False)  # gradients ignore old statistics
    assert_close((grads, sums), wanted[:2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_rematerialised_gradients_are_the_same(accumulate):
  batch = shown_batch()
  plain = compiled(initial(), batch, accumulate=accumulate)
  again = compiled(initial(), batch, accumulate=accumulate, remat=True)
  assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_bfloat16_gradients_are_near_and_what_is_kept_is_float32():
  grads, sums, stats = compiled(initial(), shown_batch())
  half, half_sums, half_stats = compiled(
    initial(), shown_batch(), dtype='bfloat16'
  )
  for leaf in jax.tree.leaves((half, half_sums, half_stats)):
    assert leaf.dtype == jnp.float32
    assert np.isfinite(leaf).all()
  np.testing.assert_allclose(half_sums['loss'], sums['loss'], rtol=0.05)
  assert_close(half_stats, stats, rtol=0.05, atol=0.02)
  flat, near = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (grads, half)
  )
  # Some values fall on another level, so single gradients may differ.
  cosine = flat @ near / np.linalg.norm(flat) / np.linalg.norm(near)
  assert cosine > 0.95
  # A step of training keeps them, whatever the layers compute in.
  _, variables = curve(2, 2, dtype='bfloat16')
  assert {str(x.dtype) for x in jax.tree.leaves(variables)} == {'float32'}


# --- going on with another number of devices --------------------------------


@pytest.mark.last_bit
def test_a_run_cut_on_eight_devices_goes_on_on_two(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'LOOK_SECONDS', 0)  # looks at each step

  def run_stage(directory, **settings_of_run):
    return support.run_stage(
      directory,
      settings(),
      network=NETWORK,
      variables=initial('float64'),
      **settings_of_run,
    )

  with jax.enable_x64(True):
    with devices(8), pytest.raises(SystemExit) as caught:
      run_stage(tmp_path / 'cut', asked=after(5))
    assert caught.value.code == 143
    (saved,) = (tmp_path / 'cut' / 'unfinished' / 'ann2').glob('[0-9]*')
    assert EPOCH < int(saved.name) < 3 * EPOCH
    with devices(2):
      resumed, _ = run_stage(tmp_path / 'cut')
    with devices(1):
      whole, _ = run_stage(tmp_path / 'whole')
    assert_close(resumed, whole, rtol=1e-8, atol=1e-10)


# --- judging and fine-tuning ------------------------------------------------


def judged(count):
  spiking = {
    mode: (fs.to_spiking(NETWORK, mode), initial('float64'))
    for mode in ('signed', 'settled')
  }
  with devices(count):
    beside = compare.compare(
      NETWORK, initial('float64'), spiking, drawn_data(), batch=BATCH
    )
    plain = evaluate.evaluate(
      NETWORK, initial('float64'), drawn_data(), batch=13
    )
  return beside, plain


def test_judging_on_eight_devices_gives_the_numbers_of_one():
  with jax.enable_x64(True):
    ours, plain = judged(8)
    wanted, same = judged(1)
  assert plain == same
  assert jax.tree.structure(ours) == jax.tree.structure(wanted)
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True)
  for a, b in pairs:
    assert a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
  for mode, row in ours.items():  # whole numbers, so exactly
    for name in ('accuracy', 'agreement', 'spikes_per_image'):
      assert row[name] == wanted[mode][name]


def tuned(count, tuning, dtype='float32'):
  snn = fs.to_spiking(NETWORK)
  with devices(count):
    return finetune(NETWORK, snn, initial(dtype), drawn_data(), tuning)


@pytest.mark.parametrize('schedule', ['bias', 'sequential', 'parallel'])
def test_fine_tuning_on_eight_devices_gives_that_of_one(schedule):
  tuning = Tuning(
    schedule=schedule,
    learning_rate=0.01,
    batch=BATCH,
    accept='always',
    crop=1,
  )
  with jax.enable_x64(True):
    wanted, records = tuned(1, tuning, 'float64')
    ours, mine = tuned(8, tuning, 'float64')
    assert_close(ours, wanted, rtol=1e-8, atol=1e-10)
  for ours, theirs in zip(mine, records, strict=True):
    assert ours['layer'] == theirs['layer']
    np.testing.assert_allclose(ours['loss_after'], theirs['loss_after'])


def test_fine_tuning_judges_its_layers_on_all_devices():
  tuning = Tuning(batch=BATCH, crop=0)
  (_, ours), (_, wanted) = tuned(8, tuning), tuned(1, tuning)
  for mine, theirs in zip(ours, wanted, strict=True):
    assert abs(mine['accuracy'] - theirs['accuracy']) <= 1 / IMAGES


def test_a_batch_that_cannot_be_shared_out_is_refused():
  with pytest.raises(fs.UserError, match='multiple of 8'):
    tuned(8, Tuning(batch=12))
