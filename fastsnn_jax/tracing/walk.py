"""Evaluates a jaxpr equation by equation, and stops at its sites.

A site is a call of `quantize_activation`. This walk gives the function itself,
with what its sites answer; `over_time` runs it with spikes.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters.partial_eval import dce_jaxpr

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded.static import COPIES, bind, literal
from fastsnn_jax.nn.network import plain_products
from fastsnn_jax.nn.quantizers import quantize_uniform
from fastsnn_jax.nn.whole import Quantum
from fastsnn_jax.tracing import jaxprs, products

MOST_ROUNDS = 256  # of a scan that is unrolled
# What has no meaning for spikes: the reason, and the way out.
_ORDER = 'an order or a choice of spikes is no sum of messages'
_LATER = 'do it on the output of the network, outside of the function'
_RANDOM = 'it draws at random', 'run the model as at inference: no dropout'
_LOOP = (
  'how often a loop runs may not depend on spikes',
  'use a scan or a fori_loop whose number of rounds is known',
)
_HOST = 'it leaves the compiled program', 'take it out of the function'
REFUSED = {
  **dict.fromkeys(
    ('sort', 'top_k', 'approx_top_k', 'argmax', 'argmin'), (_ORDER, _LATER)
  ),
  'while': _LOOP,
  **dict.fromkeys(('pure_callback', 'io_callback', 'debug_callback'), _HOST),
}


@dataclasses.dataclass(frozen=True)
class Site:
  """A neuron's place in a function: its name, and the levels above 0."""

  name: str
  levels: int


class Walk:
  """One walk; `run` evaluates a jaxpr, and `activations` keeps the sites.

  Args:
    given: {site: what it answers}; None to quantise the input.
    whole: the neuron whose `quantum` the answers have; with one products are
      those of whole numbers, where sites feed them.
    precision: of these and of other products, as of `Network`.
    decoded: the answers are means over time.
  """

  def __init__(
    self, given=None, *, whole=None, precision='high', decoded=False
  ):
    self.given, self.activations, self.thetas = given, {}, {}
    self.whole, self.precision, self.decoded = whole, precision, decoded
    self._quanta: dict[int, tuple] = {}
    self.kernels: dict[int, tuple] = {}  # of whole numbers, see `products`
    self.sites: list[Site] = []
    self.place = ''  # of the equation that is evaluated
    self.aside = False  # inside of a site
    self._scope, self._constants = '', {}

  # --- equations --------------------------------------------------------------

  def run(self, jaxpr, constants, arguments) -> list:
    environment = _bound(jaxpr, constants, arguments)
    self._run(jaxpr.eqns, environment)
    return [self._read(environment, variable) for variable in jaxpr.outvars]

  def _run(self, equations, environment):
    for equation in equations:
      values = [self._read(environment, x) for x in equation.invars]
      outer = self.place, self._scope
      line: contextlib.AbstractContextManager = contextlib.nullcontext()
      if not self.place:
        self.place = jaxprs.place_of(equation)
        line = jaxprs.written_at(equation)
      self._scope = jaxprs.joined(outer[1], jaxprs.scope_of(equation))
      with line:
        found = self._step(equation, values)
      environment.update(zip(equation.outvars, found, strict=True))
      self.place, self._scope = outer

  def _read(self, environment, variable):
    if (value := literal(variable)) is not None:
      self.note(value, value)
      return value
    return environment[variable]

  def _step(self, equation, values):
    name = equation.primitive.name
    if (mark := jaxprs.mark_of(equation)) is not None:
      return [self._at_site(equation, mark, values)]
    drawn = any(map(jaxprs.draws, jaxprs.inner(equation)))
    if name in jaxprs.DRAWS or drawn:
      self.refuse(name, *_RANDOM)
    call = jaxprs.called(equation)
    moves = self.moves(*values) or jaxprs.holds_site(equation)
    if not (moves or self._opens(equation, values)):
      return self.still(equation, values)
    if call:
      return self._called(call, values)
    if name == 'scan':
      return self._unrolled(equation, values)
    if name == 'cond':
      return self._chosen(equation, values)
    if jaxprs.holds_site(equation):
      self.refuse(name, 'it has a neuron inside', _LOOP[1])
    return self.operation(equation, values)

  def _opens(self, equation, values):
    """Whether products inside, or whole numbers behind it, are of interest."""
    if self.whole is None:
      return False
    driven = any(self.quantum(x) is not None for x in values)
    name = equation.primitive.name
    if name in jaxprs.CALLS:
      multiplies = any(map(jaxprs.multiplies, jaxprs.inner(equation)))
      return multiplies or (driven and name in ('jit', 'pjit'))
    return (
      name == 'scan'
      and driven
      and equation.params['length'] > 0
      and any(map(jaxprs.multiplies, jaxprs.inner(equation)))
    )

  def _called(self, call, values):
    place = self.place
    if not jaxprs.written_in_library(call[0]):
      self.place = ''  # the lines inside are the user's own
    found = self.run(*call, values)
    self.place = place
    return found

  def _at_site(self, equation, mark, values):
    jaxpr, constants = jaxprs.called(equation)
    environment = _bound(jaxpr, constants, values)
    before = jaxpr.eqns[: jaxpr.eqns.index(mark)]
    self.aside = True
    self._run(before, environment)
    self.aside = False
    x, theta = (self._read(environment, v) for v in mark.invars)
    if self.moves(theta):
      self.refuse(
        'quantize_activation',
        'its alpha depends on spikes',
        'let alpha depend on parameters only',
      )
    levels = mark.params['levels']
    base = mark.params['name'] or self._scope or 'site'
    taken, name, i = {site.name for site in self.sites}, base, 1
    while name in taken:
      i += 1
      name = f'{base}_{i}'
    site = Site(name, levels)
    self.sites.append(site)
    self.thetas[name] = theta
    answer = self.site(site, x, theta)
    self._site_quantum(answer, theta)
    self.activations.setdefault(name, self.kept(answer))
    return answer

  # --- what spikes change -----------------------------------------------------

  def moves(self, *values) -> bool:
    """Whether any of the values has steps."""
    return False

  def kept(self, answer):
    """What `activations` keeps of a site's answer."""
    return answer

  def site(self, site, x, theta):
    if self.given is not None:
      return self.given[site.name]
    theta = theta.reshape(()) if theta.size == 1 else theta
    return quantize_uniform(x, theta, site.levels, site.name)

  def still(self, equation, values):
    """An equation of values without steps."""
    found, name = self._computed(equation, values), equation.primitive.name
    if name in (*COPIES, 'convert_element_type', 'copy'):
      self.note(found[0], self.constant(values[0]))
    return found

  def _computed(self, equation, values):
    if self.whole is None:
      return bind(equation, values)
    quanta = list(map(self.quantum, values))
    if equation.primitive.name in jaxprs.WEIGHTED:

      def run(values, **changes):
        return bind(equation, values, **changes)[0]

      settings = quanta, self.precision, self.kernels, run
      found = [products.product(equation, values, *settings)]
    else:
      found = bind(equation, values)
    if any(quantum is not None for quantum in quanta):
      handed = products.handed(equation, quanta, values)
      for x in found:
        self._quanta[id(x)] = x, handed
    return found

  def quantum(self, value) -> Quantum | None:
    """What is known of a value that a site feeds; None for any other."""
    return self._quanta.get(id(value), (None, None))[1]

  def _site_quantum(self, answer, theta):
    if self.whole is not None:
      known = self.whole.quantum(theta, self.decoded)
      self._quanta[id(answer)] = answer, products.of_site(theta, known)

  def operation(self, equation, values):
    raise NotImplementedError  # of values with steps

  def each(self, function, *values):
    """A function that is linear in its values, at every step."""
    found = function(*values)
    if any(self.quantum(x) is not None for x in values):
      self._quanta[id(found)] = found, Quantum()
    return found

  def alike(self, values):
    """Values of one kind, so that one array can hold all."""
    return values

  # --- constants --------------------------------------------------------------

  def note(self, value, number) -> None:
    """Keeps that all of a value is one known number."""
    if number is not None and np.size(number) == 1:
      # The value too: while it lives, nothing else has its id.
      self._constants[id(value)] = value, np.asarray(number).reshape(())[()]

  def constant(self, value):
    """The known number that a value is, or None."""
    return self._constants.get(id(value), (None, None))[1]

  # --- control flow -----------------------------------------------------------

  def _unrolled(self, equation, values):
    params = equation.params
    length, (fixed, carried) = params['length'], jaxprs.of_scan(params)
    first = fixed + carried
    if length > MOST_ROUNDS:
      self.refuse(
        'scan',
        f'{length} rounds over spikes are more than the {MOST_ROUNDS} that are '
        'unrolled',
        'keep long loops out of what lies between two sites',
      )
    jaxpr, constants = jaxprs.opened(params['jaxpr'])
    call, carry, rows = (jaxpr, constants), values[fixed:first], []
    order = range(length)
    for i in reversed(order) if params['reverse'] else order:
      pick = lambda x, i=i: lax.index_in_dim(x, i, keepdims=False)  # noqa: E731
      mine = [self.each(pick, x) for x in values[first:]]
      found = self._called(call, [*values[:fixed], *carry, *mine])
      carry, row = found[: len(carry)], found[len(carry) :]
      rows.append(row)
    if params['reverse']:
      rows.reverse()
    stacked = []
    for parts in zip(*rows, strict=True):
      stack = lambda *x: jnp.stack(x)  # noqa: E731
      stacked.append(self.each(stack, *self.alike(parts)))
    if not length:
      variables = equation.outvars[len(carry) :]
      stacked = [jnp.zeros(x.aval.shape, x.aval.dtype) for x in variables]
    return [*carry, *stacked]

  def _chosen(self, equation, values):
    """A cond whose predicate has no steps."""
    index, *operands = values
    if self.moves(index):
      self.refuse(
        'cond',
        'its predicate depends on spikes',
        'compute both sides, and add them up with weights from the parameters',
      )
    branches = equation.params['branches']
    if (known := self.constant(index)) is not None:
      known = min(max(int(known), 0), len(branches) - 1)
      return self._called(jaxprs.opened(branches[known]), operands)
    if jaxprs.holds_site(equation):
      self.refuse(
        'cond',
        'a neuron inside a branch that is chosen at run time',
        'choose before tracing, by a Python if',
      )
    return self.branch(
      index, equation.params, [jaxprs.opened(x) for x in branches], operands
    )

  def branch(self, index, params, branches, operands):
    raise NotImplementedError  # of operands with steps

  def refuse(self, name, reason, remedy):
    raise UserError(f'{self.place}: {name}: {reason}; {remedy}')


def _bound(jaxpr, constants, arguments):
  variables = (*jaxpr.constvars, *jaxpr.invars)
  return dict(zip(variables, (*constants, *arguments), strict=True))


def check_arrays(params) -> None:
  """UserError for parameters that are no tree of arrays."""
  arrays = jax.Array | np.ndarray | np.generic | float
  known = arrays | int | jax.ShapeDtypeStruct
  odd = [x for x in jax.tree.leaves(params) if not isinstance(x, known)]
  if odd:
    raise UserError(
      f'params hold a {type(odd[0]).__name__}, but they must be a tree of '
      'arrays; split what is no array off (nnx.split, eqx.partition), and let '
      'the function join it'
    )


def trace(function, params, images):
  """(jaxpr, constants, tree of the output) of a function of (params, images).

  UserError for what is no function of two trees of arrays.
  """
  check_arrays(params)
  traced = jax.make_jaxpr(function, return_shape=True)
  with plain_products():
    closed, shapes = traced(params, images)
  jaxpr = closed.jaxpr
  # Without what nothing uses; some versions of JAX drop constants too.
  live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
  jaxpr = live if len(live.constvars) == len(closed.consts) else jaxpr
  return jaxpr, closed.consts, jax.tree.structure(shapes)
