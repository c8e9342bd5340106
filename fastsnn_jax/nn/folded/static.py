"""What a traced program computes of its parameters alone: once, before it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

# What only copies or reshapes, which may hang on the batch: the value in front
# of it is kept in its place.
COPIES = (
  *('broadcast_in_dim', 'reshape', 'squeeze', 'expand_dims'),
  *('pvary', 'pcast', 'pbroadcast'),  # under shard_map
)
_CONSTANT, _KNOWN, _MOVING = range(3)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where a program is cut; its equations are known by their numbers.

  Attributes:
    kept: (equation, output) of values of parameters alone that the rest needs.
    once: the equations that these take.
    rest: the equations of the rest.
    leaves: the parameters that the rest takes as they are.
  """

  kept: tuple[tuple[int, int], ...]
  once: tuple[int, ...]
  rest: tuple[int, ...]
  leaves: tuple[int, ...]


def plan(jaxpr, count: int) -> Plan:
  """Cuts a program whose first `count` arguments are its parameters.

  Args:
    jaxpr: without calls that mix parameters and other arguments.
    count: of parameters.
  """
  kinds = dict.fromkeys(jaxpr.constvars, _CONSTANT)
  kinds |= dict.fromkeys(jaxpr.invars[:count], _KNOWN)
  kinds |= dict.fromkeys(jaxpr.invars[count:], _MOVING)
  makers = {}
  for i, equation in enumerate(jaxpr.eqns):
    mine = (kinds[x] for x in equation.invars if not isinstance(x, Literal))
    kind = _MOVING if equation.effects else max(mine, default=_CONSTANT)
    for j, variable in enumerate(equation.outvars):
      kinds[variable], makers[variable] = kind, (i, j)
  numbers = {x: i for i, x in enumerate(jaxpr.invars[:count])}
  kept: set[tuple[int, int]] = set()
  once: set[int] = set()
  rest: set[int] = set()
  leaves: set[int] = set()
  needed = [*jaxpr.outvars]
  for i, equation in enumerate(jaxpr.eqns):
    if equation.effects:
      rest.add(i)
      needed += equation.invars
  while needed:
    variable = needed.pop()
    if isinstance(variable, Literal):
      continue
    if variable not in makers:
      leaves |= {numbers[variable]} if variable in numbers else set()
      continue
    i, j = makers[variable]
    copies = jaxpr.eqns[i].primitive.name in COPIES
    if kinds[variable] == _KNOWN and not copies:
      kept.add((i, j))
    elif i not in rest:
      rest.add(i)
      needed += jaxpr.eqns[i].invars
  needed = [jaxpr.eqns[i].outvars[j] for i, j in kept]
  while needed:
    variable = needed.pop()
    if not isinstance(variable, Literal) and variable in makers:
      i, _ = makers[variable]
      if i not in once:
        once.add(i)
        needed += jaxpr.eqns[i].invars
  numbered = (tuple(sorted(x)) for x in (once, rest, leaves))
  return Plan(tuple(sorted(kept)), *numbered)


def before(closed, cut: Plan, leaves) -> list:
  """The values that are kept, of the parameters."""
  known = _known(closed, leaves)
  _run(closed.jaxpr, cut.once, known)
  return [known[closed.jaxpr.eqns[i].outvars[j]] for i, j in cut.kept]


def behind(closed, cut: Plan, kept, arguments) -> list:
  """What the program gives.

  Parameters that the rest does not take may be None.
  """
  known = _known(closed, arguments)
  for (i, j), value in zip(cut.kept, kept, strict=True):
    known[closed.jaxpr.eqns[i].outvars[j]] = value
  _run(closed.jaxpr, cut.rest, known)
  return [_read(known, variable) for variable in closed.jaxpr.outvars]


def hoisted(function, known, *moving):
  """`function(known, …)` for many values like `moving`.

  What hangs on `known` alone is computed now, and by the same equations.
  """
  traced = jax.make_jaxpr(function, return_shape=True)
  closed, shapes = traced(known, *moving)
  leaves = jax.tree.leaves(known)
  cut = plan(closed.jaxpr, len(leaves))
  kept = before(closed, cut, leaves)

  def run(*moving):
    found = behind(closed, cut, kept, [*leaves, *jax.tree.leaves(moving)])
    return jax.tree.unflatten(jax.tree.structure(shapes), found)

  return run


def bind(equation, values, **changes) -> list:
  """What an equation makes of values, with some of its parameters changed."""
  given = {**equation.params, **changes}
  params, functions = equation.primitive.get_bind_params(given), ()
  if isinstance(params, tuple):  # before jax 0.10
    functions, params = params
  with equation.ctx.manager:
    found = equation.primitive.bind(*functions, *values, **params)
  return list(found) if equation.primitive.multiple_results else [found]


def literal(variable):
  """The value of a literal; None for a variable."""
  if not isinstance(variable, Literal):
    return None
  aval: Any = variable.aval
  return np.asarray(variable.val, aval.dtype)


def _known(closed, arguments):
  variables = (*closed.jaxpr.constvars, *closed.jaxpr.invars)
  values = (*closed.consts, *arguments)  # the first of them may be all
  return dict(zip(variables, values, strict=False))


def _read(known, variable):
  value = literal(variable)
  return known[variable] if value is None else value


def _run(jaxpr, numbers, known):
  for i in numbers:
    equation = jaxpr.eqns[i]
    values = [_read(known, x) for x in equation.invars]
    found = bind(equation, values)
    known |= dict(zip(equation.outvars, found, strict=True))
