"""A small vision transformer with quantised activations as a spiking network.

Layer norm, softmax and products of two activities are not driven by spikes:
they send graded differences, and `fs.explain` says so.

python examples/own_transformer.py
"""

import collections

import jax
import jax.numpy as jnp
from shared.digits import convert, cross_entropy, fit

import fastsnn_jax as fs

WIDTH, HEADS, BITS = 32, 2, 4


def model(params, images):
  def act(x, name):
    theta = jax.nn.softplus(params['theta'][name])
    return fs.quantize_activation(x, theta, BITS, name=name)

  def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)

  def heads(x):
    return x.reshape(*x.shape[:2], HEADS, -1)

  # 16 patches of 2 x 2 pixels.
  x = images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
  x = act(x @ params['patch'] + params['place'], 'patch')
  q, k, v = (heads(act(norm(x) @ params[n] + 0.5, n)) for n in 'qkv')
  scores = jnp.einsum('bnhc,bmhc->bhnm', q, k) / 4
  mixed = jnp.einsum('bhnm,bmhc->bnhc', jax.nn.softmax(scores), v)
  x = act(x + mixed.reshape(x.shape) @ params['out'] + params['shift'], 'mix')
  x = act(x + act(x @ params['up'], 'up') @ params['down'], 'mlp')
  return x.mean(1) @ params['head']


shapes = {
  **{'patch': (4, WIDTH), 'place': (16, WIDTH), 'shift': (WIDTH,)},
  **dict.fromkeys(('q', 'k', 'v', 'out'), (WIDTH, WIDTH)),
  **{'up': (WIDTH, 64), 'down': (64, WIDTH), 'head': (WIDTH, 10)},
}
keys = jax.random.split(jax.random.key(0), len(shapes))
params = {
  name: jax.random.normal(key, shape) / shape[0] ** 0.5
  for key, (name, shape) in zip(keys, shapes.items(), strict=True)
}
sites = ('patch', 'q', 'k', 'v', 'mix', 'up', 'mlp')
params['theta'] = {name: jnp.float32(2.0) for name in sites}


def loss(params, _, images, labels):
  return cross_entropy(model(params, images), labels), None


params, _ = fit(loss, params)
settled, _ = convert(model, params)
lines = fs.explain(settled)
print(collections.Counter(line.kind for line in lines))
print('made graded by', sorted({x.name for x in lines if x.makes_graded}))
