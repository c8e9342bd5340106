"""Training: PyTorch's optimiser, epochs in jitted chunks, exact resumption."""

import dataclasses
import functools
import math
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.experiment import recipes
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.weights import Apot, EightBit
from fastsnn_jax.training import input as feeding
from fastsnn_jax.training import loop as running
from fastsnn_jax.training import step as training
from fastsnn_jax.training.log import Log

CLASSES = 4
IMAGES, BATCH, EPOCH = 50, 8, 7  # the last of 7 batches has 2 real rows


def tiny(bits=2, features=4):
  """Two firing layers for images of 4 x 4: compiles in a second."""
  weights = None if bits == 32 else Apot(bits)
  layers = (
    fs.Layer('stem', Conv(features, weights=EightBit())),
    fs.Layer('body', Conv(features, weights=weights, stride=2), ('stem',)),
    fs.Layer('out', Dense(CLASSES, norm=False), ('body',)),
  )
  neuron = fs.Relu() if bits == 32 else fs.QuantRelu(bits)
  names = tuple(map(str, range(CLASSES)))
  return fs.Network(
    layers, neuron, bits=bits, classes=names, mean=(0.5,), std=(0.25,)
  )


NETWORK = tiny()
TASK = tasks.for_network(NETWORK)
RECIPE = training.Recipe(
  steps=3 * EPOCH,
  epoch_steps=EPOCH,
  batch=BATCH,
  learning_rate=0.05,
  schedule='cosine',
  crop=1,
)


def drawn_data(seed=0):
  """Images whose class is the quadrant that is bright, in noise."""
  random = np.random.default_rng(seed)
  label = random.integers(0, CLASSES, IMAGES).astype(np.int32)
  image = random.integers(0, 120, (IMAGES, 4, 4, 1)).astype(np.uint8)
  for picture, quadrant in zip(image, label, strict=True):
    top, left = 2 * (quadrant // 2), 2 * (quadrant % 2)
    picture[top : top + 2, left : left + 2] += 120
  return {'image': image, 'label': label}


@functools.cache
def initial(bits=2):
  network = tiny(bits)
  return network.init(jax.random.key(7), jnp.zeros((1, 4, 4, 1)))


def fresh(recipe=RECIPE, task=TASK):
  return training.create(initial(), recipe, task)


def on_device(data):
  return jax.tree.map(jnp.asarray, data)


def run(state, stops, *, data=None, task=TASK, recipe=RECIPE):
  """Chunks up to these steps; the state and what the last call returned."""
  data = on_device(data or drawn_data())
  for stop in stops:
    state, sums, bad = training.train_chunk(
      state,
      data,
      jax.random.key(3),
      stop,
      network=NETWORK,
      task=task,
      recipe=recipe,
    )
  return state, sums, bad


def assert_equal_bits(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- the optimiser ----------------------------------------------------------


def recipe_of(epochs=4, **changes):
  return training.Recipe(
    steps=5 * epochs, epoch_steps=5, batch=8, learning_rate=0.4, **changes
  )


def rates(recipe):
  """The learning rate of each step, from unit gradients."""
  recipe = dataclasses.replace(
    recipe, momentum=0.0, weight_decay=0.0, decay='all'
  )
  optimizer = recipe.optimizer()
  one = jnp.ones(())
  state, result = optimizer.init(one), []
  for _ in range(recipe.steps):
    update, state = optimizer.update(one, state, one)
    result.append(-float(update))
  return result


@pytest.mark.parametrize('decay', ['all', 'kernels'])
@pytest.mark.parametrize('schedule', ['step', 'cosine', 'constant'])
def test_the_optimiser_is_pytorchs_sgd(schedule, decay):
  recipe = recipe_of(schedule=schedule, decay=decay, weight_decay=0.01)
  random = np.random.default_rng(0)
  shapes = {'kernel': (3, 2), 'theta': (), 'weight_alpha': (), 'bias': (2,)}
  params = {'layer': {k: random.normal(size=s) for k, s in shapes.items()}}
  ours = jax.tree.map(jnp.float32, params)
  optimizer, rate = recipe.optimizer(), rates(recipe)
  state = optimizer.init(ours)
  velocity = jax.tree.map(np.zeros_like, params)
  for step in range(recipe.steps):
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
  got = rates(recipe_of(epochs=4, schedule='step'))
  want = [0.4] * 10 + [0.04] * 5 + [0.004] * 5
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('epochs', [1, 2, 3, 5])
def test_the_step_schedule_starts_a_short_stage_at_its_full_rate(epochs):
  got = rates(recipe_of(epochs=epochs, schedule='step'))
  first = math.ceil(epochs / 2) * 5
  np.testing.assert_allclose(got[:first], 0.4, rtol=1e-6)
  assert all(rate < 0.05 for rate in got[first:])


def test_the_references_epochs_150_and_225_are_those_of_its_300():
  got = rates(recipe_of(epochs=300))[::5]
  assert [e for e in range(1, 300) if got[e] < 0.5 * got[e - 1]] == [150, 225]


def test_imagenets_three_drops_are_at_epochs_20_40_and_50():
  (stage, *_) = recipes.reference('imagenet_alexnet').stages
  assert (stage.epochs, stage.schedule) == (60, 'step')
  got = rates(recipe_of(epochs=60, milestones=stage.milestones))
  want = 0.4 * np.repeat([1, 0.1, 0.01, 0.001], [100, 100, 50, 50])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_cosine_and_constant_schedules():
  got = rates(recipe_of(schedule='cosine'))
  want = [0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  got = rates(recipe_of(schedule='constant'))
  np.testing.assert_allclose(got, [0.4] * 20, rtol=1e-6)


# --- one step ---------------------------------------------------------------


def test_a_masked_row_has_no_say_in_the_loss():
  data = drawn_data()
  batch = {
    'image': jnp.float32(data['image'][:BATCH]) / 255,
    'label': jnp.asarray(data['label'][:BATCH]),
    'mask': jnp.float32([1] * 5 + [0] * 3),
  }
  other = {**batch, 'label': batch['label'].at[5:].set(0)}
  step = jax.jit(
    functools.partial(
      training.train_step,
      network=NETWORK,
      task=TASK,
      optimizer=RECIPE.optimizer(),
    )
  )
  first, second = step(fresh(), batch), step(fresh(), other)
  assert_equal_bits(first, second)
  assert first.sums['count'] == 5
  # The mean is over the real rows: it is the loss of the five.
  apply = jax.jit(functools.partial(NETWORK.apply, train=True))
  output, _, _ = apply(initial(), batch['image'])
  log_p = jax.nn.log_softmax(output[:5])
  want = -log_p[jnp.arange(5), batch['label'][:5]].sum()
  np.testing.assert_allclose(first.sums['loss'], want, rtol=1e-5)


def test_every_parameter_moves_theta_and_weight_alpha_too():
  state, _, _ = run(fresh(), [EPOCH])
  before = jax.tree_util.tree_leaves_with_path(initial())
  after = jax.tree.leaves(state.variables)
  for (path, old), new in zip(before, after, strict=True):
    assert not np.array_equal(old, new), jax.tree_util.keystr(path)


# --- chunks -----------------------------------------------------------------


def test_the_length_of_chunks_changes_no_bit():
  end = 2 * EPOCH
  whole = run(fresh(), [EPOCH, end])
  single = run(fresh(), range(1, end + 1))
  mixed = run(fresh(), [3, 4, EPOCH, EPOCH + 5, end])
  assert whole[0].step == end
  assert_equal_bits(single, whole)
  assert_equal_bits(mixed, whole)


def test_a_chunk_is_compiled_once_whatever_its_length():
  state = fresh()
  before = training.train_chunk._cache_size()
  state, _, _ = run(state, [1])
  once = training.train_chunk._cache_size()
  assert once <= before + 1
  run(state, [3, 4, EPOCH, EPOCH + 2, 2 * EPOCH, 3 * EPOCH])
  assert training.train_chunk._cache_size() == once


def test_a_chunk_ends_at_its_stop_and_after_the_slots_at_most():
  long = dataclasses.replace(
    RECIPE, steps=2 * 100, epoch_steps=100, schedule='constant'
  )
  state, _, _ = run(fresh(long), [100], recipe=long)
  assert state.step == training.SLOTS
  state, sums, _ = run(state, [training.SLOTS + 3], recipe=long)
  assert state.step == training.SLOTS + 3
  # 50 images in 100 steps of 8: all real rows lie in the first 7 batches.
  assert sums['count'] == IMAGES


def test_the_state_is_donated_and_what_is_shown_of_it_is_not():
  state, given = fresh(), initial()
  old = jax.tree.leaves(state)
  state, sums, bad = run(state, [2])
  assert all(leaf.is_deleted() for leaf in old)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  run(state, [4])
  assert sums['count'] == 2 * BATCH
  assert bad == -1


def test_nothing_crosses_between_host_and_device_within_a_chunk():
  state, data = fresh(), on_device(drawn_data())
  key, stop = jax.random.key(3), jnp.int32(EPOCH)
  with jax.transfer_guard('disallow'):
    state, sums, _ = training.train_chunk(
      state, data, key, stop, network=NETWORK, task=TASK, recipe=RECIPE
    )
  assert state.step == EPOCH
  assert sums['count'] == IMAGES


def recording_loss(outputs, batch):
  """On labels that are row numbers: sums which rows were seen.

  Seen with a mask of one, and filled up with a mask of zero; the loss is NaN
  when a poisoned label is in the batch.
  """
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


RECORDING = TASK._replace(loss=recording_loss)


def numbered(poisoned=None):
  """Labels are row numbers, that of the poisoned row is negative."""
  label = np.arange(IMAGES, dtype=np.int32)
  if poisoned is not None:
    label[poisoned] *= -1
  return {**drawn_data(), 'label': label}


def test_an_epoch_draws_each_image_once_in_an_order_of_its_own():
  task = RECORDING
  state, batches = fresh(task=task), []
  for epoch in range(2):
    before = np.zeros(IMAGES)
    for step in range(epoch * EPOCH, (epoch + 1) * EPOCH):
      state, sums, _ = run(state, [step + 1], data=numbered(), task=task)
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


def test_the_first_step_without_a_finite_loss_is_the_last():
  state, row = fresh(task=RECORDING), 13
  for found in range(EPOCH):
    state, sums, bad = run(state, [found + 1], data=numbered(), task=RECORDING)
    assert bad == -1
    if sums['seen'][row]:
      break
  # In one chunk: that step is named, and the rest of it does not run.
  poisoned = numbered(row)
  state, sums, bad = run(
    fresh(task=RECORDING), [EPOCH], data=poisoned, task=RECORDING
  )
  assert bad == found
  assert state.step == found + 1
  assert sums['seen'].sum() == min((found + 1) * BATCH, IMAGES)
  before = jax.device_get(state)
  state, _, bad = run(state, [EPOCH], data=poisoned, task=RECORDING)
  assert bad == found
  assert_equal_bits(jax.device_get(state), before)


def test_an_update_that_is_not_finite_is_the_last_step_too():
  recipe = dataclasses.replace(RECIPE, learning_rate=float('inf'))
  state, _, bad = run(fresh(recipe), [2], recipe=recipe)
  assert bad == 0
  assert state.step == 1


def test_the_loss_falls_on_a_small_problem():
  recipe = dataclasses.replace(RECIPE, steps=30 * EPOCH, crop=0, flip=False)
  state, losses = fresh(recipe), []
  for epoch in range(30):
    state, sums, _ = run(state, [(epoch + 1) * EPOCH], recipe=recipe)
    losses.append(TASK.summarize(jax.device_get(sums)))
  assert losses[-1]['loss'] < 0.5 * losses[0]['loss']
  assert losses[-1]['accuracy'] > 0.9


# --- selection and the next stage -------------------------------------------


def test_only_a_strictly_higher_score_replaces_the_best():
  state = fresh()
  kept = []
  for value, score in ((1.0, 0.5), (2.0, 0.5), (3.0, 0.4), (4.0, 0.6)):
    filled = jax.tree.map(lambda x, v=value: jnp.full_like(x, v), initial())
    state = training.keep_best(state._replace(variables=filled), score)
    kept.append(float(state.best['params']['stem']['theta']))
    assert state.variables['params']['stem']['theta'] == value
  assert kept == [1.0, 1.0, 1.0, 4.0]
  assert state.best_score == np.float32(0.6)


def test_the_next_stage_takes_all_that_there_is_and_adds_thresholds():
  old = jax.tree.map(lambda x: x + 1, initial(32))
  grafted = training.graft(initial(2), old)
  assert jax.tree.structure(grafted) == jax.tree.structure(initial(2))
  new = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(grafted):
    *above, name = (part.key for part in path)
    found = old
    for part in (*above, name):
      found = found.get(part, {}) if isinstance(found, dict) else found
    if name in ('theta', 'weight_alpha'):
      new.append((above[1], name, float(leaf)))
    else:
      np.testing.assert_array_equal(leaf, found)
  assert sorted(new) == [
    ('body', 'theta', 6.0),
    ('body', 'weight_alpha', 3.0),
    ('stem', 'theta', 6.0),
  ]
  # From 4 bits to 3 all is taken over, thresholds too.
  older = jax.tree.map(lambda x: x + 1, initial(2))
  assert_equal_bits(training.graft(initial(2), older), older)


# --- the host's side --------------------------------------------------------


def run_stage(directory, *, asked=lambda: None, task=TASK, **changes):
  settings = {
    'identity': {'seed': 0},
    'recipe': RECIPE,
    'data': drawn_data(),
    'variables': initial(),
    'save_seconds': math.inf,
    'score': lambda variables, epoch: {'accuracy': 0.5, 'score': epoch},
    **changes,
  }
  log = Log(directory)
  feed = feeding.Resident(
    settings.pop('data'),
    jax.random.key(3),
    network=NETWORK,
    task=task,
    recipe=settings['recipe'],
  )
  try:
    return running.run_stage(
      'ann2',
      NETWORK,
      settings.pop('variables'),
      feed,
      task=task,
      log=log,
      directory=directory / 'unfinished' / 'ann2',
      asked=asked,
      **settings,
    )
  finally:
    log.close()


def after(calls, number=signal.SIGTERM):
  """`asked` that says so from the given call on."""
  count = iter(range(10_000))
  return lambda: number if next(count) >= calls else None


def epochs_of(directory):
  return [(row['epoch'], row['step']) for row in Log(directory).rows()]


@pytest.mark.parametrize('calls', [1, 2, 4, 5, 9])
def test_a_stage_that_was_asked_to_end_goes_on_to_the_same_result(
  tmp_path, monkeypatch, capsys, calls
):
  monkeypatch.setattr(running, 'CHUNK_SECONDS', 0)  # chunks of one step
  whole, score = run_stage(tmp_path / 'whole')
  with pytest.raises(SystemExit) as caught:
    run_stage(tmp_path / 'cut', asked=after(calls))
  assert caught.value.code == 143
  said = re.search(r'ann2: saved at step (\d+)', capsys.readouterr().err)
  assert 0 < int(said[1]) < RECIPE.steps
  resumed, again = run_stage(tmp_path / 'cut')
  assert_equal_bits(resumed, whole)
  assert again == score == 3
  for directory in ('whole', 'cut'):
    assert epochs_of(tmp_path / directory) == [
      (epoch, epoch * EPOCH) for epoch in (1, 2, 3)
    ]


def test_saves_in_between_change_nothing(tmp_path):
  whole, _ = run_stage(tmp_path / 'whole')
  saving, _ = run_stage(tmp_path / 'saving', save_seconds=-1)
  assert_equal_bits(saving, whole)
  # Cut at its end, it is not run again.
  again, _ = run_stage(tmp_path / 'saving')
  assert_equal_bits(again, whole)
  assert len(epochs_of(tmp_path / 'saving')) == 3


def test_the_best_epoch_is_returned_not_the_last(tmp_path):
  seen = {}

  def score(variables, epoch):
    seen[epoch] = jax.tree.map(np.array, variables)
    return {'accuracy': 0.0, 'score': -abs(epoch - 2)}

  best, reached = run_stage(tmp_path, score=score)
  assert reached == 0
  assert_equal_bits(jax.tree.map(np.asarray, best), seen[2])


def test_rows_hold_what_was_measured(tmp_path):
  run_stage(tmp_path)
  row = Log(tmp_path).rows()[-1]
  assert row.keys() == {
    'stage',
    'step',
    'epoch',
    'train_accuracy',
    'train_loss',
    'val_accuracy',
    'images_per_second',
    'step_seconds',
  }
  assert row['stage'] == 'ann2'
  assert 0 <= row['train_accuracy'] <= 1
  assert Log(tmp_path).rows()[0]['compile_seconds'] > 0


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_save(tmp_path):
  with pytest.raises(fs.UserError) as caught:
    run_stage(tmp_path, task=RECORDING, data=numbered(13), save_seconds=-1)
  message = str(caught.value)
  assert len(message.splitlines()) == 1
  found = re.search(
    r'not finite at step (\d+) of 21; the save at step (\d+) is kept', message
  )
  assert int(found[2]) <= int(found[1])
  kept = tmp_path / 'unfinished' / 'ann2'
  steps = [int(p.name) for p in kept.iterdir() if p.name.isdigit()]
  assert max(steps, default=0) == int(found[2])


def test_a_save_of_another_run_is_refused_naming_what_differs(tmp_path):
  with pytest.raises(SystemExit):
    run_stage(tmp_path, asked=after(1), identity={'seed': 0, 'model': 'a'})
  for other, variables in (
    ({'seed': 1, 'model': 'a'}, initial()),
    ({'seed': 0, 'model': 'b'}, initial(32)),  # and another tree
  ):
    with pytest.raises(fs.UserError) as caught:
      run_stage(tmp_path, identity=other, variables=variables)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    name = 'seed' if other['seed'] else 'model'
    assert f'{name}={other[name]}' in message
    assert f'{name}={ {"seed": 0, "model": "a"}[name] }' in message


def test_a_trace_of_some_steps_is_written_and_changes_no_bit(tmp_path):
  plain, _ = run_stage(tmp_path / 'plain')
  traced, _ = run_stage(tmp_path / 'traced', trace=tmp_path / 'profile')
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert_equal_bits(traced, plain)
