"""Options beside the reference's recipe, against NumPy written for them."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_devices import (
  CLASSES,
  EPOCH,
  NETWORK,
  RECIPE,
  TASK,
  assert_close,
  initial,
  run_stage,
)
from test_training import drawn_data

from fastsnn_jax import tasks
from fastsnn_jax.training import loop as running
from fastsnn_jax.training import step as training

OPTIONS = dataclasses.replace(
  RECIPE, method='adamw', warmup=5, ema=0.8, jitter=0.3, learning_rate=0.01
)


@pytest.mark.parametrize('decay', ['all', 'kernels'])
def test_adamw(decay):
  recipe = dataclasses.replace(
    RECIPE, method='adamw', decay=decay, weight_decay=0.1, learning_rate=0.02
  )
  random = np.random.default_rng(0)
  shapes = {'kernel': (3, 2), 'theta': (), 'weight_alpha': (), 'bias': (2,)}
  params = {'layer': {k: random.normal(size=s) for k, s in shapes.items()}}
  optimizer = recipe.optimizer()
  ours = jax.tree.map(jnp.float32, params)
  state = optimizer.init(ours)
  first, second = (
    {name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2)
  )
  for step in range(recipe.steps):
    rate = 0.02 * (1 + np.cos(np.pi * step / recipe.steps)) / 2
    grads = jax.tree.map(lambda p: random.normal(size=np.shape(p)), params)
    updates, state = optimizer.update(
      jax.tree.map(jnp.float32, grads), state, ours
    )
    ours = jax.tree.map(jnp.add, ours, updates)
    for name, g in grads['layer'].items():
      first[name] = 0.9 * first[name] + 0.1 * g
      second[name] = 0.999 * second[name] + 0.001 * g**2
      mean = first[name] / (1 - 0.9 ** (step + 1))
      size = np.sqrt(second[name] / (1 - 0.999 ** (step + 1)))
      pull = 0.1 * (decay == 'all' or name == 'kernel')
      p = params['layer'][name]
      params['layer'][name] = p - rate * (mean / (size + 1e-8) + pull * p)
  assert_close(ours, params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('schedule', ['cosine', 'constant', 'step'])
def test_the_rate_rises_in_the_warmup(schedule):
  recipe = dataclasses.replace(RECIPE, schedule=schedule, warmup=5)
  usual = dataclasses.replace(recipe, warmup=0).schedule_of_rate()
  rate = recipe.schedule_of_rate()
  for step in range(recipe.steps):
    share = (0.2, 0.4, 0.6, 0.8, 1.0)[min(step, 4)]
    np.testing.assert_allclose(rate(step), share * usual(step), rtol=1e-6)


def test_label_smoothing():
  random = np.random.default_rng(0)
  outputs = random.normal(size=(6, CLASSES)).astype(np.float32)
  label = random.integers(0, CLASSES, 6)
  mask = np.float32([1, 1, 0, 1, 1, 0])
  batch = {'label': jnp.asarray(label), 'mask': jnp.asarray(mask)}
  task = tasks.for_network(NETWORK, smoothing=0.2)
  target = 0.8 * np.eye(CLASSES)[label] + 0.2 / CLASSES
  log_p = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
  wanted = -(target * log_p).sum(1) @ mask
  loss, sums = task.loss(jnp.asarray(outputs), batch)
  np.testing.assert_allclose(loss, wanted / 4, rtol=1e-5)
  np.testing.assert_allclose(sums['loss'], wanted, rtol=1e-5)
  _, plain = TASK.loss(jnp.asarray(outputs), batch)
  for name in ('correct', 'count'):  # the answers are not smoothed
    assert sums[name] == plain[name]
  assert task is tasks.for_network(NETWORK, smoothing=0.2)  # compiled once


def test_the_moving_average_follows_each_step_and_is_what_is_judged():
  state = training.create(initial(), OPTIONS, TASK)
  data = jax.tree.map(jnp.asarray, drawn_data())
  average = jax.tree.map(np.array, initial())
  for step in range(EPOCH):
    state, _, _ = training.train_chunk(
      state,
      data,
      jax.random.key(3),
      step + 1,
      network=NETWORK,
      task=TASK,
      recipe=OPTIONS,
    )
    decay = 0.8 * (1 - np.exp(-(step + 1) / 2000))
    average = jax.tree.map(
      lambda a, v, decay=decay: decay * a + (1 - decay) * np.asarray(v),
      average,
      state.variables,
    )
  assert_close(state.average, average, rtol=1e-5, atol=1e-6)
  state = training.keep_best(state, 0.5)
  jax.tree.map(np.testing.assert_array_equal, state.best, state.average)
  plain = training.create(initial(), RECIPE, TASK)
  assert plain.average == {}
  assert plain.shown is plain.variables


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_cut_run_with_all_options_goes_on_to_the_same_bits(
  tmp_path, monkeypatch, accumulate
):
  recipe = dataclasses.replace(
    OPTIONS, accumulate=accumulate, remat=True, dtype='bfloat16'
  )
  monkeypatch.setattr(running, 'CHUNK_SECONDS', 0)  # chunks of one step
  whole = run_stage(tmp_path / 'whole', recipe, 'float32')
  calls = iter(range(100))
  with pytest.raises(SystemExit):
    run_stage(
      tmp_path / 'cut',
      recipe,
      'float32',
      lambda: signal.SIGTERM if next(calls) == 4 else None,
    )
  resumed = run_stage(tmp_path / 'cut', recipe, 'float32')
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
