"""2-D convolution whose gradients stay fast inside a loop on a CPU.

XLA's CPU compiler brings convolutions into the layout of its fast kernels only
outside of loops (jax issue 12868). The two gradients that JAX derives have
other layouts, and in the body of a scan they ran 35 times slower; written in
the forward's layout from the start, all three are fast everywhere
(benchmarks/convolution.py). On a GPU or TPU it makes no difference.

The price is that forward-mode differentiation stops here; reverse mode and
`vmap` of it work.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.errors import UserError


def _conv(x, kernel, pads, **spread):
  return lax.conv_general_dilated(
    x,
    kernel,
    padding=pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    **{'window_strides': (1, 1), **spread},
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x, kernel, stride: int, padding: int):
  """Cross-correlation with symmetric zero padding.

  Args:
    x: [N, H, W, C].
    kernel: [K, L, C, D], dtype of `x`.
    stride, padding: of both axes, in pixels.

  Returns:
    [N, (H + 2 padding - K) // stride + 1, …, D].

  >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 2, 1).shape
  (1, 2, 2, 1)
  """
  for size, window in zip(x.shape[1:3], kernel.shape[:2], strict=True):
    if size + 2 * padding < window:
      raise UserError(
        f'a map of {size} pixels with padding {padding} under a window of '
        f'{window}: nothing is left; the network needs larger images'
      )
  pads = ((padding, padding),) * 2
  return _conv(x, kernel, pads, window_strides=(stride, stride))


def _forward(x, kernel, stride, padding):
  return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
  x, kernel = saved
  # Along each axis, g lies at every stride-th of `reach` places.
  to_x, to_kernel = [], []
  for size, window, out in zip(
    x.shape[1:3], kernel.shape[:2], g.shape[1:3], strict=True
  ):
    reach = (out - 1) * stride + 1
    before = window - 1 - padding
    to_x.append((before, size + window - 1 - reach - before))
    to_kernel.append((padding, reach + window - 1 - size - padding))
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _conv(g, turned, to_x, lhs_dilation=(stride, stride))
  dkernel = _conv(  # channels stand for the batch, which is summed over
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    to_kernel,
    rhs_dilation=(stride, stride),
  )
  return dx, dkernel.transpose(1, 2, 0, 3)


convolve.defvjp(_forward, _backward)
