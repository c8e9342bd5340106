"""What a synapse is, and those with a kernel: convolution and dense."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError, check_fields
from fastsnn_jax.nn.convolve import (
  axes_of,
  check_map,
  check_window,
  convolve,
  each,
)
from fastsnn_jax.nn.quantizers import against, wider
from fastsnn_jax.nn.weights import Apot, kaiming, product, zero_bias


class BatchNorm(nn.Module):
  """PyTorch's batch norm: momentum 0.1, unbiased running variance, eps 1e-5.

  Statistics are taken over every axis but the last, in at least float32, and
  over the whole of a sharded batch.
  """

  @nn.compact
  def __call__(self, x, train=False):
    x = x.astype(wider(x.dtype, jnp.float32))
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean_ = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var_ = self.variable('batch_stats', 'var', jnp.ones, shape)
    mean, var = mean_.value, var_.value
    if train:
      axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
      mean = jnp.mean(x, axes)
      var = jnp.mean(jnp.square(x - against(mean, x.ndim)), axes)
      if not self.is_initializing():
        unbiased = var * (count / max(count - 1, 1))
        mean_.value += 0.1 * (mean - mean_.value)
        var_.value += 0.1 * (unbiased - var_.value)
    factor = scale / jnp.sqrt(var + 1e-5)
    shift = bias - mean * factor
    return x * against(factor, x.ndim) + against(shift, x.ndim)


class Synapse(nn.Module):
  """Base of all synapses: the activities of some layers -> a layer's current.

  A Linen module that knows nothing of time. One of your own defines
  `__call__(*inputs, train=False)`. Conversion takes it if it is affine in the
  inputs at inference: it says so, `affine = True` in the class itself, or shows
  it at random inputs. If it is `quantal`, the call also takes `quanta`: what is
  known of each input, a `Quantum`, or None.
  """

  affine: ClassVar[bool | None] = None
  quantal: ClassVar[bool] = False
  over_time: ClassVar[bool] = False  # it has a rule for spikes of its own

  @property
  def axes(self) -> int | None:
    """Sides of the map that it needs, None for any."""
    return None

  def hands_on(self, quanta, *inputs):
    """The `Quantum` of the output; of a current only the precision is known."""
    known = [quantum for quantum in quanta if quantum is not None]
    return known[0].float_only() if known else None

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


def convertible(synapse) -> bool | None:
  """Whether a synapse may take spikes, as it says; None if it does not say."""
  if 'over_time' in vars(type(synapse)):
    return synapse.over_time
  if type(synapse).__module__.startswith('fastsnn_jax.'):
    parts = getattr(synapse, 'parts', None)
    if parts is not None:
      known = [convertible(part) for part in parts if part is not None]
      return False if False in known else None if None in known else True
  return declared(synapse)


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
    stored: Any = self.get_variable('params', 'kernel')
    if stored is not None and stored.shape != shape:
      raise UserError(
        f'{type(self).__name__}: a kernel of shape {stored.shape}, but an '
        f'input of shape {x.shape} needs {shape}; give inputs of the shape '
        'that the network was made for'
      )
    kernel, alpha = self.param('kernel', self.kernel_init, shape), None
    if isinstance(self.weights, Apot):
      initial = self.weights.initial_alpha
      alpha = self.param('weight_alpha', lambda _: jnp.float32(initial))
    y = product(self.weights, x, kernel, alpha, quanta[0], self._multiply)
    if self.norm:
      return BatchNorm(name='norm')(y, train)
    bias = self.param('bias', self.bias_init, shape)
    wide = wider(y.dtype, bias.dtype)
    return y.astype(wide) + against(bias.astype(wide), y.ndim)


class Conv(_Weighted):
  """Convolution, then batch norm or a bias: [N, H, W, C] -> [N, h, w, D].

    h = (H + before + after - (kernel - 1) dilation - 1) // stride + 1

  Maps of one axis or three work alike: as many as the settings that are tuples
  have, or else the input. UserError for settings of another kind; when it runs,
  for a map smaller than the window, or of other axes or groups.

  Attributes:
    features: D.
    weights: how the kernel is quantised: `Apot`, `EightBit`, or None.
    norm: batch norm if True, else a bias.
    kernel_init: (key, (*window, C / groups, D)) -> initial kernel.
    bias_init: (key, shape of the kernel) -> initial bias, [D].
    kernel, stride, dilation: of all axes, or a tuple with each axis's.
    padding: likewise, of zeros; an axis may have a pair, (before, after).
      'SAME': ceil(H / stride) pixels are left, an odd zero stands after;
      'VALID': none.
    groups: parts of the channels that are convolved alone; C for a depthwise
      convolution.

  >>> import jax
  >>> conv = Conv(16, stride=2, weights=Apot(3))
  >>> image = jnp.ones((1, 8, 8, 3))
  >>> conv.apply(conv.init(jax.random.key(0), image), image).shape
  (1, 4, 4, 16)
  """

  kernel: int | tuple[int, ...] = 3
  stride: int | tuple[int, ...] = 1
  padding: int | str | tuple[Any, ...] = 1
  dilation: int | tuple[int, ...] = 1
  groups: int = 1

  def __post_init__(self):
    check_window(self, 'kernel', 'stride', 'dilation')
    whole = isinstance(self.groups, int | np.integer) and self.groups >= 1
    fits = whole and self.features % self.groups == 0
    check_fields(self, ('groups', fits, f'a divisor of {self.features=}'))
    super().__post_init__()

  @property
  def axes(self):
    return axes_of(self.kernel, self.stride, self.padding, self.dilation)

  def connect(self, x):
    x, shape = self._operands(x)
    return self._multiply(x, jnp.ones(shape, x.dtype))

  def _operands(self, x):
    check_map(self, x, self.axes)
    channels = x.shape[-1]
    if channels % self.groups:
      raise UserError(
        f'Conv: groups={self.groups}, but it must divide the {channels} '
        'channels of the input'
      )
    window = each(self.kernel, x.ndim - 2)
    return x, (*window, channels // self.groups, self.features)

  def _multiply(self, x, kernel, precision=None, sums=None):
    window = self.stride, self.padding, self.dilation
    return convolve(x, kernel, *window, self.groups, precision, sums)


class Dense(_Weighted):
  """Fully connected, then batch norm or a bias: [N, ...] -> [N, features].

  y = x W + b, W of (inputs, features). Maps are flattened in (H, W, C) order,
  which binds the layer to one image size. Fields as in `Conv`.

  >>> import jax
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

  def _multiply(self, x, kernel, precision=None, sums=None):
    return jnp.matmul(
      x, kernel, precision=precision, preferred_element_type=sums
    )
