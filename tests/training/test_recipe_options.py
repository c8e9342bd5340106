"""Options beside the official recipe, against NumPy written for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training import (
  CLASSES,
  after,
  assert_close,
  assert_equal_bits,
  experiment,
  initial,
  run_stage,
  tiny,
  train_steps,
)

from fastsnn_jax import tasks
from fastsnn_jax.training import loop
from fastsnn_jax.training.optimizer import learning_rate, make_optimizer
from fastsnn_jax.training.step import keep_best

pytestmark = pytest.mark.once

EPOCH, STEPS = 7, 21
NETWORK = tiny()
TASK = tasks.for_network(NETWORK)
OPTIONS = {
  'optimizer': 'adamw',
  'warmup': 5 / EPOCH,
  'ema': 0.8,
  'jitter': 0.3,
  'learning_rate': 0.01,
}


@pytest.mark.parametrize('decay', ['all', 'kernels'])
def test_adamw(decay):
  config = experiment(
    optimizer='adamw', decay=decay, weight_decay=0.1, learning_rate=0.02
  )
  random = np.random.default_rng(0)
  shapes = {'kernel': (3, 2), 'theta': (), 'weight_alpha': (), 'bias': (2,)}
  params = {'layer': {k: random.normal(size=s) for k, s in shapes.items()}}
  optimizer = make_optimizer(config, config.stages[0], EPOCH)
  ours = jax.tree.map(jnp.float32, params)
  state = optimizer.init(ours)
  first, second = (
    {name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2)
  )
  for step in range(STEPS):
    rate = 0.02 * (1 + np.cos(np.pi * step / STEPS)) / 2
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
  rate, usual = (
    learning_rate(config, config.stages[0], EPOCH)
    for config in (
      experiment(schedule=schedule, warmup=warmup)
      for warmup in (5 / EPOCH, 0.0)
    )
  )
  for step in range(STEPS):
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
  again = tasks.for_network(NETWORK, smoothing=0.2)
  assert (again, hash(again)) == (task, hash(task))  # compiled once


def test_the_moving_average_follows_each_step_and_is_what_is_judged():
  config, state = experiment(**OPTIONS), None
  average = jax.tree.map(np.array, initial())
  for step in range(EPOCH):
    state, _ = train_steps(NETWORK, initial(), config, 1, state=state)
    decay = 0.8 * (1 - np.exp(-(step + 1) / 2000))
    average = jax.tree.map(
      lambda a, v, decay=decay: decay * a + (1 - decay) * np.asarray(v),
      average,
      state.variables,
    )
  assert_close(state.average, average, rtol=1e-5, atol=1e-6)
  state = keep_best(state, 0.5)
  assert_equal_bits(state.best, state.average)
  plain, _ = train_steps(NETWORK, initial(), experiment(), 1)
  assert plain.average == {}
  assert plain.judged is plain.variables


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_cut_run_with_all_options_goes_on_to_the_same_bits(
  tmp_path, monkeypatch, accumulate
):
  config = experiment(
    **OPTIONS, accumulate=accumulate, remat=True, dtype='bfloat16'
  )
  monkeypatch.setattr(loop, 'LOOK_SECONDS', 0)  # looks at each step
  whole, _ = run_stage(tmp_path / 'whole', config)
  with pytest.raises(SystemExit):
    run_stage(tmp_path / 'cut', config, asked=after(4))
  resumed, _ = run_stage(tmp_path / 'cut', config)
  assert_equal_bits(resumed, whole)
