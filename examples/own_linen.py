"""A flax.linen module with batch norm as a spiking network.

python examples/own_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from shared.digits import convert, cross_entropy, fit

import fastsnn_jax as fs


class Act(nn.Module):
  @nn.compact
  def __call__(self, x):
    alpha = self.param('alpha', lambda _: jnp.float32(2.0))
    return fs.quantize_activation(x, alpha, bits=3)  # named by the module


class CNN(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    norm = lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9)  # noqa: E731
    x = Act(name='stem')(norm()(nn.Conv(16, (3, 3), use_bias=False)(x)))
    x = nn.max_pool(x, (2, 2), (2, 2))
    y = norm()(nn.Conv(16, (3, 3), use_bias=False)(x))
    x = Act(name='block')(y + x)
    return nn.Dense(10)(x.reshape(len(x), -1))


model = CNN()
variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


def loss(params, stats, images, labels):
  logits, new = model.apply(
    {'params': params, 'batch_stats': stats},
    images,
    train=True,
    mutable=['batch_stats'],
  )
  return cross_entropy(logits, labels), new['batch_stats']


params, stats = fit(loss, variables['params'], variables['batch_stats'])
# The function at inference; its "params" are all of Linen's variables.
settled, _ = convert(model.apply, {'params': params, 'batch_stats': stats})
print([site.name for site in settled.firing])
