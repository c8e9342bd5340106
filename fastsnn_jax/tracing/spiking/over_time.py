"""The walk with spikes: every value is static, a message, or a level.

With T steps of input and k more, S_t the sum of the messages of steps 1 … t,
and n = min(t, T):

  static   no steps: parameters, the image, and what is computed of them
  message  x_t, summed over time: an operation that is linear in it runs at each
           step; a static summand is shown for T steps and then withdrawn
  level    f(S_t / n), any function of what came in so far. Where messages are
           needed it sends the difference n f_t - (n - 1) f_(t-1), graded ones;
           they sum up to T f(mean), which is exact once nothing moves any more

Max pooling counts the spikes of each input, and sends differences of the
largest count, which are 1, 0 or -1 times theta again.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.folded.static import bind
from fastsnn_jax.nn.neurons import largest_so_far
from fastsnn_jax.nn.whole import Quantum
from fastsnn_jax.tracing import products
from fastsnn_jax.tracing.jaxprs import WEIGHTED
from fastsnn_jax.tracing.spiking import rules
from fastsnn_jax.tracing.spiking.in_steps import InSteps
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.walk import REFUSED

MAXIMA = 'reduce_window_max', 'reduce_max'
STATIC, SPIKES, DIFFERENCE = 'static', 'spike-driven', 'difference'
NEURON = 'neuron'


@dataclasses.dataclass(frozen=True)
class Operation:
  """A line of `fs.explain`: what runs, on which shape, and where it stands.

  Attributes:
    kind: 'static' runs once; 'spike-driven' on spikes at each step;
      'difference' sends graded messages, or takes them; 'neuron'.
    name: of the primitive, or of the site.
    shape: of what it gives, without time.
    place: file and line.
    makes_graded: it made graded messages of spikes itself.
  """

  kind: str
  name: str
  shape: tuple[int, ...]
  place: str
  makes_graded: bool = False


class OverTime(InSteps):
  """The rules of operations.

  Args:
    neuron, given, settings: of `InSteps`.
    record: keeps an `Operation` of each equation in `operations`.
  """

  def __init__(self, neuron, given=None, *, record=False, **settings):
    super().__init__(neuron, given, **settings)
    self.operations: list[Operation] | None = [] if record else None

  def _opens(self, equation, values):
    return self.operations is None and super()._opens(equation, values)

  def still(self, equation, values):
    found = super().still(equation, values)
    self._record(STATIC, equation)
    return found

  def operation(self, equation, values):
    name = equation.primitive.name
    self._check(equation, values)
    moving = [isinstance(x, Timed) for x in values]
    constants = map(self.constant, values)
    infinite = [x is not None and not np.isfinite(x) for x in constants]
    floats = all(
      jnp.issubdtype(x.aval.dtype, jnp.floating) for x in equation.outvars
    ) and all(
      jnp.issubdtype(x.value.dtype, jnp.floating)
      for x in values
      if isinstance(x, Timed)
    )
    linear = floats and rules.is_linear(name, moving, infinite)
    timed = [x for x in values if isinstance(x, Timed)]
    if linear and not self._stays_level(name, timed):
      return self._linear(equation, values)
    pooled = name in MAXIMA and not self.levels
    if pooled and (found := self._pooled(equation, *values)) is not None:
      self._record(SPIKES, equation)
      return [found]
    sent = any(not x.level for x in timed)
    self._record(DIFFERENCE, equation, makes_graded=not linear and sent)
    values, changes = [self.level(x) for x in values], {}
    if name in WEIGHTED and self.whole is not None:
      changes = products.precise(equation, self.precision)
    found = self._lift(equation, values, **changes)
    return [Timed(x, level=True, graded=True) for x in found]

  def _stays_level(self, name, timed):
    weighted = name in WEIGHTED and not self.levels
    return all(x.level for x in timed) and not weighted

  def _check(self, equation, values):
    name = equation.primitive.name
    if name in REFUSED:
      self.refuse(f'{name} of spikes', *REFUSED[name])
    if any(
      jnp.issubdtype(x.aval.dtype, jnp.complexfloating)
      for x in equation.outvars
    ):
      self.refuse(
        name, 'a complex number of spikes', 'compute with two real arrays'
      )
    first = {'gather': 1, 'dynamic_slice': 1, 'dynamic_update_slice': 2}
    if name.startswith('scatter'):
      indices = values[1:2]
    else:
      indices = values[first[name] :] if name in first else []
    if self.moves(*indices):
      self.refuse(
        f'{name} by spikes',
        'a place that depends on spikes',
        'use indices that depend on parameters or on the image only',
      )

  def _linear(self, equation, values):
    quanta = [
      (self.quantum(x) or Quantum()) if isinstance(x, Timed) else None
      for x in values
    ]
    handed = None
    if self.whole is not None:
      handed = products.handed(equation, quanta, values)
    found = self._at_steps(equation, values, quanta, handed)
    graded = any(x.graded for x in found)
    self._record(DIFFERENCE if graded else SPIKES, equation)
    if handed is not None:
      for x in found:
        self._quanta[id(x)] = x, handed
    return found

  def _at_steps(self, equation, values, quanta, handed):
    """A linear equation at every step; static summands are shown for T."""
    name = equation.primitive.name
    places = rules.places(name, len(values))
    taken = [
      self.message(x) if isinstance(x, Timed) or i in places else x
      for i, x in enumerate(values)
    ]
    if name in WEIGHTED and self.whole is not None:
      found = [self._product(equation, taken, quanta)]
    else:
      found = self._lift(equation, taken)
    graded = any(x.graded for x in taken if isinstance(x, Timed))
    return [Timed(x, graded=graded) for x in found]

  def _product(self, equation, values, quanta):
    (i,) = (i for i, x in enumerate(values) if isinstance(x, Timed))

    def run(values, **changes):
      taken = [Timed(x) if i == j else x for j, x in enumerate(values)]
      return self._lift(equation, taken, **changes)[0]

    def multiply(*values):
      settings = quanta, self.precision, self.kernels, run
      return products.product(equation, values, *settings)

    plain = [x.value if isinstance(x, Timed) else x for x in values]
    if self.past is None:
      return multiply(*plain)
    shape = jax.eval_shape(multiply, *plain)

    def nothing(*values):
      zero = values[i].ravel()[0].astype(shape.dtype)  # as all are
      return jnp.broadcast_to(zero, shape.shape)

    # In most of the steps without input most layers get no spike.
    return lax.cond(jnp.any(plain[i] != 0), multiply, nothing, *plain)

  def _lift(self, equation, values, **changes) -> list:
    """The equation at every step."""
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    x = values[0].value if isinstance(values[0], Timed) else None
    if name == 'conv_general_dilated' and x is not None:
      numbers = equation.params['dimension_numbers']
      alone = equation.params['batch_group_count'] == 1
      front = numbers.lhs_spec[0] == numbers.out_spec[0] == 0
      if front and alone and not self.moves(values[1]):
        # (B T): a batch that devices share out stays where it is.
        folded = x.reshape(-1, *x.shape[2:])
        (found,) = bind(equation, [folded, values[1]], **changes)
        return [found.reshape(*x.shape[:2], *found.shape[1:])]
    whole = x is not None and x.ndim > 1 and len(values) == 1
    if name == 'reshape' and whole and shape[:1] == x.shape[:1]:
      return [x.reshape(*x.shape[:2], *shape[1:])]
    return self._mapped(lambda *x: bind(equation, x, **changes), values)

  def _pooled(self, equation, x):
    """Max pooling of spikes of one height; None for other messages."""
    quantum = self.quantum(x) or Quantum()
    if x.level or quantum.unit is None or not equation.outvars[0].aval.shape:
      return None
    # Of one height inside of each window.
    handed = products.handed(equation, [quantum], [None])
    if handed.unit is None or quantum.largest > 1:
      return None

    def each(counts):
      return self._mapped(lambda x: bind(equation, [x]), [Timed(counts)])[0]

    settings = each, self._before()
    sent, sums = largest_so_far(quantum.numbers(x.value), *settings)
    self.sums.append(sums)
    found = Timed(handed.scale(sent, handed.unit), graded=x.graded)
    self._quanta[id(found)] = found, handed
    return found

  def branch(self, index, params, branches, operands):
    plain = [x.value if isinstance(x, Timed) else x for x in operands]

    def of(call):
      def run(*arrays):
        kept, self.sums = self.sums, []
        mine = [
          Timed(y, x.level, x.graded) if isinstance(x, Timed) else y
          for x, y in zip(operands, arrays, strict=True)
        ]
        found = [self.message(x) for x in self._called(call, mine)]
        graded.extend(x.graded for x in found)
        if self.sums and self.settles:
          self.refuse(
            'cond',
            "sums inside of a branch are lost at settle='auto'",
            'give a number of steps, settle=24',
          )
        self.sums = kept
        return [x.value for x in found]

      return run

    graded, functions = [], [of(call) for call in branches]
    platforms = params.get('branches_platforms')
    if platforms is not None:
      named = {
        name: function
        for names, function in zip(platforms, functions, strict=True)
        for name in names or ('default',)
      }
      found = lax.platform_dependent(*plain, **named)
    else:
      found = lax.switch(index, functions, *plain)
    return [Timed(x, graded=any(graded)) for x in found]

  def _record(self, kind, equation, **more):
    if self.operations is not None and not self.aside:
      name = str(equation.params.get('name', equation.primitive.name))
      shape = equation.outvars[0].aval.shape if equation.outvars else ()
      self.operations.append(Operation(kind, name, shape, self.place, **more))

  def site(self, site, x, theta):
    if self.operations is not None:
      shape = x.value.shape if isinstance(x, Timed) else jnp.shape(x)
      if isinstance(x, Timed):
        shape = shape[:1] + shape[2:]
      self.operations.append(Operation(NEURON, site.name, shape, self.place))
    return super().site(site, x, theta)
