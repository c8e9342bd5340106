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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x, kernel, stride: int, padding: int, dilation: int = 1):
  """Cross-correlation with symmetric zero padding.

    out[n, i, j, d] = sum over k, l, c of
      x[n, i stride + k dilation - padding, …, c] kernel[k, l, c, d]

  Args:
    x: [N, H, W, C].
    kernel: [K, L, C, D], dtype of `x`.
    stride, padding, dilation: of both axes, in pixels.

  Returns:
    [N, (H + 2 padding - (K - 1) dilation - 1) // stride + 1, …, D].

  Raises:
    UserError: a map that is smaller than the window.

  >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 2, 1).shape
  (1, 2, 2, 1)
  >>> convolve(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), 1, 0, 2).shape
  (1, 1, 1, 1)
  """
  for size, places in zip(x.shape[1:3], kernel.shape[:2], strict=True):
    window = _reach(places, dilation)
    if size + 2 * padding < window:
      raise UserError(
        f'a map of {size} pixels with padding {padding} under a window of '
        f'{window}: nothing is left; the network needs larger images'
      )
  return _conv(
    x,
    kernel,
    ((padding, padding),) * 2,
    window_strides=(stride, stride),
    rhs_dilation=(dilation, dilation),
  )


def _reach(places, step):
  """Pixels from the first to the last of so many places, both included."""
  return (places - 1) * step + 1


def _forward(x, kernel, stride, padding, dilation):
  return convolve(x, kernel, stride, padding, dilation), (x, kernel)


def _backward(stride, padding, dilation, saved, g):
  x, kernel = saved
  # Along each axis, g lies at every stride-th of `reach` places.
  to_x, to_kernel = [], []
  for size, places, out in zip(
    x.shape[1:3], kernel.shape[:2], g.shape[1:3], strict=True
  ):
    reach, window = _reach(out, stride), _reach(places, dilation)
    before = window - 1 - padding
    to_x.append((before, size + window - 1 - reach - before))
    to_kernel.append((padding, reach + window - 1 - size - padding))
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _conv(
    g,
    turned,
    to_x,
    lhs_dilation=(stride, stride),
    rhs_dilation=(dilation, dilation),
  )
  dkernel = _conv(  # channels stand for the batch, which is summed over
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    to_kernel,
    window_strides=(dilation, dilation),
    rhs_dilation=(stride, stride),
  )
  return dx, dkernel.transpose(1, 2, 0, 3)


convolve.defvjp(_forward, _backward)
