"""A table of layers and all that is static beside it, with their checks."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded.kernels import is_folded
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.synapses import Synapse, check_inputs, remembers
from fastsnn_jax.nn.whole import check_precision

IMAGE = 'image'  # the name under which rows ask for the network's input

Neuron = Relu | QuantRelu | IntegrateAndFire


@dataclasses.dataclass(frozen=True)
class Layer:
  """One row of the table: the synapse turns the activities of `inputs`, rows
  further up or 'image', into the layer's current.

  >>> import fastsnn_jax as fs
  >>> row = fs.Layer('second', fs.Conv(16), inputs=('first',))
  """

  name: str
  synapse: Synapse
  inputs: tuple[str, ...] = (IMAGE,)

  def __post_init__(self):
    inputs = self.inputs
    inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    object.__setattr__(self, 'inputs', inputs)
    try:
      check_inputs(self.synapse, len(inputs))
    except UserError as error:
      raise UserError(f'layer {self.name!r}: {error}') from None


@dataclasses.dataclass(frozen=True)
class Table:
  """What a `Network` is; `Network` runs it, and describes the fields."""

  fold: ClassVar[Callable | None] = None  # of what is no table of rows

  layers: tuple[Layer, ...]
  neuron: Neuron
  model: str | None = None
  bits: int = 32
  classes: tuple[str, ...] = ()
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  task: str = 'classification'
  stride: int = 1
  remainder: int = 0
  anchors: tuple[tuple[float, float], ...] = ()
  overlap: float = 0.5
  size: int = 0
  precision: str = 'high'

  def __post_init__(self):
    check_precision(self.precision)
    object.__setattr__(self, 'layers', tuple(self.layers))
    if isinstance(self.neuron, type) or not hasattr(self.neuron, 'respond'):
      raise UserError(
        f'neuron={self.neuron!r}, but it must be Relu(), QuantRelu(bits=…) or '
        'IntegrateAndFire(steps=…)'
      )
    for name in ('mean', 'std'):
      self._as_numbers(name)
    if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
      raise UserError(
        f'mean={self.mean}, std={self.std}, but they must have one number for '
        'each channel, those of std above 0'
      )
    self._check_rows()

  def _check_rows(self):
    if odd := [x for x in self.layers if not isinstance(x, Layer)]:
      raise UserError(
        f'layers: a {type(odd[0]).__name__}, but each row must be an '
        'fs.Layer(name, synapse, inputs)'
      )
    if not self.layers:
      raise UserError('a network of 0 layers, but at least one row is needed')
    names = {IMAGE}
    for layer in self.layers:
      if layer.name in names:
        raise UserError(f'layer {layer.name!r}: the name is taken; choose one')
      if missing := [name for name in layer.inputs if name not in names]:
        raise UserError(
          f'layer {layer.name!r}: its input {missing[0]!r} is no row further '
          f'up; there are {sorted(names)}'
        )
      names.add(layer.name)

  def _as_numbers(self, name):
    """Makes a field a tuple of finite numbers, which can be compared."""
    value = getattr(self, name)
    try:
      numbers = tuple(map(float, value))
    except (TypeError, ValueError):
      numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
      raise UserError(
        f'{name}={value!r}, but it must be finite numbers, one for each channel'
      )
    object.__setattr__(self, name, numbers)

  @property
  def spiking(self) -> bool:
    return isinstance(self.neuron, IntegrateAndFire)

  @property
  def folded(self) -> bool:
    """Whether `fs.fold` made it."""
    return any(is_folded(layer.synapse) for layer in self.layers)

  @property
  def depth(self) -> int:
    """The most rows with a neuron that stand behind one another."""
    depths: dict[str, int] = {}
    for layer in self.firing:
      before = (depths.get(name, 0) for name in layer.inputs)
      depths[layer.name] = 1 + max(before, default=0)
    return max([0, *depths.values()])

  @property
  def single_steps(self) -> bool:
    """Whether a step of its rows needs nothing but the voltages."""
    return not any(remembers(layer.synapse) for layer in self.layers)

  @property
  def until_quiet(self) -> bool:
    """Whether it runs until no neuron fires: IntegrateAndFire's 'auto'."""
    return isinstance(self.neuron, IntegrateAndFire) and self.neuron.until_quiet

  @property
  def bound(self) -> int:
    """Steps without input after which settling until quiet ends in any case.

    Once all that feeds a row is quiet, its current is 0, and each of its
    neurons moves its count by one a step until it rests: by the largest count
    at most. So where counts are capped at T, L rows in a chain are quiet after
    L T steps.
    """
    neuron = self.neuron
    if not isinstance(neuron, IntegrateAndFire):
      return 0
    return max(neuron.steps, neuron.max_count or 0) * self.depth

  @property
  def most_steps(self) -> int:
    """The steps that it runs at most, those of `bound` among them."""
    neuron = self.neuron
    if not isinstance(neuron, IntegrateAndFire):
      return 1
    return neuron.steps + self.bound if self.until_quiet else neuron.total_steps

  @property
  def firing(self) -> tuple[Layer, ...]:
    """The rows with a neuron: all but the read-out."""
    return self.layers[:-1]

  def _check_shape(self, images, params=None):
    shape = np.shape(images)
    ranks = self._ranks(params)
    if len(shape) < 2 or (ranks and len(shape) not in ranks):
      rank = max(ranks, default=4)
      forms = {2: 'F', 3: 'L, C', 4: 'H, W, C', 5: 'D, H, W, C'}
      form = forms.get(rank, f'{rank - 2} sides, C')
      raise UserError(f'images of shape {shape}, but they must be [B, {form}]')
    sides = shape[1:-1]
    if any((side - self.remainder) % self.stride for side in sides):
      beside = f' and {self.remainder} more' if self.remainder else ''
      raise UserError(
        f'images of {" x ".join(map(str, sides))} pixels, but the sides must '
        f'be multiples of {self.stride}{beside} for '
        f'{self.model or "this network"}; {"pad" if beside else "resize"} them'
      )

  def _ranks(self, params):
    """Axes that images may have, by kernels or the table; empty for any."""
    seeing = [layer for layer in self.layers if IMAGE in layer.inputs]
    if stated := list(filter(None, (x.synapse.axes for x in seeing))):
      return {axes + 2 for axes in stated}
    if params is None:  # at init
      return {4} if self.model else set()
    mine = [params.get(layer.name, {}) for layer in seeing]
    leaves = jax.tree_util.tree_leaves_with_path(mine)
    kernels = {np.ndim(x) for path, x in leaves if path[-1].key == 'kernel'}
    return kernels - {2} if params else {4}

  def thetas(self, variables) -> dict[str, Any]:
    """The threshold, or clip, of each firing layer that has one."""
    return {
      layer.name: variables['params'][layer.name]['theta']
      for layer in self.firing
      if 'theta' in variables['params'].get(layer.name, ())
    }

  def check_variables(self, variables, name: str = 'network') -> None:
    """Raises a UserError for what are no variables of this network."""
    tree = variables.get('params') if isinstance(variables, Mapping) else None
    rows = {layer.name for layer in self.layers}
    strange = isinstance(tree, Mapping) and tree and not tree.keys() & rows
    if strange or not isinstance(tree, Mapping):  # more rows do no harm
      found = sorted(tree or ()) if isinstance(tree, Mapping) else 'no "params"'
      raise UserError(
        f'the variables of {name} are of type {type(variables).__name__} with '
        f"{found}, but they must be {{'params': …, 'batch_stats': …}} of rows "
        f'{sorted(rows)}, as its init or fs.load gives them'
      )


def own_variables(variables, name):
  """One row's part of a tree of variables."""
  return {kind: tree[name] for kind, tree in variables.items() if name in tree}
