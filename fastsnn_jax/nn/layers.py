"""What a synapse is, and those with a kernel: convolution and dense."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.weights import Apot, kaiming, product, zero_bias

# XLA's CPU compiler brings convolutions into the layout of its fast kernels
# only outside of loops (jax issue 12868): in a scan, the two gradients that JAX
# derives ran 35 times slower. In the forward's layout they are as fast as it is
# (benchmarks/convolution.py). The price: no forward-mode differentiation.

_conv = functools.partial(
  lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x, kernel, stride: int, padding: int, dilation: int = 1):
  """Cross-correlation of [N, H, W, C] with [K, L, C, D], padded with zeros.

    out[n, i, j, d] = sum over k, l, c of
      x[n, i stride + k dilation - padding, …, c] kernel[k, l, c, d]

  of shape [N, (H + 2 padding - (K - 1) dilation - 1) // stride + 1, …, D].
  UserError for a map that is smaller than the window.

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
  pads, strides, dilations = ((n, n) for n in (padding, stride, dilation))
  return _conv(x, kernel, strides, (pads, pads), rhs_dilation=dilations)


def _reach(places, step):
  """Pixels from the first to the last of so many places, both included."""
  return (places - 1) * step + 1


def _backward(stride, padding, dilation, saved, g):
  (x, kernel), to_x, to_kernel = saved, [], []
  # Along each axis, g lies at every stride-th of `reach` places.
  axes = zip(x.shape[1:3], kernel.shape[:2], g.shape[1:3], strict=True)
  for size, places, out in axes:
    reach, window = _reach(out, stride), _reach(places, dilation)
    before = window - 1 - padding
    to_x.append((before, size + window - 1 - reach - before))
    to_kernel.append((padding, reach + window - 1 - size - padding))
  strides, dilations = (stride, stride), (dilation, dilation)
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _conv(g, turned, (1, 1), to_x, strides, dilations)
  # Channels stand for the batch, which is summed over.
  x, g = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
  dkernel = _conv(x, g, dilations, to_kernel, rhs_dilation=strides)
  return dx, dkernel.transpose(1, 2, 0, 3)


convolve.defvjp(lambda *args: (convolve(*args), args[:2]), _backward)


class BatchNorm(nn.Module):
  """PyTorch's batch norm: momentum 0.1, unbiased running variance, eps 1e-5.

  Statistics are taken over every axis but the last, in at least float32, and
  over the whole of a sharded batch.
  """

  @nn.compact
  def __call__(self, x, train=False):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean_ = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var_ = self.variable('batch_stats', 'var', jnp.ones, shape)
    mean, var = mean_.value, var_.value
    if train:
      axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
      mean = jnp.mean(x, axes)
      var = jnp.mean(jnp.square(x - mean), axes)
      if not self.is_initializing():
        unbiased = var * (count / max(count - 1, 1))
        mean_.value += 0.1 * (mean - mean_.value)
        var_.value += 0.1 * (unbiased - var_.value)
    factor = scale / jnp.sqrt(var + 1e-5)
    return x * factor + (bias - mean * factor)


class Synapse(nn.Module):
  """Base of all synapses: the activities of some layers -> a layer's current.

  A Linen module that knows nothing of time. One of your own defines
  `__call__(*inputs, train=False)`. Conversion takes it if it is affine in the
  inputs at inference: it says so, `affine = True` in the class itself, or shows
  it at random inputs. If it is `quantal`, the call also takes `quanta`: what
  each input is a multiple of throughout, or None.
  """

  affine: ClassVar[bool | None] = None
  quantal: ClassVar[bool] = False

  def connect(self, *inputs):
    """The map with unit weights and no bias, to count connections by."""
    raise UserError(
      f'{type(self).__name__} has no connect(*inputs), so its connections '
      'cannot be counted; define the map with unit weights and no bias'
    )


def declared(synapse) -> bool | None:
  """Whether a synapse is affine, as its own class says; None if it does not.

  What a class of one's own inherits says nothing: it may do something else.
  """
  kind = type(synapse)
  ours = kind.__module__.startswith('fastsnn_jax.')
  return synapse.affine if ours or 'affine' in vars(kind) else None


class _Weighted(Synapse):
  affine: ClassVar[bool | None] = True
  quantal: ClassVar[bool] = True

  features: int
  weights: Any = None
  norm: bool = True
  kernel_init: Callable = kaiming
  bias_init: Callable = zero_bias

  @nn.compact
  def __call__(self, x, train=False, quanta=(None,)):
    x, shape = self._operands(x)
    kernel, alpha = self.param('kernel', self.kernel_init, shape), None
    if isinstance(self.weights, Apot):
      initial = self.weights.initial_alpha
      alpha = self.param('weight_alpha', lambda _: jnp.float32(initial))
    y = product(self.weights, x, kernel, alpha, quanta[0], self._multiply)
    if self.norm:
      return BatchNorm(name='norm')(y, train)
    bias = self.param('bias', self.bias_init, shape)
    return y + bias  # in the wider of the two dtypes


class Conv(_Weighted):
  """2-D convolution, then batch norm or a bias: [N, H, W, C] -> [N, h, w, D].

    h = (H + 2 padding - (kernel - 1) dilation - 1) // stride + 1

  The padding is symmetric, as PyTorch's; 'SAME' is not, for a stride of 2. A
  map that is smaller than the window is a UserError when it runs.

  Attributes:
    features: D.
    weights: how the kernel is quantised: `Apot`, `EightBit`, or None.
    norm: batch norm if True, else a bias.
    kernel_init: (key, (kernel, kernel, C, D)) -> initial kernel.
    bias_init: (key, shape of the kernel) -> initial bias, [D].
    kernel, stride, padding, dilation: of both axes, in pixels.

  >>> conv = Conv(16, stride=2, weights=Apot(3))
  >>> image = jnp.ones((1, 8, 8, 3))
  >>> conv.apply(conv.init(jax.random.key(0), image), image).shape
  (1, 4, 4, 16)
  """

  kernel: int = 3
  stride: int = 1
  padding: int = 1
  dilation: int = 1

  def connect(self, x):
    x, shape = self._operands(x)
    return self._multiply(x, jnp.ones(shape, x.dtype))

  def _operands(self, x):
    return x, (self.kernel, self.kernel, x.shape[-1], self.features)

  def _multiply(self, x, kernel):
    return convolve(x, kernel, self.stride, self.padding, self.dilation)


class Dense(_Weighted):
  """Fully connected, then batch norm or a bias: [N, ...] -> [N, features].

  y = x W + b, W of (inputs, features). Maps are flattened in (H, W, C) order,
  which binds the layer to one image size. Fields as in `Conv`.

  >>> dense = Dense(10, norm=False)
  >>> maps = jnp.ones((2, 4, 4, 3))
  >>> dense.apply(dense.init(jax.random.key(0), maps), maps).shape
  (2, 10)
  """

  def connect(self, x):
    total = jnp.sum(x.reshape(x.shape[0], -1), -1, keepdims=True)
    return jnp.broadcast_to(total, (x.shape[0], self.features))

  def _operands(self, x):
    x = x.reshape(x.shape[0], -1)
    return x, (x.shape[-1], self.features)

  def _multiply(self, x, kernel):
    return x @ kernel
