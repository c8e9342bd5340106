"""One walk over a table of layers, for all files that have a node for each."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.convolve import each, window_pads
from fastsnn_jax.nn.folded.fold import kernels
from fastsnn_jax.nn.folded.kernels import Folded
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.synapses import (
  AveragePool,
  Chain,
  Concat,
  GlobalAveragePool,
  MaxPool,
  Residual,
  SpaceToDepth,
)
from fastsnn_jax.nn.tables.table import IMAGE


class Value(NamedTuple):
  """What travels between nodes: `unit` times the tensor of a name.

  `shape` is that of an image's part here, channels last and without the batch.
  """

  name: str
  shape: tuple[int, ...]
  unit: float = 1.0


@dataclasses.dataclass(frozen=True)
class Window:
  """The geometry of a convolution or pooling, each axis by itself."""

  size: tuple[int, ...]
  strides: tuple[int, ...]
  pads: tuple[tuple[int, int], ...]
  dilations: tuple[int, ...] = ()


class Weights(NamedTuple):
  """scale (x * kernel) + offset, as `fs.fold` computes it, in NumPy.

  `kernel` is [*window, C, D] or [C, D], of whole numbers or float32; scale and
  offset are [D]. A dense kernel has a `window` of None.
  """

  kernel: Any
  scale: Any
  offset: Any
  window: Window | None
  groups: int

  @property
  def whole(self) -> bool:
    return np.issubdtype(self.kernel.dtype, np.integer)

  def values(self):
    """The kernel as floats, with its scale in it."""
    return np.asarray(self.kernel, np.float32) * self.scale

  def positive(self):
    """(kernel, scale) with whole numbers turned round where a scale is not
    above 0: quantised formats have positive scales only."""
    sign = np.sign(self.scale)
    scale = np.where(sign == 0, 1, np.abs(self.scale))
    return self.kernel.astype(np.int32) * sign.astype(np.int32), scale


def walk(network, variables, image_shape, make) -> None:
  """Goes down the table; `make` gets a call for each node.

  Args:
    network, variables: a table, folded or not.
    image_shape: [H, W, C], or the axes that the table takes.
    make: has `image()`, `row(name, last)`, `neuron(current, theta)`, which
      gives what the next rows see and what the read-out sees, `output(current)`
      and a method for each kind of synapse.
  """
  ready = kernels(network, variables)
  ready = jax.tree.map(np.asarray, ready)
  seen = {IMAGE: (make.image(), make.image(read_out=True))}
  for layer in network.layers:
    last = layer is network.layers[-1]
    make.row(layer.name, last)
    inputs = [seen[name][last] for name in layer.inputs]
    tree = ready['params'].get(layer.name, {})
    try:
      current = _emit(layer.synapse, tree.get('synapse', {}), inputs, make)
      if last:
        make.output(current)
      else:
        seen[layer.name] = make.neuron(current, _theta(tree))
    except UserError as error:
      raise UserError(f'layer {layer.name!r}: {error}') from None


def _theta(tree):
  theta = np.asarray(tree.get('theta', np.float32(1)), np.float32)
  if theta.ndim or not theta > 0:
    raise UserError(
      f'theta of shape {theta.shape} with {theta.ravel()[:1]}, but an export '
      'takes one positive number for a layer; train the network so'
    )
  return float(theta)


def _emit(part, tree, inputs, make):
  if isinstance(part, Folded):
    part = part.part
  match part:
    case None:
      return inputs[0]
    case Residual():
      body = _emit(part.body, tree.get('body', {}), inputs[:1], make)
      skip = _emit(part.shortcut, tree.get('shortcut', {}), inputs[1:], make)
      return make.add(body, skip)
    case Chain():
      for i, inner in enumerate(part.parts):
        own = tree.get(f'parts_{i}', {})
        inputs = [_emit(inner, own, inputs, make)]
      return inputs[0]
    case Concat():
      pairs = enumerate(zip(part.parts, inputs, strict=True))
      parts = [
        _emit(inner, tree.get(f'parts_{i}', {}), [x], make)
        for i, (inner, x) in pairs
      ]
      channels = sum(x.shape[-1] for x in parts)
      return make.concat(parts, (*parts[0].shape[:-1], channels))
  (x,) = inputs
  kinds = Conv, Dense, AveragePool, GlobalAveragePool, SpaceToDepth, MaxPool
  if type(part) not in kinds:
    raise UserError(
      f'{type(part).__name__} is no synapse that this format has; fs.export '
      "takes those of fs, and anything with format='stablehlo'"
    )
  shape = _shape(part, x.shape)
  match part:
    case Conv() | Dense():
      return make.weighted(x, _weights(part, tree, x.shape), shape)
    case AveragePool():
      return make.average(x, _window(part, part.window, x.shape), shape)
    case MaxPool():
      return make.largest(x, _window(part, part.window, x.shape), shape)
    case GlobalAveragePool():
      return make.mean(x, shape)
  return make.blocks(x, part.block, shape)


def _shape(part, shape):
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return jax.eval_shape(part.connect, x).shape[1:]


def _weights(part, tree, shape) -> Weights:
  kernel, window = tree['kernel'], None
  if not np.issubdtype(kernel.dtype, np.integer):
    kernel = kernel.astype(np.float32)
  if isinstance(part, Conv):
    window = _window(part, kernel.shape[:-2], shape, part.dilation)
  floats = (tree[name].astype(np.float32) for name in ('scale', 'offset'))
  needed = math.prod(shape) if window is None else shape[-1]
  groups = getattr(part, 'groups', 1)
  if kernel.shape[-2] * groups != needed:
    raise UserError(
      f'a kernel of shape {kernel.shape}, but an input of shape {shape}; give '
      'the image_shape that the network was made for'
    )
  return Weights(kernel, *floats, window, groups)


def _window(part, size, shape, dilation=1) -> Window:
  axes = len(shape) - 1
  size, strides, dilations = (
    each(x, axes) for x in (size, part.stride, dilation)
  )
  reach = tuple(
    (k - 1) * step + 1 for k, step in zip(size, dilations, strict=True)
  )
  pads = window_pads(shape[:-1], reach, strides, part.padding)
  return Window(size, strides, pads, dilations)
