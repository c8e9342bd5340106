"""An Equinox module as a spiking network: one image, and `jax.vmap`.

python examples/own_equinox.py
"""

import importlib.util
import sys

import jax
import jax.numpy as jnp
from shared.digits import convert, cross_entropy, fit

import fastsnn_jax as fs

if importlib.util.find_spec('equinox') is None:
  print('pip install equinox first, then this shows its settled network')
  sys.exit()

import equinox as eqx


class CNN(eqx.Module):
  stem: eqx.nn.Conv2d
  body: eqx.nn.Conv2d
  pool: eqx.nn.MaxPool2d
  head: eqx.nn.Linear
  alphas: jax.Array

  def __init__(self, key):
    keys = jax.random.split(key, 3)
    self.stem = eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0])
    self.body = eqx.nn.Conv2d(16, 16, 3, padding=1, key=keys[1])
    self.pool = eqx.nn.MaxPool2d(2, 2)
    self.head = eqx.nn.Linear(16 * 16, 10, key=keys[2])
    self.alphas = jnp.full(2, 2.0)

  def __call__(self, image):  # [C, H, W]
    x = fs.quantize_activation(self.stem(image), self.alphas[0], 3, 'stem')
    x = self.pool(x)
    x = fs.quantize_activation(self.body(x) + x, self.alphas[1], 3, 'block')
    return self.head(x.ravel())


# Arrays are the parameters; the rest goes back into the function.
arrays, rest = eqx.partition(CNN(jax.random.key(0)), eqx.is_array)


def function(arrays, images):
  return jax.vmap(eqx.combine(arrays, rest))(images.transpose(0, 3, 1, 2))


def loss(arrays, _, images, labels):
  return cross_entropy(function(arrays, images), labels), None


arrays, _ = fit(loss, arrays)
settled, _ = convert(function, arrays)
print([site.name for site in settled.firing])
