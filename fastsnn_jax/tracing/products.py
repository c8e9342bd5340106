"""Which values of a function are whole numbers of a unit, and their products.

The activity of a site is its level, or its spikes, times theta / T or theta. So
a product of it with what has no steps is one of whole numbers, which is the
same in the function and in its spiking twin on every device (`nn.whole`).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from fastsnn_jax.nn.folded.together import Packing
from fastsnn_jax.nn.quantizers import wider
from fastsnn_jax.nn.whole import Quantum, exact_product, join

_SAME = 'copy', 'copy_p', 'neg', 'stop_gradient', 'sharding_constraint'
_LARGEST = 'reduce_max', 'reduce_window_max'


def of_site(theta, quantum) -> Quantum:
  """What is known of a site's answer, of the `Quantum` for its theta.

  Thetas are one for all, or one for each channel; of others nothing is known.
  """
  if theta.size != 1 and theta.size != theta.shape[-1]:
    return Quantum()
  unit = theta.reshape(()) if theta.size == 1 else theta.reshape(-1)
  return dataclasses.replace(quantum, unit=unit)


def handed(equation, quanta, values) -> Quantum:
  """What is known of what an equation gives.

  Args:
    equation: of values of which one at least comes of a site.
    quanta: of each operand; None where no site is in it, and a `Quantum`
      without a unit where nothing else is known.
    values: the operands without steps; others are not read.
  """
  name, params = equation.primitive.name, equation.params
  places = [i for i, q in enumerate(quanta) if q is not None]
  units = [quanta[i] for i in places]
  if any(q.unit is None for q in units):
    return Quantum()
  x, y = equation.invars[places[0]].aval, equation.outvars[0].aval
  if not jnp.issubdtype(y.dtype, jnp.floating) or y.dtype.itemsize < 4:
    return Quantum()
  if name == 'concatenate' and len(places) == len(quanta):
    return _joined(equation, units)
  if name in ('add', 'add_any', 'sub') and len(places) == 2:
    one, other = units
    if one.unit is not other.unit:
      return Quantum()
    return dataclasses.replace(one, largest=one.largest + other.largest)
  if len(places) != 1:
    return Quantum()
  quantum = units[0]
  if name in ('mul', 'div'):
    return _scaled(name, quantum, places[0], values)
  count = _count(name, x, params)
  if places != [0] or count is None or not _takes(name, equation, values):
    return Quantum()
  quantum = dataclasses.replace(quantum, largest=quantum.largest * count)
  return _for_channels(name, quantum, x, y, params)


def _scaled(name, quantum, place, values):
  """Times a number, or by one."""
  if name == 'div' and place == 1:
    return Quantum()
  other = values[1 - place]
  if jnp.size(other) != 1:
    return Quantum()
  factor = jnp.reshape(other, ()).astype(quantum.unit.dtype)
  unit = quantum.unit * factor if name == 'mul' else quantum.unit / factor
  return dataclasses.replace(quantum, unit=unit)


def _joined(equation, quanta):
  axis = equation.params['dimension']
  shapes = [x.aval.shape for x in equation.invars]
  if axis == len(shapes[0]) - 1:
    return join(quanta, [shape[-1] for shape in shapes])
  first = quanta[0]
  return first if all(q.unit is first.unit for q in quanta) else Quantum()


def _count(name, x, params):
  """How many numbers are summed up in one; None for no sum of them."""
  match name:
    case 'reduce_sum':
      return math.prod(x.shape[i] for i in params['axes'])
    case 'reduce_window_sum':
      return math.prod(params['window_dimensions'])
  known = *_SAME, *_LARGEST, 'convert_element_type', 'pad', *_MOVES
  return 1 if name in known else None


_MOVES = (
  *('reshape', 'transpose', 'broadcast_in_dim', 'squeeze', 'expand_dims'),
  *('rev', 'slice', 'dynamic_slice'),
)


def _takes(name, equation, values):
  if name == 'pad':  # by zeros
    value = values[1]
    return getattr(value, 'size', 1) == 1 and _is_zero(value)
  return len(equation.outvars) == 1


def _is_zero(value):
  try:
    return float(value) == 0
  except TypeError:  # a traced value
    return False


def _for_channels(name, quantum, x, y, params):
  """The unit of each channel of what comes out, where channels stay last."""
  if not quantum.unit.ndim:
    return quantum
  last, channels = x.ndim - 1, x.shape[-1]
  match name:
    case 'reshape':
      if y.ndim and y.shape[-1] and y.shape[-1] % channels == 0:
        return quantum.blocks(y.shape[-1] // channels)
      return Quantum()
    case 'transpose':
      stays = params['permutation'][-1] == last
    case 'reduce_sum' | 'reduce_max':
      stays = last not in params['axes']
    case 'reduce_window_sum' | 'reduce_window_max':
      stays = params['window_dimensions'][-1] == 1
    case 'rev' | 'squeeze':
      stays = last not in params['dimensions']
    case 'broadcast_in_dim':
      stays = params['broadcast_dimensions'][-1] == y.ndim - 1
    case 'expand_dims':
      stays = False
    case _:
      stays = True
  return quantum if stays and y.shape[-1] == channels else Quantum()


def precise(equation, precision) -> dict:
  """What a product of no whole numbers changes: full float32 by default."""
  floats = all(x.aval.dtype == jnp.float32 for x in equation.invars)
  own = equation.params.get('precision')
  if not floats or own is not None or precision not in ('high', 'highest'):
    return {}
  return {'precision': (lax.Precision.HIGHEST,) * 2}


@dataclasses.dataclass(frozen=True)
class Whole:
  """A kernel that is whole numbers times a step, found by `fs.fold`.

  Attributes:
    numbers: int8.
    step: one for all.
    packings: {(axis of inputs, of outputs): how steps share a product}.
  """

  numbers: Any
  step: Any
  packings: dict[tuple[int, int], Packing]


class Exact:
  """A product of whole numbers of an operand, in the unit behind it.

  Attributes:
    equation: a dot_general or conv_general_dilated.
    place: of the operand.
    quantum: what is known of it.
    kernel: the other operand, whole numbers or floats.
    packing: how steps share products.
    axes: of input channels, in the operand and in the kernel.
  """

  def __init__(self, equation, place, quantum, kernel, whole, precision):
    self.equation, self.place = equation, place
    self.quantum = dataclasses.replace(quantum, precision=precision)
    self.kernel, self.packing, self.axes = kernel, Packing(), (-1, -1)
    self._unit, self._largest = quantum.unit, quantum.largest
    own = equation.params.get('precision')
    highest = own is not None and lax.Precision.HIGHEST in own
    self._pieces = 0 if highest else self.quantum.pieces
    if whole is not None:
      self.kernel = whole.numbers
      self._unit = quantum.unit * whole.step.astype(quantum.unit.dtype)
      self._largest = max(quantum.largest, jnp.iinfo(jnp.int8).max)
      self._pieces = 1
      axes = _channels(equation, place)
      if axes is not None and quantum.largest == 1:
        self.axes, output = axes
        known = self.axes[1], output
        self.packing = whole.packings.get(known, Packing())

  def multiply(self, run, n, kernel):
    """`run` of the operands and changes of the parameters, at every step."""
    wide = wider(n.dtype, *[kernel.dtype] * _floats(kernel))
    n, kernel = n.astype(wide), kernel.astype(wide)

    def multiply(n, kernel, precision=None, sums=None):
      changes = {}
      if precision is not None:
        changes['precision'] = (precision,) * 2
      if sums is not None:
        changes['preferred_element_type'] = jnp.dtype(sums)
      return run((kernel, n) if self.place else (n, kernel), **changes)

    settings = self._largest, self.quantum, self._pieces, multiply
    return exact_product(n, kernel, *settings)

  def scaled(self, y):
    y = self.quantum.scale(y, self._unit if self._unit.ndim == 0 else 1)
    return y.astype(self.equation.outvars[0].aval.dtype)


def exact(equation, values, quanta, precision, kernels) -> Exact | None:
  """How a product is one of whole numbers; None where it is of floats.

  Args:
    equation: a dot_general or conv_general_dilated.
    values: both operands; those with steps are not read.
    quanta: of each, None for what has no site in it.
    precision: as of `Network`.
    kernels: {id: (value, `Whole`)} of those that are whole numbers.
  """
  places = [i for i, q in enumerate(quanta) if q is not None]
  wide = all(x.aval.dtype.itemsize >= 4 for x in equation.invars)
  if len(places) != 1 or not wide or quanta[places[0]].unit is None:
    return None
  (i,) = places
  quantum, kernel, whole = quanta[i], values[1 - i], None
  if quantum.unit.ndim:
    factor = _along_inputs(equation, quantum.unit, i)
    if factor is None:
      return None
    kernel = kernel * factor.astype(kernel.dtype)
  else:
    _, whole = kernels.get(id(kernel), (None, None))
  return Exact(equation, i, quantum, kernel, whole, precision)


def product(equation, values, quanta, precision, kernels, run):
  """What a product gives, of whole numbers where an operand is of such.

  Args:
    equation, values, quanta, precision, kernels: of `exact`.
    run: (values, **changes of the parameters) -> the product.
  """
  found = exact(equation, values, quanta, precision, kernels)
  if found is None:
    return run(values, **precise(equation, precision))
  n = found.quantum.numbers(values[found.place])
  return found.scaled(found.multiply(run, n, found.kernel))


def _floats(x):
  return jnp.issubdtype(x.dtype, jnp.floating)


def _channels(equation, place):
  """((axis of input channels in the operand, in the kernel), of the outputs);
  None where steps have products of their own."""
  params, ndim = equation.params, equation.invars[1 - place].aval.ndim
  if equation.primitive.name == 'dot_general':
    contracted, batch = params['dimension_numbers']
    if place or ndim != 2 or any(batch) or len(contracted[0]) != 1:
      return None
    (mine,), (inputs,) = contracted
    return ((mine, inputs), 1 - inputs) if mine else None
  numbers = params['dimension_numbers']
  groups = params['feature_group_count'], params['batch_group_count']
  front = numbers.lhs_spec[0] == numbers.out_spec[0] == 0
  if place or max(groups) > 1 or not front:
    return None
  output, inputs = numbers.rhs_spec[:2]
  return (numbers.lhs_spec[1], inputs), output


def _along_inputs(equation, unit, i):
  """Units of channels against the other operand; None where they are no inputs
  of it."""
  shape = equation.invars[1 - i].aval.shape
  last = equation.invars[i].aval.ndim - 1
  against = [1] * len(shape)
  if equation.primitive.name == 'dot_general':
    contracted, _ = equation.params['dimension_numbers']
    pairs = dict(zip(contracted[i], contracted[1 - i], strict=True))
    if last not in pairs:
      return None
    against[pairs[last]] = unit.size
    return unit.reshape(against)
  numbers = equation.params['dimension_numbers']
  if i or numbers.lhs_spec[1] != last:
    return None
  outputs, inputs = numbers.rhs_spec[:2]
  groups = equation.params['feature_group_count']
  units = unit.reshape(groups, shape[inputs]).T
  units = jnp.repeat(units, shape[outputs] // groups, 1)
  units = units.T if outputs < inputs else units
  against[inputs], against[outputs] = shape[inputs], shape[outputs]
  return units.reshape(against)
