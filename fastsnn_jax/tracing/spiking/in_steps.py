"""Values that come in steps: messages, levels, and the neurons between them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.charge import State, last_step
from fastsnn_jax.nn.integrate_and_fire import at_each_step, simulate
from fastsnn_jax.nn.neurons import IntegrateAndFire, differences
from fastsnn_jax.tracing.spiking.lazy import Timed
from fastsnn_jax.tracing.walk import Walk


class InSteps(Walk):
  """A walk over messages and levels: its values, and its neurons.

  Args:
    neuron: of every site.
    given: {site: Timed}; None to simulate the neurons.
    levels: linear operations take levels as they are: nothing is sent.
    settles: there will be more steps, so `states` and `sums` are kept.
    past: (states of neurons, sums) after the steps before; then the walk is
      `at_once` steps without input: `states` and `sums` are those after them.
    settings: of `Walk`.
  """

  at_once = 1

  def __init__(
    self,
    neuron: IntegrateAndFire,
    given=None,
    *,
    levels=False,
    settles=False,
    past=None,
    **settings,
  ):
    super().__init__(given, **settings)
    self.neuron, self.levels = neuron, levels
    self.settles = settles or past is not None
    self.past, self.states, self.sums = past, {}, []
    self.totals: dict[str, Any] = {}  # of each site over time, not yet computed
    self.lasts: dict[str, Any] = {}  # of each row, the last step with a spike
    self.count = neuron.total_steps if past is None else self.at_once
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
      return np.full(self.count, self.neuron.steps)
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

  # --- neurons ----------------------------------------------------------------

  def site(self, site, x, theta):
    theta = theta.reshape(()) if theta.size == 1 else theta
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
    spikes = spikes[0] if scalar else spikes
    axis = min(spikes.ndim - 1, 1)
    self.totals[site.name] = lambda: jnp.sum(spikes, axis)
    if self.settles:
      moved = spikes != 0
      self.lasts[site.name] = last_step(moved[None] if scalar else moved)
    return Timed(spikes)

  def _fired(self, name, currents, theta, static):
    """Spikes, and the state after them if there will be more steps."""
    if self.past is None:
      spikes = simulate(currents, theta, self.neuron)
      if self.settles:
        state = State.after(currents, spikes, theta, self.neuron)
        self.states[name] = state
      return spikes
    state, spikes = self.past[0][name], []
    for t in range(self.count):
      if not static:
        state = state.charged(currents[:, t])
      fired, state = state.fire(theta, self.neuron)
      spikes.append(fired.astype(currents.dtype))
    self.states[name] = state
    return jnp.stack(spikes, 1)
