"""A network in plain JAX, trained with quantised activations, and its twin.

python examples/own_function.py
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from shared.digits import DATA, convert, shown

import fastsnn_jax as fs

BITS = 3


def model(params, x):
  """A skip connection and max pooling; each `act` becomes a neuron."""

  def conv(x, kernel):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=numbers
    )

  def act(x, name):
    theta = jax.nn.softplus(params['theta'][name])  # stays positive
    return fs.quantize_activation(x, theta, BITS, name=name)

  x = act(conv(x, params['stem']) + params['bias'], 'stem')
  x = lax.reduce_window(
    x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'SAME'
  )
  x = act(conv(x, params['body']) + x, 'body')
  return x.mean((1, 2)) @ params['head']


keys = jax.random.split(jax.random.key(0), 3)
params = {
  'stem': jax.random.normal(keys[0], (3, 3, 1, 32)) * 0.4,
  'bias': jnp.zeros(32),
  'body': jax.random.normal(keys[1], (3, 3, 32, 32)) * 0.06,
  'head': jax.random.normal(keys[2], (32, 10)) * 0.2,
  'theta': {'stem': jnp.float32(1.5), 'body': jnp.float32(1.5)},
}

# Quantisation-aware training: the gradients are straight-through.
images, labels = shown(DATA.train['image']), jnp.asarray(DATA.train['label'])
optimizer = optax.adam(4e-3)
moments = optimizer.init(params)


@jax.jit
def step(params, moments, images, labels):
  def loss(params):
    logits = model(params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()

  value, grads = jax.value_and_grad(loss)(params)
  updates, moments = optimizer.update(grads, moments)
  return optax.apply_updates(params, updates), moments, value


for epoch in range(8):
  order = jax.random.permutation(jax.random.key(epoch), len(images))
  for rows in order[: 44 * 32].reshape(44, 32):
    params, moments, value = step(params, moments, images[rows], labels[rows])
  print(f'epoch {epoch + 1}: loss {value:.3f}')

settled, variables = convert(model, params)
print(fs.explain(settled))
