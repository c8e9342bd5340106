"""The walk of a folded function, in which spikes stand in words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.nn.charge import State
from fastsnn_jax.nn.folded import words as packed
from fastsnn_jax.nn.folded.run import STEPS_TO_UNROLL
from fastsnn_jax.nn.folded.settle import STEPS_AT_ONCE
from fastsnn_jax.nn.folded.static import bind
from fastsnn_jax.nn.quantizers import against, positive, wider
from fastsnn_jax.nn.whole import Quantum
from fastsnn_jax.tracing import products
from fastsnn_jax.tracing.jaxprs import WEIGHTED
from fastsnn_jax.tracing.spiking import lazy, rules
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.spiking.over_time import OverTime


def walk(network, neuron, **settings) -> OverTime:
  """That of a network: spikes in words if it is folded, for all but long runs.

  Words have no derivative. Where messages are graded they save nothing, and
  some versions of XLA compile the chains between neurons without end.
  """
  few = neuron.total_steps <= STEPS_TO_UNROLL
  ready = network.folded and few and not network.differences
  kind = InWords if ready else OverTime
  return kind(neuron, **network.products, **settings)


class InWords(OverTime):
  """`OverTime` whose linear operations wait until their steps are read."""

  @property
  def at_once(self):
    return min(self.neuron.steps, STEPS_AT_ONCE)

  def _site_quantum(self, answer, theta):
    if isinstance(answer, lazy.Lazy):
      self._quanta[id(answer)] = answer, answer.quantum or Quantum()
    else:
      super()._site_quantum(answer, theta)

  def site(self, site, x, theta):
    name, shape = site.name, _shape(x)
    if not shape or self.given is not None:
      return super().site(site, x, theta)
    theta = theta.reshape(()) if theta.size == 1 else theta
    x = self.message(x) if isinstance(x, Timed) else x
    source = lazy.read(x) if isinstance(x, Timed) else self._shown_steps(x)
    kind = source.at(0, {}).dtype
    wide, steps = wider(kind, jnp.float32), self.count
    quantum = products.of_site(theta, self.neuron.quantum(theta))
    height = against(jnp.asarray(theta, kind), len(shape))
    theta = positive(against(jnp.asarray(theta, wide), len(shape)))

    def current(t):
      return source.at(t, {}).astype(wide)

    like = jax.ShapeDtypeStruct(shape, wide)
    state = None if self.past is None else self.past[0][name]

    def start():
      if state is None:
        return packed.at_rest(like, theta)
      return state.voltage, state.count.astype(jnp.int32)

    settings = current, theta, self.neuron, steps, start
    gather = functools.partial(packed.gather, *settings)
    words = packed.kept(gather, theta, current, steps)
    if self.settles:
      ones, minus = packed.both_signs(words)
      most = self.neuron.max_count or np.inf
      narrow = jnp.int8 if most <= np.iinfo(np.int8).max else jnp.int32
      count = (start()[1] + ones - minus).astype(narrow)
      late = (
        jnp.zeros_like(ones) if state is None else state.fired + ones + minus
      )
      charge = packed.charge(words, *settings)
      self.states[name] = State(charge, count, late)
      self.lasts[name] = packed.last(words)
    self.lasting = len(self.sums)
    self.totals[name] = lambda: packed.total(words, kind) * height
    spikes = lazy.of_words(words, steps, kind)
    if quantum.unit is None:  # thetas of many axes
      raised = jnp.expand_dims(height, 1)
      spikes = lazy.by_step(
        lambda t, _: packed.step(words, t, kind) * height,
        lambda: packed.train(words, steps, kind) * raised,
      )
    return lazy.Lazy(shape, spikes, quantum)

  def _shown_steps(self, x):
    """A static value, shown for T steps."""
    return lazy.by_step(
      lambda t, _: x if self._shown[t] else jnp.zeros_like(x),
      lambda: self.message(x).value,
    )

  def _at_steps(self, equation, values, quanta, handed):
    values = [self.message(x) if isinstance(x, Timed) else x for x in values]
    name = equation.primitive.name
    timed = [x for x in values if isinstance(x, Timed)]
    graded = any(x.graded for x in timed)
    if name in WEIGHTED:
      found = [self._multiplied(equation, values, quanta)]
    elif handed.unit is not None and name in ('mul', 'div'):
      (i,) = (i for i, x in enumerate(values) if isinstance(x, Timed))
      found = [lazy.read(values[i], quanta[i])]  # the unit takes the factor
    else:
      number, places = handed.unit is not None, rules.places(name, len(values))
      sources = [
        lazy.read(x, quanta[i] if number else None)
        if isinstance(x, Timed)
        else self._shown_steps(x)
        if i in places
        else None
        for i, x in enumerate(values)
      ]

      def at(t, memo):
        taken = [
          x if source is None else source.at(t, memo)
          for x, source in zip(values, sources, strict=True)
        ]
        return bind(equation, taken)[0]

      def trains():
        taken = [
          x if source is None else Timed(source.train())
          for x, source in zip(values, sources, strict=True)
        ]
        return self._lift(equation, taken)

      words = [source.words if source else () for source in sources]
      if number and name in rules.MOVES and all(words):
        moved = tuple(
          bind(equation, parts)[0] for parts in zip(*words, strict=True)
        )
        kind = equation.outvars[0].aval.dtype
        found = [lazy.of_words(moved, self.count, kind)]
      elif name in rules.LIGHT:
        found = [lazy.by_step(at, lambda: trains()[0])]
      else:
        found = map(lazy.of_train, trains())
    shapes = [x.aval.shape for x in equation.outvars]
    return [
      lazy.Lazy(shape, x, handed, graded)
      for shape, x in zip(shapes, found, strict=True)
    ]

  def _multiplied(self, equation, values, quanta):
    (i,) = (i for i, x in enumerate(values) if isinstance(x, Timed))
    settings = quanta, self.precision, self.kernels
    found = products.exact(equation, values, *settings)

    def lifted(values, **changes):
      taken = [Timed(x) if i == j else x for j, x in enumerate(values)]
      return self._lift(equation, taken, **changes)[0]

    rare = self.past is not None
    if found is None:
      changes = products.precise(equation, self.precision)

      def floats(train):
        taken = [train() if i == j else x for j, x in enumerate(values)]
        return lifted(taken, **changes)

      x = lazy.read(values[i])
      return lazy.of_train(lazy.where_any(floats, x, self.count, rare))

    def some(values, **changes):
      return bind(equation, values, **changes)[0]

    return lazy.product(
      found,
      lazy.read(values[i], quanta[i]),
      self.count,
      functools.partial(found.multiply, some),
      functools.partial(found.multiply, lifted),
      rare=rare,
    )


def _shape(x):
  """Of a value, without time."""
  if isinstance(x, lazy.Lazy) or not isinstance(x, Timed):
    return x.shape
  return (*x.value.shape[:1], *x.value.shape[2:]) if x.value.ndim > 1 else ()
