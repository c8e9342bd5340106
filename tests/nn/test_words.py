"""Words of spikes beside the scan, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsnn_jax as fs
from fastsnn_jax.nn.folded import words
from fastsnn_jax.nn.integrate_and_fire import Rule

RULES = {
  'signed': {},
  'unsigned': {'signed': False},
  'settled': {'negative_threshold': 0.0, 'max_count': 2},
  'taken back at once': {'negative_threshold': 0.4},
}


@functools.cache
def both(mode, steps):
  """(words of currents [B, T, N], the scan's spikes), compiled once."""
  rule = Rule(steps, **RULES[mode])

  @jax.jit
  def run(currents, theta):
    like = currents[:, 0]
    start = functools.partial(words.at_rest, like, theta)
    current = lambda t: currents[:, t]  # noqa: E731
    settings = current, theta, rule, steps, start
    gather = functools.partial(words.gather, *settings)
    found = words.kept(gather, theta, current, steps)
    one = functools.partial(fs.integrate_and_fire, theta=theta, **RULES[mode])
    trains = jax.vmap(one)(currents)
    each = jnp.stack([words.step(found, t) for t in range(steps)], 1)
    return words.train(found, steps), each, words.total(found), trains

  return run


@pytest.mark.parametrize('mode', RULES)
@pytest.mark.parametrize('steps', [1, 7, 18, 35])
@given(seed=st.integers(0, 2**32 - 1), theta=st.floats(2**-3, 4, width=32))
def test_words_hold_the_spikes_of_the_scan(mode, steps, seed, theta):
  random = np.random.default_rng(seed)
  currents = random.normal(size=(2, steps, 64)) + random.uniform(-0.3, 1.2, 64)
  # On thresholds, too, and with some that are no numbers.
  even = random.random(currents.shape) < 0.3
  currents = np.where(even, theta * np.round(2 * currents) / 2, currents)
  currents[0, random.integers(steps), 5] = np.nan
  train, each, total, expected = both(mode, steps)(
    currents.astype(np.float32), np.float32(theta)
  )
  np.testing.assert_array_equal(train, expected)
  np.testing.assert_array_equal(each, expected)
  np.testing.assert_array_equal(total, expected.sum(1))


def test_without_a_threshold_all_is_nan():
  train, each, total, _ = both('signed', 7)(jnp.ones((1, 7, 3)), jnp.nan)
  assert np.isnan(train).all()
  assert np.isnan(each).all()
  assert np.isnan(total).all()
