"""Official PyTorch checkpoints into our trees of variables, and back.

Both directions walk `names.leaves`. Beside the names, three things differ:
kernels are (O, I, H, W) there and (H, W, I, O) here; the first dense layer
flattens (C, H, W) there and (H, W, C) here; and a bias in front of a batch
norm, which changes nothing, is subtracted from the running mean here.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fastsnn_jax import architectures
from fastsnn_jax.checkpoint.values import fault
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.synapses import Chain
from fastsnn_jax.nn.tables.table import IMAGE
from fastsnn_jax.torch_interop.files import write
from fastsnn_jax.torch_interop.names import (
  COUNTER,
  leaves,
  maps_out,
  official_names,
)
from fastsnn_jax.torch_interop.wrappers import PREFIX, entries, state_dict

_Path = str | os.PathLike
_Source = _Path | Mapping[str, Any]


def load_torch(
  path_or_state_dict: _Source, model: str, bits: int, *, anchors=None
) -> dict[str, Any]:
  """Variables from an official checkpoint, of an ANN or of a spiking network.

  They are as from `network.init`, in the file's dtypes, half precision as
  float32. The file must have all keys of the model and no others, beside
  `num_batches_tracked`; what wrappers put around it ('net', 'model', …) and
  before its keys ('module.', '_orig_mod.', 'model.', …) is dropped, and
  torchvision's names of a float ResNet are known. It says how many classes and
  channels (1 or 3) there are, but not the bit width: 3 and 4 bits cannot be
  told apart. Format: reference behaviour C8; arXiv 2305.19868.

  Args:
    path_or_state_dict: a `.npz`, a file of `torch.save` (with the extra
      `torch`), a module, or official keys to arrays, bare or in entries.
    model, bits, anchors: as of `fs.build`; anchors if not the official ones.

  UserError for a missing or extra key, a wrong shape or dtype, a threshold that
  is not positive, values that are not finite, a negative variance, a
  weight_alpha of 0, or a file that cannot be read; no code of a file is run.

  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_resnet8', bits=2)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> state = fs.save_torch(variables, 'small_resnet8', 2)
  >>> params = fs.load_torch(state, 'small_resnet8', 2)['params']
  >>> params['layer0']['theta'].item()
  6.0
  """
  network = _network(model, bits, anchors, lambda leaf: None)
  state = state_dict(path_or_state_dict, next(leaves(network)).key)
  state = official_names(network, state)
  given = {key: np.shape(value) for key, value in state.items()}
  network = _network(model, bits, anchors, lambda leaf: given.get(leaf.key))
  stem = given.get(next(leaves(network)).key, ())
  shapes, maps = _shapes(network, 1 if stem[1:2] == (1,) else 3)

  where = f'{model} at {bits} bits'
  expected = [leaf for leaf in leaves(network) if leaf.kind != 'counter']
  keys = [leaf.key for leaf in expected]
  found = [key for key in state if not key.endswith(f'.{COUNTER}')]
  for key in (*keys, *found):
    if key not in found or key not in keys:
      what = f'in the file, but not in {where}'
      what = f'missing, but {where} has it' if key in keys else what
      held = f'; it holds {entries(state)}' if key in keys else ''
      raise UserError(
        f'key {key!r} is {what}; is this the file of another model or bit '
        f'width{held}?'
      )

  ours = {}
  for leaf in expected:
    value, shape = state[leaf.key], shapes[leaf.path]
    if wrong := _wrong(leaf, value, _official(leaf, shape), where):
      raise UserError(f'key {leaf.key!r}: {wrong}')
    if leaf.kind == 'kernel':
      height, width, channels = maps.get(leaf.unit, shape[:-1])
      value = value.reshape(-1, channels, height, width)
      value = value.transpose(2, 3, 1, 0).reshape(shape)
    if leaf.path in ours:  # a mean: the bias that it takes up came first
      value = value - ours[leaf.path]
    ours[leaf.path] = value
  return unflatten_dict({path: jnp.asarray(x) for path, x in ours.items()})


def save_torch(
  variables, model: str, bits: int, path: _Path | None = None, *, anchors=None
) -> dict[str, np.ndarray]:
  """The official state_dict of a network trained or converted here.

  The inverse of `load_torch`, bit by bit, but for biases in front of a batch
  norm, which come out as zeros (the same function). Official keys, in their
  order and without a prefix, to NumPy arrays. With a `path` they are written,
  too: as `.npz`, or by `torch.save` as the official scripts expect it, inside
  of {'state_dict': ...} except for a detector, and the keys with 'module.' for
  classifiers that are no ResNets.

  UserError for variables of another model, or without torch to write with.

  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_yolo', bits=2, classes=4)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  >>> state = fs.save_torch(variables, 'small_yolo', 2)
  >>> state['backbone.pred.block.bias'].shape
  (27,)
  """
  ours = flatten_dict(dict(variables))
  given = {path: np.shape(value) for path, value in ours.items()}
  network = _network(model, bits, anchors, lambda leaf: given.get(leaf.path))
  stem = given.get(next(leaves(network)).path, ())
  shapes, maps = _shapes(network, stem[-2] if stem[1:] else 3)
  for key in sorted(shapes.keys() | given.keys()):
    shape, expected = given.get(key), shapes.get(key)
    if shape != expected:
      raise UserError(
        f'variables {"/".join(key)}: shape {shape}, but {model} at {bits} bits '
        f'has {expected}; are they those of another model or bit width?'
      )

  state, ours[None] = {}, np.zeros((), np.int64)  # the counters
  for leaf in leaves(network):
    value = np.asarray(ours[leaf.path])
    if leaf.kind == 'folded':
      value = np.zeros_like(value)
    elif leaf.kind == 'kernel':
      shape = value.shape
      value = value.reshape(*maps.get(leaf.unit, shape[:-1]), -1)
      value = value.transpose(3, 2, 0, 1).reshape(_official(leaf, shape))
    state[leaf.key] = value
  if path is not None:
    prefix = '' if maps_out(network) or 'resnet' in model else PREFIX
    write(state, os.fspath(path), bare=bool(network.anchors), prefix=prefix)
  return state


def _network(model, bits, anchors, shape_of):
  """A network of as many classes as the bias of the read-out has room for."""
  own = {} if anchors is None else {'anchors': anchors}
  network = architectures.build(model, bits, **own)
  *_, head = leaves(network)
  if not (shape := shape_of(head)):
    return network  # it is reported with all that is missing
  boxes = len(network.anchors)
  each, rest = boxes or 1, 5 * boxes
  classes, left = divmod(shape[0] - rest, each)
  if left or classes < 1:
    raise UserError(
      f'key {head.key!r}: {shape[0]} outputs, but {model} has {each} per class '
      f'and {rest} beside them; is this the file of another model?'
    )
  classes = max(classes, 1 if boxes else 2)
  return architectures.build(model, bits, classes, **own)


def _shapes(network, channels):
  """({path: shape of our leaf}, {dense layer: (H, W, C) that it flattens})"""
  size = architectures.model(network.model).size
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


def _official(leaf, shape):
  return (*shape[:-3:-1], *shape[:-2]) if leaf.kind == 'kernel' else shape


def _wrong(leaf, value, shape, where):
  """What is wrong with an array of a file, or None."""
  if value.shape != shape:
    return (
      f'shape {value.shape}, but {where} has {shape} there; is this the file '
      'of another model?'
    )
  if not jnp.issubdtype(value.dtype, jnp.floating):
    return f'dtype {value.dtype}, but weights are floating point'
  return fault(
    ('batch_stats', 'mean') if leaf.kind == 'folded' else leaf.path, value
  )
