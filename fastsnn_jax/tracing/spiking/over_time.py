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
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.charge import State
from fastsnn_jax.nn.folded.static import bind
from fastsnn_jax.nn.integrate_and_fire import at_each_step, simulate
from fastsnn_jax.nn.neurons import (
  IntegrateAndFire,
  differences,
  largest_so_far,
)
from fastsnn_jax.nn.whole import Quantum
from fastsnn_jax.tracing import products
from fastsnn_jax.tracing.jaxprs import WEIGHTED
from fastsnn_jax.tracing.spiking import rules
from fastsnn_jax.tracing.walk import REFUSED, Walk

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


@dataclasses.dataclass
class Timed:
  """[N, T + k, …], or [T + k] of a scalar: messages, or levels.

  Attributes:
    graded: they are, or came of, differences.
  """

  value: Any
  level: bool = False
  graded: bool = False


class OverTime(Walk):
  """A walk with steps.

  Args:
    neuron: of every site.
    given: {site: Timed}; None to simulate the neurons.
    record: keeps an `Operation` of each equation in `operations`.
    levels: linear operations take levels as they are: nothing is sent.
    settles: there will be more steps, so `states` and `sums` are kept.
    past: (states of neurons, sums) after the steps before; then the walk is
      one step without input, of which `states` and `sums` are those after it.
    settings: of `Walk`.
  """

  def __init__(
    self,
    neuron: IntegrateAndFire,
    given=None,
    *,
    record=False,
    levels=False,
    settles=False,
    past=None,
    **settings,
  ):
    super().__init__(given, **settings)
    self.neuron, self.levels = neuron, levels
    self.operations: list[Operation] | None = [] if record else None
    self.settles = settles or past is not None
    self.past, self.states, self.sums = past, {}, []
    self.lasting = 0  # sums on which neurons depend
    self._kinds: dict[tuple[int, str], tuple] = {}

  # --- kinds of values --------------------------------------------------------

  def moves(self, *values):
    return any(isinstance(x, Timed) for x in values)

  def kept(self, answer):
    return answer.value

  @functools.cached_property
  def _number(self):
    """n = min(t, T) of each step."""
    if self.past is not None:
      return np.array([self.neuron.steps])
    steps = np.arange(1, self.neuron.total_steps + 1)
    return np.minimum(steps, self.neuron.steps)

  @functools.cached_property
  def _shown(self):
    """Which steps have input."""
    late = self.past is not None
    return (np.arange(len(self._number)) < self.neuron.steps) & (not late)

  def _along(self, numbers, value):
    axis = min(value.ndim - 1, 1)
    shape = [1] * value.ndim
    shape[axis] = -1
    return jnp.asarray(numbers, value.dtype).reshape(shape), axis

  def _before(self):
    """The sum that was kept at this place after the steps before, or None."""
    sums = self.past[1] if self.past is not None else ()
    return sums[len(self.sums)] if len(self.sums) < len(sums) else None

  def _kept_kind(self, x, kind, find):
    """`find(x)`, once for each value."""
    key = id(x), kind
    if key not in self._kinds:
      self._kinds[key] = x, find(x)
    return self._kinds[key][1]

  def _opens(self, equation, values):
    return self.operations is None and super()._opens(equation, values)

  def _site_quantum(self, answer, theta):
    if not self.levels:
      super()._site_quantum(answer, theta)

  def message(self, x) -> Timed:
    """Any value as messages."""
    if not isinstance(x, Timed):
      x = jnp.asarray(x)
      value = jnp.expand_dims(x, min(x.ndim, 1))
      shown, _ = self._along(self._shown, value)
      return Timed(jnp.where(shown != 0, value, 0))
    if not x.level:
      return x
    if not jnp.issubdtype(x.value.dtype, jnp.floating):
      self.refuse(
        'difference',
        f'a {x.value.dtype} of spikes is no sum of messages',
        'choose by parameters, or compute with floats',
      )
    return self._kept_kind(x, 'message', self._sent)

  def _sent(self, x):
    number, axis = self._along(self._number, x.value)
    total, first = x.value * number, self._before()
    self.sums.append(lax.index_in_dim(total, -1, axis, keepdims=False))
    if axis:
      return Timed(differences(total, first), graded=True)
    first = None if first is None else first[None]
    return Timed(differences(total[None], first)[0], graded=True)

  def level(self, x):
    """Messages as a function of their mean; what is static stays so."""
    if not isinstance(x, Timed) or x.level:
      return x
    return self._kept_kind(x, 'level', self._mean)

  def _mean(self, x):
    number, axis = self._along(self._number, x.value)
    total = jnp.cumsum(x.value, axis)
    if (first := self._before()) is not None:
      total = total + jnp.expand_dims(first, axis)
    self.sums.append(lax.index_in_dim(total, -1, axis, keepdims=False))
    return Timed(total / number, level=True, graded=True)

  # --- operations -------------------------------------------------------------

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
    name = equation.primitive.name
    places = range(len(values))[rules.LINEAR.get(name, slice(0, 0))]
    taken = [
      self.message(x) if isinstance(x, Timed) or i in places else x
      for i, x in enumerate(values)
    ]
    graded = any(x.graded for x in taken if isinstance(x, Timed))
    self._record(DIFFERENCE if graded else SPIKES, equation)
    quanta = [
      (self.quantum(x) or Quantum()) if isinstance(x, Timed) else None
      for x in values
    ]
    if name in WEIGHTED and self.whole is not None:
      found = [self._product(equation, taken, quanta)]
    else:
      found = self._lift(equation, taken)
    found = [Timed(x, graded=graded) for x in found]
    if self.whole is not None:
      handed = products.handed(equation, quanta, values)
      for x in found:
        self._quanta[id(x)] = x, handed
    return found

  def _product(self, equation, values, quanta):
    (i,) = (i for i, x in enumerate(values) if isinstance(x, Timed))

    def run(values, **changes):
      taken = [Timed(x) if i == j else x for j, x in enumerate(values)]
      return self._lift(equation, taken, **changes)[0]

    def multiply(*values):
      settings = quanta, self.precision, run
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

  def _mapped(self, function, values):
    plain = [x.value if isinstance(x, Timed) else x for x in values]
    axes = [
      min(x.value.ndim - 1, 1) if isinstance(x, Timed) else None for x in values
    ]
    try:
      found = jax.vmap(function, axes, 0)(*plain)
    except NotImplementedError:
      self.refuse(
        'this operation',
        'it has no rule for a batch of steps',
        'take it out of the function',
      )
    return [jnp.moveaxis(x, 0, min(x.ndim - 1, 1)) for x in found]

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

  def each(self, function, *values):
    if not self.moves(*values):
      return function(*values)
    kinds = {x.level for x in values if isinstance(x, Timed)}
    graded = any(x.graded for x in values if isinstance(x, Timed))
    (found,) = self._mapped(lambda *x: [function(*x)], values)
    return Timed(found, level=kinds == {True}, graded=graded)

  def alike(self, values):
    if not self.moves(*values):
      return values
    if all(isinstance(x, Timed) and x.level for x in values):
      return values
    return [self.message(x) for x in values]

  def branch(self, index, params, branches, operands):
    plain = [x.value if isinstance(x, Timed) else x for x in operands]

    def of(call):
      def run(*arrays):
        kept, self.sums = self.sums, []
        mine = [
          dataclasses.replace(x, value=y) if isinstance(x, Timed) else y
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

  # --- neurons ----------------------------------------------------------------

  def site(self, site, x, theta):
    theta = theta.reshape(()) if theta.size == 1 else theta
    if self.operations is not None:
      shape = x.value.shape if isinstance(x, Timed) else jnp.shape(x)
      if isinstance(x, Timed):
        shape = shape[:1] + shape[2:]
      self.operations.append(Operation(NEURON, site.name, shape, self.place))
    if self.given is not None:
      return self.given[site.name]
    if isinstance(x, Timed):
      currents = self.message(x).value
      scalar = currents.ndim == 1
      currents = currents[None] if scalar else currents
    else:
      scalar = not x.ndim
      currents = x.reshape(1, 1) if scalar else jnp.expand_dims(x, 1)
    static = not isinstance(x, Timed)
    spikes = self._fired(site.name, currents, theta, static)
    self.lasting = len(self.sums)
    spikes = spikes * at_each_step(jnp.asarray(theta, spikes.dtype), spikes)
    return Timed(spikes[0] if scalar else spikes)

  def _fired(self, name, currents, theta, static):
    """Spikes, and the state after them if there will be more steps."""
    if self.past is None:
      spikes = simulate(currents, theta, self.neuron)
      if self.settles:
        state = State.after(currents, spikes, theta, self.neuron)
        self.states[name] = state
      return spikes
    state = self.past[0][name]
    if not static:
      current = currents[:, 0].astype(state.voltage.dtype)
      state = state._replace(voltage=state.voltage + current)
    spikes, self.states[name] = state.fire(theta, self.neuron)
    return jnp.expand_dims(spikes, 1).astype(currents.dtype)
