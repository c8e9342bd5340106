"""Official PyTorch checkpoints into our trees of variables, and back.

`names.leaves` lists a network's official keys with our leaves; both directions
walk that list. Three things differ beside the names: kernels are (O, I, H, W)
there and (H, W, I, O) here; the first dense layer flattens (C, H, W) there and
(H, W, C) here; and a bias in front of a batch norm, which changes nothing, is
subtracted from the running mean here. Everything else is copied bit by bit.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fastsnn_jax.architectures import build
from fastsnn_jax.architectures import model as registered
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import IMAGE
from fastsnn_jax.nn.synapses import Chain
from fastsnn_jax.torch_interop.files import PREFIX, state_dict, write
from fastsnn_jax.torch_interop.names import (
  COUNTER,
  leaves,
  maps_out,
  read_out_width,
)


def load_torch(
  path_or_state_dict: str | os.PathLike | Mapping[str, Any],
  model: str,
  bits: int,
  *,
  anchors=None,
) -> dict[str, Any]:
  """Variables from an official checkpoint, of an ANN or of a spiking network.

  Strict: the file must have every key of the model, and no other; only
  `num_batches_tracked` is ignored. A leading 'module.' of a key is dropped. The
  read-out says how many classes there are, and the first layer how many
  channels (1 or 3). The bit width is not in the file: 3 and 4 bits cannot be
  told apart. Format: reference behaviour C8; code of arXiv 2305.19868.

  Args:
    path_or_state_dict: a `.npz`, a file of `torch.save` (with the extra
      `torch`), or a mapping from the official keys to arrays; the mapping may
      be wrapped as {'state_dict': ...}.
    model: one of `fs.models()`.
    bits: those of the checkpoint, 32 for float.
    anchors: of a detector, if they are not the official ones.

  Returns:
    {'params': ..., 'batch_stats': ...} as from `network.init`, in the file's
    dtypes (float64 where JAX's x64 is on).

  Raises:
    UserError: a missing or extra key, a wrong shape or dtype, a threshold that
      is not positive, or a file that cannot be read.

  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_resnet8', bits=2)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> state = save_torch(variables, 'small_resnet8', 2)
  >>> state['layer0.block.0.weight'].shape
  (16, 1, 3, 3)
  >>> load_torch(state, 'small_resnet8', 2)['params']['layer0']['theta'].item()
  6.0
  """
  state = state_dict(path_or_state_dict)
  network = build(model, bits, **_own(anchors))
  head, stem = list(leaves(network))[-1].key, next(leaves(network)).key
  channels = _length(state, stem, 1, 3)
  width = _length(state, head, 0, None)
  network = _with_read_out(network, head, width, anchors)
  shapes, maps = _shapes(network, channels if channels == 1 else 3)

  where = f'{model} at {bits} bits'
  expected = list(leaves(network))
  keys = {leaf.key for leaf in expected}
  another = 'is this the file of another model or bit width?'
  for leaf in expected:
    if leaf.key not in state and leaf.kind != 'counter':
      raise UserError(
        f'key {leaf.key!r} is missing, but {where} has it; {another}'
      )
  for key in state:
    if key not in keys and not key.endswith(f'.{COUNTER}'):
      raise UserError(
        f'key {key!r} is in the file, but not in {where}; {another}'
      )

  ours, folded = {}, []
  for leaf in expected:
    if leaf.kind == 'counter':
      continue
    value = state[leaf.key]
    _check(leaf, value, _official_shape(leaf, shapes[leaf.path]), where)
    if leaf.kind == 'folded':
      folded.append((leaf.path, value))
      continue
    if leaf.kind == 'kernel':
      value = _import_kernel(value, maps.get(leaf.unit))
    ours[leaf.path] = value
  for mean, bias in folded:
    ours[mean] = ours[mean] - bias
  return unflatten_dict({path: jnp.asarray(x) for path, x in ours.items()})


def save_torch(
  variables: Mapping[str, Any],
  model: str,
  bits: int,
  path: str | os.PathLike | None = None,
  *,
  anchors=None,
) -> dict[str, np.ndarray]:
  """The official state_dict of a network trained or converted here.

  The inverse of `load_torch`, bit by bit, but for biases in front of a batch
  norm: they come out as zeros (the same function).

  Args:
    variables: as from `network.init`.
    model: one of `fs.models()`.
    bits: those of the network.
    anchors: of a detector, if they are not the official ones.
    path: also write a file: `.npz`, or anything else by `torch.save`, as
      {'state_dict': ...}. Keys of such a file have the prefix 'module.' where
      the official scripts expect it (classifiers, but for the ResNets). A
      detector's is the bare state_dict.

  Returns:
    Official keys, without a prefix, to NumPy arrays, in the official order.

  Raises:
    UserError: variables that are not those of the model, or no torch to write
      the file with.

  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_yolo', bits=2, classes=4)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  >>> save_torch(variables, 'small_yolo', 2)['backbone.pred.block.bias'].shape
  (27,)
  """
  ours = flatten_dict(dict(variables))
  network = build(model, bits, **_own(anchors))
  head, stem = list(leaves(network))[-1].path, next(leaves(network)).path
  if head not in ours or stem not in ours:
    raise UserError(
      f'variables without {"/".join(head if stem in ours else stem)}, but '
      f'{model} at {bits} bits has it; are they those of another model?'
    )
  width = np.shape(ours[head])[0]
  network = _with_read_out(network, '/'.join(head), width, anchors)
  shapes, maps = _shapes(network, np.shape(ours[stem])[-2])
  given = {key: np.shape(value) for key, value in ours.items()}
  for key in sorted(shapes.keys() | given.keys()):
    shape, expected = given.get(key), shapes.get(key)
    if shape != expected:
      raise UserError(
        f'variables {"/".join(key)}: shape {shape}, but {model} at {bits} '
        f'bits has {expected} there; are they those of another model or bit '
        'width?'
      )

  state = {}
  for leaf in leaves(network):
    if leaf.kind == 'counter':
      state[leaf.key] = np.zeros((), np.int64)
      continue
    value = state[leaf.key] = np.asarray(ours[leaf.path])
    if leaf.kind == 'folded':
      state[leaf.key] = np.zeros_like(value)
    elif leaf.kind == 'kernel':
      state[leaf.key] = _export_kernel(value, maps.get(leaf.unit))
  if path is not None:
    prefix = '' if maps_out(network) or 'resnet' in model else PREFIX
    write(state, os.fspath(path), bare=bool(network.anchors), prefix=prefix)
  return state


def _own(anchors):
  return {} if anchors is None else {'anchors': anchors}


# --- shapes -----------------------------------------------------------------


def _shapes(network, channels):
  """({path: shape of our leaf}, {dense layer: (H, W, C) that it flattens})"""
  size = registered(network.model).size
  image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), image)
  _, activations = jax.eval_shape(network.apply, variables, image)
  activations[IMAGE] = image
  maps = {}
  for layer in network.layers:
    shape = activations[layer.inputs[0]].shape[1:]
    # A vector, or a map that is pooled before the dense layer, is 1 x 1.
    pooled = isinstance(layer.synapse, Chain) or len(shape) == 1
    maps[layer.name] = (1, 1, shape[-1]) if pooled else shape
  return {k: v.shape for k, v in flatten_dict(variables).items()}, maps


def _with_read_out(network, key, width, anchors):
  """The network with as many classes as its read-out of this width has."""
  if width is None:  # the missing key is reported with the others
    return network
  each, rest = read_out_width(network)
  classes, left = divmod(width - rest, each)
  if left or classes < 1:
    raise UserError(
      f'key {key!r}: {width} outputs, but {network.model} has {each} for each '
      f'of its classes and {rest} beside them; is this the file of another '
      'model?'
    )
  classes = max(classes, 1 if rest else 2)
  return build(network.model, network.bits, classes, **_own(anchors))


def _official_shape(leaf, shape):
  return (*shape[:-3:-1], *shape[:-2]) if leaf.kind == 'kernel' else shape


def _import_kernel(kernel, flattened):
  if flattened is None:
    return kernel.transpose(2, 3, 1, 0)
  height, width, channels = flattened
  kernel = kernel.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
  return kernel.reshape(height * width * channels, -1)


def _export_kernel(kernel, flattened):
  if flattened is None:
    return kernel.transpose(3, 2, 0, 1)
  kernel = kernel.reshape(*flattened, -1).transpose(3, 2, 0, 1)
  return kernel.reshape(kernel.shape[0], -1)


def _length(state, key, axis, default):
  shape = np.shape(state[key]) if key in state else ()
  return shape[axis] if len(shape) > axis else default


def _check(leaf, value, shape, where):
  if value.shape != shape:
    raise UserError(
      f'key {leaf.key!r}: shape {value.shape}, but {where} has {shape} there; '
      'is this the file of another model?'
    )
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise UserError(
      f'key {leaf.key!r}: dtype {value.dtype}, but weights are floating point'
    )
  if leaf.kind == 'theta' and not value > 0:
    raise UserError(
      f'key {leaf.key!r}: {value}, but no neuron has a threshold that is not '
      'positive; train it again with a smaller learning rate'
    )
