"""Training: PyTorch's optimiser, one jitted step, what a step draws."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training import (
  IMAGES,
  assert_equal_bits,
  compiled_once,
  drawn_data,
  experiment,
  initial,
  tiny,
  train_steps,
)

from fastsnn_jax import distributed, tasks
from fastsnn_jax.data import Shuffle, as_split
from fastsnn_jax.experiment import recipes
from fastsnn_jax.tasks.classification.task import Classification
from fastsnn_jax.training import step as training
from fastsnn_jax.training.optimizer import make_optimizer

BATCH, EPOCH = 8, 7  # the last of 7 batches has 2 real rows
NETWORK = tiny()
TASK = tasks.for_network(NETWORK)
CONFIG = experiment()


def run(count, *, config=CONFIG, variables=None, **settings):
  """(state, report of each step) of so many steps."""
  variables = initial() if variables is None else variables
  return train_steps(NETWORK, variables, config, count, **settings)


# --- the optimiser ----------------------------------------------------------


def optimizer_of(config):
  return make_optimizer(config, config.stages[0], epoch_steps=5)


def rates(epochs=4, **changes):
  """The learning rate of each of 5 steps an epoch, from unit gradients."""
  optimizer = optimizer_of(
    experiment(
      epochs=epochs,
      learning_rate=0.4,
      momentum=0.0,
      weight_decay=0.0,
      **{'schedule': 'step', **changes},
    )
  )
  one = jnp.ones(())
  state, result = optimizer.init(one), []
  for _ in range(5 * epochs):
    update, state = optimizer.update(one, state, one)
    result.append(-float(update))
  return result


@pytest.mark.once
@pytest.mark.parametrize('decay', ['all', 'kernels'])
@pytest.mark.parametrize('schedule', ['step', 'cosine', 'constant'])
def test_the_optimiser_is_pytorchs_sgd(schedule, decay):
  settings = {'epochs': 4, 'learning_rate': 0.4, 'schedule': schedule}
  config = experiment(decay=decay, weight_decay=0.01, **settings)
  random = np.random.default_rng(0)
  shapes = {'kernel': (3, 2), 'theta': (), 'weight_alpha': (), 'bias': (2,)}
  params = {'layer': {k: random.normal(size=s) for k, s in shapes.items()}}
  ours = jax.tree.map(jnp.float32, params)
  optimizer, rate = optimizer_of(config), rates(schedule=schedule)
  state = optimizer.init(ours)
  velocity = jax.tree.map(np.zeros_like, params)
  for step in range(20):
    grads = jax.tree.map(lambda p: random.normal(size=np.shape(p)), params)
    updates, state = optimizer.update(
      jax.tree.map(jnp.float32, grads), state, ours
    )
    ours = jax.tree.map(jnp.add, ours, updates)
    for name in shapes:
      pulled = decay == 'all' or name == 'kernel'
      g = grads['layer'][name] + 0.01 * pulled * params['layer'][name]
      velocity['layer'][name] = 0.9 * velocity['layer'][name] + g
      params['layer'][name] = (
        params['layer'][name] - rate[step] * velocity['layer'][name]
      )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6),
    ours,
    params,
  )


def test_the_step_schedule_drops_at_half_and_three_quarters():
  got = rates(epochs=4, schedule='step')
  want = [0.4] * 10 + [0.04] * 5 + [0.004] * 5
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('epochs', [1, 2, 3, 5])
def test_the_step_schedule_starts_a_short_stage_at_its_full_rate(epochs):
  got = rates(epochs=epochs, schedule='step')
  first = math.ceil(epochs / 2) * 5
  np.testing.assert_allclose(got[:first], 0.4, rtol=1e-6)
  assert all(rate < 0.05 for rate in got[first:])


def test_the_official_epochs_150_and_225_are_those_of_its_300():
  got = rates(epochs=300)[::5]
  assert [e for e in range(1, 300) if got[e] < 0.5 * got[e - 1]] == [150, 225]


def test_imagenets_three_drops_are_at_epochs_20_40_and_50():
  (stage, *_) = recipes.reference('imagenet_alexnet').stages
  assert (stage.epochs, stage.schedule) == (60, 'step')
  got = rates(epochs=60, milestones=stage.milestones)
  want = 0.4 * np.repeat([1, 0.1, 0.01, 0.001], [100, 100, 50, 50])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_cosine_and_constant_schedules():
  got = rates(schedule='cosine')
  want = [0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  got = rates(schedule='constant')
  np.testing.assert_allclose(got, [0.4] * 20, rtol=1e-6)


# --- one step ---------------------------------------------------------------


@pytest.mark.once
def test_a_masked_row_has_no_say_in_the_loss():
  data = drawn_data()
  batch = {
    'image': jnp.float32(data['image'][:BATCH]) / 255,
    'label': jnp.asarray(data['label'][:BATCH]),
    'mask': jnp.float32([1] * 5 + [0] * 3),
  }
  other = {**batch, 'label': batch['label'].at[5:].set(0)}
  optimizer = optimizer_of(CONFIG)
  sums = dict.fromkeys(('correct', 'count', 'loss'), jnp.float32(0))
  state = training.create(initial(), optimizer, sums)
  step = jax.jit(
    functools.partial(
      training.train_step, network=NETWORK, task=TASK, optimizer=optimizer
    )
  )
  first, second = step(state, batch), step(state, other)
  assert_equal_bits(first, second)
  assert first.sums['count'] == 5
  # The mean is over the real rows: it is the loss of the five.
  apply = jax.jit(functools.partial(NETWORK.apply, train=True))
  output, _, _ = apply(initial(), batch['image'])
  log_p = jax.nn.log_softmax(output[:5])
  want = -log_p[jnp.arange(5), batch['label'][:5]].sum()
  np.testing.assert_allclose(first.sums['loss'], want, rtol=1e-5)


def test_every_parameter_moves_theta_and_weight_alpha_too():
  state, _ = run(EPOCH)
  before = jax.tree_util.tree_leaves_with_path(initial())
  after = jax.tree.leaves(state.variables)
  for (path, old), new in zip(before, after, strict=True):
    assert not np.array_equal(old, new), jax.tree_util.keystr(path)


@pytest.mark.once
def test_wherever_training_goes_on_it_goes_on_to_the_same_bits():
  end = 2 * EPOCH
  whole, reports = run(end)
  assert whole.step == end
  state, told = None, []
  for count in (3, 1, EPOCH - 4, 5, 2):
    state, some = run(count, state=state)
    told += some
  assert_equal_bits(state, whole)
  assert_equal_bits(told, reports)


@pytest.mark.once
def test_the_step_is_compiled_once_a_stage_and_side():
  sides = []

  class Sided(Classification):
    def augment(self, key, batch, settings, side=None):
      sides.append(side)  # while it is traced
      image = batch['image'].at[:, side or 4 :].set(0)
      return super().augment(key, {**batch, 'image': image}, settings)

  task = Sided(4, NETWORK.mean, NETWORK.std)
  split = as_split(drawn_data())
  step = training.make_step(NETWORK, task, CONFIG, CONFIG.stages[0], EPOCH)
  state = step.start(initial(), split.shapes(BATCH), 4)
  state, key = distributed.everywhere((state, jax.random.key(0)))
  sides.clear()
  batches = split.batches(BATCH, shuffle=Shuffle(0))
  for side in (4, 2, 4, 4, 2, 2, 4, 2):
    batch = distributed.by_row(next(batches))
    state, _ = step.advance(state, batch, key, side)
  assert sides == [4, 2]
  assert state.step == 8


def test_a_step_is_one_program_and_needs_nothing_of_the_host():
  step = compiled_once(NETWORK, TASK, CONFIG, CONFIG.stages[0], EPOCH)
  split = as_split(drawn_data())
  state = step.start(initial(), split.shapes(BATCH))
  state, key = distributed.everywhere((state, jax.random.key(3)))
  batches = split.batches(BATCH, shuffle=Shuffle(3))
  rows = [distributed.by_row(next(batches)) for _ in range(EPOCH)]
  state, _ = step.advance(state, rows[0], key, None)
  programs = step.advance._cache_size()
  with jax.transfer_guard('disallow'):
    for batch in rows[1:]:
      state, report = step.advance(state, batch, key, None)
  assert step.advance._cache_size() == programs == 1
  assert state.step == EPOCH
  assert report[0]['count'] == IMAGES


def test_the_state_is_donated_and_what_is_shown_of_it_is_not():
  given = initial()
  state, _ = run(1)
  old = jax.tree.leaves(state)
  step = compiled_once(NETWORK, TASK, CONFIG, CONFIG.stages[0], EPOCH)
  batches = as_split(drawn_data()).batches(BATCH, shuffle=Shuffle(3))
  key = distributed.everywhere(jax.random.key(3))
  reports = []
  for _ in range(3):
    batch = distributed.by_row(next(batches))
    state, report = step.advance(state, batch, key, None)
    reports.append(report)
  assert all(leaf.is_deleted() for leaf in old)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  assert [sums['count'] for sums, _ in reports] == [16, 24, 32]
  assert all(bad_step == -1 for _, bad_step in reports)


# --- what a step draws ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recording(Classification):
  """On labels that are row numbers: sums up which rows were seen.

  Seen with a mask of one, and filled up with a mask of zero; the loss is NaN
  when a poisoned label, a negative one, is in the batch.
  """

  def loss(self, outputs, batch):
    poisoned = batch['label'] < 0
    rows = jax.nn.one_hot(jnp.abs(batch['label']), IMAGES)
    value = jnp.mean(jnp.square(outputs))
    value = jnp.where(jnp.any(poisoned), jnp.nan, value)
    sums = {
      'loss': value,
      'count': jnp.sum(batch['mask']),
      'correct': jnp.sum(batch['mask']),
      'seen': batch['mask'] @ rows,
      'filled': (1 - batch['mask']) @ rows,
    }
    return value, sums


RECORDING = Recording(4, NETWORK.mean, NETWORK.std)


def numbered(poisoned=None):
  """Labels are row numbers, that of the poisoned row is negative."""
  label = np.arange(IMAGES, dtype=np.int32)
  if poisoned is not None:
    label[poisoned] *= -1
  return {**drawn_data(), 'label': label}


def test_an_epoch_draws_each_image_once_in_an_order_of_its_own():
  _, reports = run(2 * EPOCH, task=RECORDING, data=numbered())
  batches = []
  for epoch in range(2):
    before = np.zeros(IMAGES)
    for sums, _ in reports[epoch * EPOCH : (epoch + 1) * EPOCH]:
      seen = np.asarray(sums['seen'])
      batches.append(tuple(np.flatnonzero(seen - before)))
      before = seen
    np.testing.assert_array_equal(seen, np.ones(IMAGES))
    # The last batch has two real rows and six that the epoch had before.
    filled = np.asarray(sums['filled'])
    assert filled.sum() == BATCH * EPOCH - IMAGES
    assert filled.max() == 1
    assert not filled[list(batches[-1])].any()
  assert [len(batch) for batch in batches] == ([BATCH] * 6 + [2]) * 2
  assert batches[:EPOCH] != batches[EPOCH:]


def test_the_first_step_without_a_finite_loss_is_named_for_good():
  row = 13
  _, reports = run(EPOCH, task=RECORDING, data=numbered())
  assert all(bad_step == -1 for _, bad_step in reports)
  first = next(i for i, (sums, _) in enumerate(reports) if sums['seen'][row])
  _, reports = run(2 * EPOCH, task=RECORDING, data=numbered(row))
  told = [int(bad_step) for _, bad_step in reports]
  assert told == [-1] * first + [first] * (2 * EPOCH - first)


def test_an_update_that_is_not_finite_is_named_too():
  config = experiment(learning_rate=1e10, weight_decay=1e38)
  _, reports = run(2, config=config)
  assert np.isfinite(reports[0][0]['loss'])
  assert [int(bad_step) for _, bad_step in reports] == [0, 0]


def test_the_loss_falls_on_a_small_problem():
  config = experiment(epochs=30, crop=0, flip=False)
  _, reports = run(30 * EPOCH, config=config)
  first, *_, last = (
    TASK.summarize(jax.device_get(sums))
    for sums, _ in reports[EPOCH - 1 :: EPOCH]
  )
  assert last['loss'] < 0.5 * first['loss']
  assert last['accuracy'] > 0.9


# --- selection and the next stage -------------------------------------------


def test_only_a_strictly_higher_score_replaces_the_best():
  state, _ = run(1)
  best = []
  for value, score in ((1.0, 0.5), (2.0, 0.5), (3.0, 0.4), (4.0, 0.6)):
    filled = jax.tree.map(lambda x, v=value: jnp.full_like(x, v), initial())
    state = training.keep_best(state._replace(variables=filled), score)
    best.append(float(state.best['params']['stem']['theta']))
    assert state.variables['params']['stem']['theta'] == value
  assert best == [1.0, 1.0, 1.0, 4.0]
  assert state.best_score == np.float32(0.6)


def test_the_next_stage_takes_all_that_there_is_and_adds_thresholds():
  old = jax.tree.map(lambda x: x + 1, initial(32))
  grafted = training.graft(initial(2), old)
  assert jax.tree.structure(grafted) == jax.tree.structure(initial(2))
  new = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(grafted):
    *above, name = (part.key for part in path)
    old_leaf = old
    for part in (*above, name):
      old_leaf = (
        old_leaf.get(part, {}) if isinstance(old_leaf, dict) else old_leaf
      )
    if name in ('theta', 'weight_alpha'):
      new.append((above[1], name, float(leaf)))
    else:
      np.testing.assert_array_equal(leaf, old_leaf)
  assert sorted(new) == [
    ('body', 'theta', 6.0),
    ('body', 'weight_alpha', 3.0),
    ('stem', 'theta', 6.0),
  ]
  # From 4 bits to 3 all is taken over, thresholds too.
  older = jax.tree.map(lambda x: x + 1, initial(2))
  assert_equal_bits(training.graft(initial(2), older), older)
