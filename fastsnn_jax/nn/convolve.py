"""Convolution of one to three axes, and the settings of its window."""

import functools

import jax
import numpy as np
from jax import lax

from fastsnn_jax.errors import UserError, check_fields

# XLA's CPU compiler brings convolutions into the layout of its fast kernels
# only outside of loops (jax issue 12868): in a scan, the two gradients that JAX
# derives ran 30 times slower. So each tangent is written in the layout whose
# transpose JAX derives in the forward's layout (benchmarks/convolution.py).


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5, 6, 7))
def convolve(
  x,
  kernel,
  stride,
  padding,
  dilation=1,
  groups: int = 1,
  precision=None,
  sums=None,
):
  """Cross-correlation of [N, *sides, C] with [*window, C / groups, D].

    out[n, i, j, d] = sum over k, l, c of
      x[n, i stride + k dilation - before, …, c] kernel[k, l, c, d]

  padded with zeros, of sides (H + before + after - (K - 1) dilation - 1) //
  stride + 1, and as many axes as the kernel has. With groups, d sees only the
  channels of its group. Settings are of all axes, or a tuple; padding has
  numbers, pairs (before, after), or is 'SAME' or 'VALID'. `precision` is JAX's,
  `sums` a wider dtype of sums and output. UserError for a map that is smaller
  than the window.

  >>> import jax.numpy as jnp
  >>> convolve(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), 1, 0, 2).shape
  (1, 1, 1, 1)
  """
  settings = _geometry(x, kernel, stride, padding, dilation)
  settings |= {'feature_group_count': groups, 'precision': precision}
  return _conv(x, kernel, **settings, preferred_element_type=sums)


@convolve.defjvp
def _(stride, padding, dilation, groups, precision, sums, primals, tangents):
  settings = stride, padding, dilation, groups, precision
  z = convolve(*primals, *settings, sums)
  if sums is not None:  # JAX transposes no product of two dtypes
    primals, tangents = (
      [a.astype(sums) for a in pair] for pair in (primals, tangents)
    )
  return z, _tangent(primals, tangents, *settings)


def _tangent(primals, tangents, stride, padding, dilation, groups, precision):
  (x, kernel), (dx, dkernel) = primals, tangents
  settings = _geometry(x, kernel, stride, padding, dilation)
  settings |= {'feature_group_count': groups, 'precision': precision}
  last, sides = x.ndim - 1, tuple(range(1, x.ndim - 1))
  # Axes of the specs: batch, features, sides; of a kernel out, in, window.
  window = tuple(range(x.ndim - 2))
  plain, swapped = (0, last, *sides), (last - 1, last, *window)
  y = _conv(dx, kernel.swapaxes(-1, -2), (plain, swapped, plain), **settings)
  if any(axis is not None for axis in jax.typeof(x).sharding.spec):
    # Under explicit sharding JAX knows plain batches only.
    return y + _conv(x, dkernel, **settings)
  # Channels stand for the batch, which is summed over.
  turned = _conv(
    x.transpose(last, *sides, 0),
    dkernel.transpose(last - 1, *window, last),
    ((last, 0, *sides), (last, 0, *sides), (last - 1, last, *window)),
    **settings,
  )
  return y + turned.transpose(last - 1, *window, last)


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


def axes_of(*settings) -> int | None:
  """As many axes as the settings that are tuples have; None for any."""
  return next((len(x) for x in settings if isinstance(x, tuple)), None)


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
