"""Gradients of a convolution inside a scan: ours beside those JAX derives.

python -m benchmarks.convolution
"""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import compare, show, table
from fastsnn_jax.nn.convolve import convolve


def derived(x, kernel, stride, padding):
  pads = ((padding, padding),) * 2
  layout = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, kernel, (stride,) * 2, pads, dimension_numbers=layout
  )


def steps(function, x, count):
  """`count` gradient steps of two layers, in a scan or one after another."""

  def loss(kernel):
    hidden = jnp.maximum(function(x, kernel, 1, 1), 0)
    return jnp.sum(jnp.square(function(hidden, kernel, 1, 1)))

  def step(kernel, _):
    return kernel - 1e-6 * jax.grad(loss)(kernel), None

  if count == 1:
    return jax.jit(lambda kernel: step(kernel, None)[0])
  return jax.jit(lambda kernel: lax.scan(step, kernel, length=count)[0])


def main():
  x = jax.random.normal(jax.random.key(0), (64, 8, 8, 16))
  kernel = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, 16, 16))
  count = 10
  took = compare(
    {
      'derived, one step': (steps(derived, x, 1), kernel),
      'ours, one step': (steps(convolve, x, 1), kernel),
      f'derived, {count} steps in a scan': (steps(derived, x, count), kernel),
      f'ours, {count} steps in a scan': (steps(convolve, x, count), kernel),
    }
  )
  title = 'Gradients of two 3 x 3 layers, 64 x 8 x 8 x 16'
  show(table(title, took, 'ours, one step'))


if __name__ == '__main__':
  main()
