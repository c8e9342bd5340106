"""What a synapse is, and those with a kernel: convolution and dense."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.errors import UserError, check_fields
from fastsnn_jax.nn.quantizers import against, wider
from fastsnn_jax.nn.weights import Apot, kaiming, product, zero_bias

# XLA's CPU compiler brings convolutions into the layout of its fast kernels
# only outside of loops (jax issue 12868): in a scan, the two gradients that JAX
# derives ran 30 times slower. So each tangent is written in the layout whose
# transpose JAX derives in the forward's layout (benchmarks/convolution.py).


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def convolve(x, kernel, stride, padding, dilation=1, groups: int = 1):
  """Cross-correlation of [N, *sides, C] with [*window, C / groups, D].

    out[n, i, j, d] = sum over k, l, c of
      x[n, i stride + k dilation - before, …, c] kernel[k, l, c, d]

  padded with zeros, of sides (H + before + after - (K - 1) dilation - 1) //
  stride + 1, and as many axes as the kernel has. With groups, d sees only the
  channels of its group. Settings are of all axes, or a tuple; padding has
  numbers, pairs (before, after), or is 'SAME' or 'VALID'. UserError for a map
  that is smaller than the window.

  >>> convolve(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), 1, 0, 2).shape
  (1, 1, 1, 1)
  """
  settings = _geometry(x, kernel, stride, padding, dilation)
  return _conv(x, kernel, **settings, feature_group_count=groups)


@convolve.defjvp
def _(stride, padding, dilation, groups, primals, tangents):
  (x, kernel), (dx, dkernel) = primals, tangents
  settings = _geometry(x, kernel, stride, padding, dilation)
  settings['feature_group_count'] = groups
  last, sides = x.ndim - 1, tuple(range(1, x.ndim - 1))
  # Axes of the specs: batch, features, sides; of a kernel out, in, window.
  window = tuple(range(x.ndim - 2))
  plain, swapped = (0, last, *sides), (last - 1, last, *window)
  y = _conv(dx, kernel.swapaxes(-1, -2), (plain, swapped, plain), **settings)
  if any(axis is not None for axis in jax.typeof(x).sharding.spec):
    # Under explicit sharding JAX knows plain batches only.
    y += _conv(x, dkernel, **settings)
    return convolve(x, kernel, stride, padding, dilation, groups), y
  # Channels stand for the batch, which is summed over.
  turned = _conv(
    x.transpose(last, *sides, 0),
    dkernel.transpose(last - 1, *window, last),
    ((last, 0, *sides), (last, 0, *sides), (last - 1, last, *window)),
    **settings,
  )
  y += turned.transpose(last - 1, *window, last)
  return convolve(x, kernel, stride, padding, dilation, groups), y


def _conv(x, kernel, specs=None, **settings):
  if specs is None:
    last, sides = x.ndim - 1, tuple(range(1, x.ndim - 1))
    window = tuple(range(x.ndim - 2))
    plain = (0, last, *sides)
    specs = plain, (last, last - 1, *window), plain
  specs = lax.ConvDimensionNumbers(*specs)
  return lax.conv_general_dilated(
    x, kernel, dimension_numbers=specs, **settings
  )


def _geometry(x, kernel, stride, padding, dilation):
  """Strides, pads and dilations of a convolution, each axis by itself."""
  axes = kernel.ndim - 2
  strides, dilations = each(stride, axes), each(dilation, axes)
  windows = map(_reach, kernel.shape, dilations)
  pads = window_pads(x.shape[1:-1], tuple(windows), strides, padding)
  return {
    'window_strides': strides,
    'padding': pads,
    'rhs_dilation': dilations,
  }


def _reach(places, step):
  """Pixels from the first to the last of so many places, both included."""
  return (places - 1) * step + 1


def each(setting, axes):
  """A setting of all axes, or one for each, as a tuple."""
  return setting if isinstance(setting, tuple) else (setting,) * axes


def window_pads(sides, windows, strides, padding):
  """(before, after) of each axis; UserError where a window does not fit."""
  if isinstance(padding, str):
    pads = tuple(lax.padtype_to_pads(sides, windows, strides, padding))
  else:
    pads = tuple(each(pad, 2) for pad in each(padding, len(sides)))
  for side, window, pad in zip(sides, windows, pads, strict=True):
    if side + sum(pad) < window:
      raise UserError(
        f'a map of {side} pixels with padding {padding} under a window of '
        f'{window}: nothing is left; the network needs larger images'
      )
  return pads


def check_window(owner, *sizes):
  """Brings a synapse's window settings to plain form; UserError for others.

  `sizes` are names of fields that are whole numbers from 1 up, or tuples of
  them; `owner.padding` is from 0 up, may have pairs, and be a text.
  """
  lengths = set()
  for name in (*sizes, 'padding'):
    value, padding = getattr(owner, name), name == 'padding'
    value = _plain(value.upper() if isinstance(value, str) else value)
    object.__setattr__(owner, name, value)
    valid = _is_setting(value, 0 if padding else 1, pairs=padding)
    what = 'a whole number from 1 up, or one for each axis, as (3, 1)'
    if padding:
      what = (
        'a whole number from 0 up, one or a pair for each axis, as ((0, 1), '
        "(2, 2)), 'SAME' or 'VALID'"
      )
      valid = valid or value in ('SAME', 'VALID')
    check_fields(owner, (name, valid, what))
    if isinstance(value, tuple):
      lengths.add(len(value))
  if len(lengths) > 1:
    raise UserError(
      f'{type(owner).__name__}: settings for {" and ".join(map(str, lengths))} '
      'axes, but kernel or window, stride, padding and dilation must be of as '
      'many axes'
    )
  return lengths.pop() if lengths else None


def _plain(value):
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _is_setting(value, low, pairs=False):
  def whole(x):
    return isinstance(x, int | np.integer) and x is not True and x >= low

  def one(x):
    pair = pairs and isinstance(x, tuple) and len(x) == 2
    return all(map(whole, x)) if pair else whole(x)

  return whole(value) or (
    isinstance(value, tuple) and value != () and all(map(one, value))
  )


def check_map(owner, x, axes):
  """UserError for an input of other axes than the window's."""
  if x.ndim < 3 or axes not in (None, x.ndim - 2):
    raise UserError(
      f'{type(owner).__name__}: an input of shape {x.shape}, but it must have '
      f'a batch, {axes or "some"} axes of a map, and channels; use Dense for '
      'plain features'
    )


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
  it at random inputs. If it is `quantal`, the call also takes `quanta`: what
  each input is a multiple of throughout, or None.
  """

  affine: ClassVar[bool | None] = None
  quantal: ClassVar[bool] = False

  @property
  def axes(self) -> int | None:
    """Sides of the map that it needs, None for any."""
    return None

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
    return check_window(self, 'kernel', 'stride', 'dilation')

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

  def _multiply(self, x, kernel):
    window = self.stride, self.padding, self.dilation
    return convolve(x, kernel, *window, self.groups)


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
