"""The digits, a loop that trains any function, and the check of its twin."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fastsnn_jax as fs
from fastsnn_jax.data import named

DATA = named.load('digits')
FIELDS = {'classes': DATA.classes, 'mean': DATA.mean, 'std': DATA.std}
TEST = {'image': DATA.test['image'], 'label': DATA.test['label']}


def shown(images):
  """Raw images as the network takes them."""
  return (jnp.asarray(images, jnp.float32) / 255 - DATA.mean[0]) / DATA.std[0]


def fit(loss, params, state=None, epochs=6, batch=48, rate=4e-3):
  """Adam on loss(params, state, images, labels) -> (loss, new state)."""
  images, labels = shown(DATA.train['image']), jnp.asarray(DATA.train['label'])
  steps = len(images) // batch
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, epochs * steps))
  moments, random = optimizer.init(params), np.random.default_rng(0)

  @jax.jit
  def step(params, state, moments, images, labels):
    grads, state = jax.grad(loss, has_aux=True)(params, state, images, labels)
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, updates), state, moments

  for _ in range(epochs):
    for rows in np.split(
      random.permutation(len(images))[: steps * batch], steps
    ):
      params, state, moments = step(
        params, state, moments, images[rows], labels[rows]
      )
  return params, state


def cross_entropy(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def convert(function, params):
  """The function as a settled network, which answers as the function does."""
  images = shown(TEST['image'])
  network, variables = fs.from_function(function, params, images[:1], **FIELDS)
  settled = fs.to_spiking(network, 'settled')
  rows = fs.compare(network, variables, {'settled': (settled, variables)}, TEST)
  row = rows['settled']
  print(
    f'quantised {row["ann_accuracy"]:.3f}, settled {row["accuracy"]:.3f}, '
    f'the same answer for {row["agreement"]:.4f} of the images'
  )
  assert row['agreement'] > 0.99, 'settled should equal the quantised network'
  return settled, variables
