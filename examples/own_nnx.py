"""A flax.nnx module with batch norm as a spiking network.

python examples/own_nnx.py
"""

import jax.numpy as jnp
from flax import nnx
from shared.digits import convert, cross_entropy, fit

import fastsnn_jax as fs


class CNN(nnx.Module):
  def __init__(self, rngs):
    def conv(before):
      return nnx.Conv(before, 16, (3, 3), use_bias=False, rngs=rngs)

    self.stem, self.body = conv(1), conv(16)
    self.norms = nnx.List([nnx.BatchNorm(16, rngs=rngs) for _ in range(2)])
    self.alphas = nnx.Param(jnp.full(2, 2.0))
    self.head = nnx.Linear(4 * 4 * 16, 10, rngs=rngs)

  def __call__(self, x):
    first, second = self.alphas[...]
    x = self.norms[0](self.stem(x))
    x = fs.quantize_activation(x, first, bits=3, name='stem')
    x = nnx.max_pool(x, (2, 2), (2, 2))
    y = self.norms[1](self.body(x))
    x = fs.quantize_activation(y + x, second, bits=3, name='block')
    return self.head(x.reshape(len(x), -1))


graph, params, rest = nnx.split(CNN(nnx.Rngs(0)), nnx.Param, ...)


def loss(params, rest, images, labels):
  model = nnx.merge(graph, params, rest, copy=True)
  model.train()
  logits = model(images)
  return cross_entropy(logits, labels), nnx.split(model, nnx.Param, ...)[2]


def inference(states, images):
  model = nnx.merge(graph, *states)
  model.eval()
  return model(images)


settled, _ = convert(inference, fit(loss, params, rest))
print([site.name for site in settled.firing])
