"""What a function costs: multiply-accumulates, and connections per spike."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.nn.folded.static import bind
from fastsnn_jax.tracing import dependence, jaxprs
from fastsnn_jax.tracing.spiking import rules
from fastsnn_jax.tracing.spiking.over_time import MAXIMA
from fastsnn_jax.tracing.walk import Walk, trace

OUTPUT = 'output'  # what comes behind the last site


class _Wave:
  """Connections so far, of the shape of a value that has steps."""

  def __init__(self, value):
    self.value = value


class _Connect(Walk):
  """A walk with unit weights and no bias; a site takes up what reaches it."""

  def __init__(self, given):
    super().__init__({name: _Wave(x) for name, x in given.items()})
    self.total = 0.0

  def moves(self, *values):
    return any(isinstance(x, _Wave) for x in values)

  def reach(self, x):
    if isinstance(x, _Wave):
      self.total += jnp.sum(x.value)

  def site(self, site, x, theta):
    self.reach(x)
    return self.given[site.name]

  def each(self, function, *values):
    if not self.moves(*values):
      return function(*values)
    plain = [x.value if isinstance(x, _Wave) else 0.0 * x for x in values]
    return _Wave(function(*plain))

  def branch(self, index, params, branches, operands):
    return self._called(branches[-1], operands)

  def operation(self, equation, values):
    name, outs = equation.primitive.name, equation.outvars
    moving = [isinstance(x, _Wave) for x in values]
    waves = [x.value for x in values if isinstance(x, _Wave)]
    shape = outs[0].aval.shape
    if name in jaxprs.WEIGHTED:
      parts = []
      for i in (i for i, moves in enumerate(moving) if moves):
        ones = [jnp.ones(x.aval.shape, waves[0].dtype) for x in equation.invars]
        ones[i] = values[i].value
        parts += bind(equation, ones)
      return [_Wave(sum(parts))]
    if name in MAXIMA:
      (x,), params = waves, equation.params
      if 'axes' in params:
        return [_Wave(jnp.sum(x, params['axes']))]
      window = (
        *(params['window_dimensions'], params['window_strides']),
        *(params['padding'], params['base_dilation']),
      )
      zero = np.zeros((), x.dtype)  # known, for a rule of its own
      dilation = params['window_dilation']
      return [_Wave(lax.reduce_window(x, zero, lax.add, *window, dilation))]
    elementwise = *rules.BILINEAR, 'sub', 'neg', 'add', 'add_any'
    linear = rules.is_linear(name, moving, [False] * len(values))
    if linear and name not in elementwise:
      # What is added without steps is no connection; an index stays.
      places = range(len(values))[rules.LINEAR[name]]
      dtype = waves[0].dtype
      plain = [
        x.value
        if isinstance(x, _Wave)
        else jnp.zeros(jnp.shape(x), dtype)
        if i in places
        else x
        for i, x in enumerate(values)
      ]
      if name == 'convert_element_type':
        return [_Wave(waves[0])]
      return [_Wave(x) for x in bind(equation, plain)]
    if 'axes' in equation.params and len(waves) == 1:
      return [_Wave(jnp.sum(waves[0], equation.params['axes']))]
    full = [jnp.broadcast_to(x, shape) for x in waves if x.shape in ((), shape)]
    return [_Wave(sum(full, jnp.zeros(shape, waves[0].dtype))) for _ in outs]


def connections(network, variables, image_shape):
  """{site: connections that leave each of its neurons}, without the batch."""
  image = jnp.zeros((1, *image_shape), network.image[1])
  params = variables['params']
  _, shapes = jax.eval_shape(network.apply, variables, image)
  jaxpr, constants, _ = trace(network.function, params, image)

  def total(given):
    walk = _Connect(given)
    leaves = jax.tree.leaves(params)
    for x in walk.run(jaxpr, constants, [*leaves, image]):
      walk.reach(x)
    return walk.total

  ones = {name: jnp.ones(x.shape, jnp.float32) for name, x in shapes.items()}
  fans = jax.jit(jax.grad(total))(ones)
  return {name: x[0] if x.ndim else x for name, x in fans.items()}


class _Macs(dependence.Dependence):
  def __init__(self, count):
    super().__init__()
    self.count, self.counts, self.pending = count, {}, 0

  def still(self, equation, values):
    found = super().still(equation, values)
    if not all(isinstance(x, int) for x in found[0] if found):
      self.pending += self.count(equation)  # not of parameters alone
    return found

  operation = still

  def site(self, site, x, theta):
    self.counts[site.name], self.pending = self.pending, 0
    return super().site(site, x, theta)


def macs(network, variables, image_shape, count) -> dict[str, int]:
  """{site: multiply-accumulates in front of it, …, 'output': behind the last}.

  `count` gives those of one equation.
  """
  image = jnp.zeros((1, *image_shape), network.image[1])
  jaxpr, constants, _ = trace(network.function, variables['params'], image)
  walk = _Macs(count)
  leaves = len(jax.tree.leaves(variables['params']))
  dependence.run(walk, jaxpr, constants, leaves)
  return {**walk.counts, OUTPUT: walk.pending}
