"""A Haiku function with batch norm as a spiking network.

python examples/own_haiku.py
"""

import importlib.util
import sys

import jax
import jax.numpy as jnp
from shared.digits import convert, cross_entropy, fit

import fastsnn_jax as fs

if importlib.util.find_spec('haiku') is None:
  print('pip install dm-haiku first, then this shows its settled network')
  sys.exit()

import haiku as hk


def model(x, train):
  def norm(x):
    return hk.BatchNorm(True, True, decay_rate=0.9)(x, train)

  def act(x, name):
    alpha = hk.get_parameter(name, (), init=hk.initializers.Constant(2.0))
    return fs.quantize_activation(x, alpha, bits=3, name=name)

  x = act(norm(hk.Conv2D(16, 3, with_bias=False)(x)), 'stem')
  x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), 'VALID')
  x = act(norm(hk.Conv2D(16, 3, with_bias=False)(x)) + x, 'block')
  return hk.Linear(10)(x.reshape(len(x), -1))


made = hk.without_apply_rng(hk.transform_with_state(model))
params, state = made.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)), True)


def loss(params, state, images, labels):
  logits, state = made.apply(params, state, images, True)
  return cross_entropy(logits, labels), state


def function(variables, images):
  return made.apply(*variables, images, False)[0]


settled, _ = convert(function, fit(loss, params, state))
print([site.name for site in settled.firing])
