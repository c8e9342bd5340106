"""Walks that count the products of weights and what is fed: NeuroBench's rule.

An operation counts where neither the weight nor the input is zero; places of
the padding are no inputs. A call whose inputs are all in {-1, 0, 1} adds, any
other multiplies. A call is one image at one step.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from fastsnn_jax.nn.folded.static import bind
from fastsnn_jax.tracing import jaxprs
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.spiking.over_time import OverTime
from fastsnn_jax.tracing.walk import Walk


@dataclasses.dataclass
class Product:
  """A convolution or a matrix product in front of a site.

  Attributes:
    effective, dense: operations of a call, without zeros and with them; of
      each step, or a number.
    adds: whether all inputs of the call are in {-1, 0, 1}.
    kernel: the weights, None for a product of two activities.
    fan_in: weights that one output sums up.
    steps: whether it is called at each step.
  """

  effective: Any
  dense: Any
  adds: Any
  kernel: Any
  fan_in: int
  steps: bool = False


class Counting(Walk):
  """A walk over what is fed, one image [1, …] or one step of it.

  Args:
    fed: values that the counting starts from.
  """

  def __init__(self, given=None, fed=()):
    super().__init__(given)
    self._start(fed)

  def _start(self, fed):
    self.products, self._pending, self._fed = {}, [], {}
    for value in fed:
      self._fed[id(value)] = value  # while it lives, nothing else has its id

  def finished(self, name):
    """{site: its products}; those behind the last site are `name`'s."""
    return {**self.products, name: self._pending}

  def feeds(self, values) -> bool:
    return any(id(x) in self._fed for x in values)

  def _mark(self, found):
    self._fed |= {id(x): x for x in found}
    return found

  def _step(self, equation, values):
    inside = not self.moves(*values) and self.feeds(values)
    if inside and jaxprs.mark_of(equation) is None:
      if call := jaxprs.called(equation):
        return self._called(call, values)
      match equation.primitive.name:
        case 'scan':
          return self._unrolled(equation, values)
        case 'cond':
          return self._chosen(equation, values)
    return super()._step(equation, values)

  def still(self, equation, values):
    found = super().still(equation, values)
    if not self.feeds(values):
      return found
    if equation.primitive.name in jaxprs.WEIGHTED:
      self._count(equation, values)
    return self._mark(found)

  def each(self, function, *values):
    found = super().each(function, *values)
    return self._mark([found])[0] if self.feeds(values) else found

  def branch(self, index, params, branches, operands):
    return self._called(branches[-1], operands)

  def site(self, site, x, theta):
    self.products[site.name], self._pending = self._pending, []
    return self._mark([super().site(site, x, theta)])[0]

  def _count(self, equation, values):
    fed = [x for x in values if id(x) in self._fed]
    binary = [_nonzero(x) for x in values]
    ones = [jnp.ones_like(x) for x in binary]
    (x,) = fed if len(fed) == 1 else (None,)
    self._pending.append(
      Product(
        effective=_total(equation, binary),
        dense=_total(equation, ones),
        adds=x is not None and jnp.all((x == 0) | (jnp.abs(x) == 1)),
        kernel=next((y for y in values if id(y) not in self._fed), None),
        fan_in=_fan_in(equation),
      )
    )


class CountingOverTime(Counting, OverTime):
  """The same with spikes, [1, T + k, …]; what is static runs once.

  Spikes have the height theta, which goes into the weights: a call adds where
  all its inputs are 0, or plus or minus one number.
  """

  def __init__(self, neuron, given, fed, **settings):
    OverTime.__init__(self, neuron, given, **settings)
    self._start(fed)

  def branch(self, index, params, branches, operands):
    if self.moves(*operands):
      return OverTime.branch(self, index, params, branches, operands)
    return super().branch(index, params, branches, operands)

  def _product(self, equation, values, quanta):
    return self._lift(equation, values)[0]

  def _lift(self, equation, values, **changes):
    if equation.primitive.name in jaxprs.WEIGHTED:
      self._count_steps(equation, values)
    return super()._lift(equation, values, **changes)

  def _count_steps(self, equation, values):
    timed = [x for x in values if isinstance(x, Timed)]
    binary = [
      Timed(_nonzero(x.value)) if isinstance(x, Timed) else _nonzero(x)
      for x in values
    ]
    run = lambda *x: [_total(equation, x)]  # noqa: E731
    (effective,) = self._mapped(run, binary)
    ones = [jnp.ones(x.aval.shape) for x in equation.invars]
    adds: Any = False
    if len(timed) == 1 and not timed[0].level:
      x = jnp.abs(timed[0].value)
      axis = min(x.ndim - 1, 1)
      x = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
      adds = jnp.all((x == 0) | (x == jnp.max(x, 1, keepdims=True)), 1)
    still = (x for x in values if not isinstance(x, Timed))
    kernel = next((x for x in still if id(x) not in self._fed), None)
    dense, fan_in = _total(equation, ones), _fan_in(equation)
    product = Product(effective, dense, adds, kernel, fan_in, steps=True)
    self._pending.append(product)


def _nonzero(x):
  return (x != 0).astype(jnp.float32)


def _total(equation, values):
  changes = {}
  if equation.params.get('preferred_element_type') is not None:
    changes['preferred_element_type'] = jnp.dtype('float32')
  (found,) = bind(equation, values, **changes)
  return jnp.sum(found)


def _fan_in(equation) -> int:
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return math.prod(shape[axis] for axis in contracted)
  kernel = equation.invars[1].aval
  features, *_ = equation.params['dimension_numbers'].rhs_spec
  return kernel.size // kernel.shape[features]


jax.tree_util.register_dataclass(
  Product,
  data_fields=['effective', 'dense', 'adds', 'kernel'],
  meta_fields=['fan_in', 'steps'],
)
