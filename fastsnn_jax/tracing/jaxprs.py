"""Reads equations of a jaxpr: what they call, and who wrote them."""

import functools
import os
import re

import jax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr

from fastsnn_jax.nn.quantizers import site_p

# Primitives that call a jaxpr once, under the parameter of this name.
CALLS = {
  'jit': 'jaxpr',
  'pjit': 'jaxpr',
  'closed_call': 'call_jaxpr',
  'core_call': 'call_jaxpr',
  'custom_jvp_call': 'call_jaxpr',
  'custom_vjp_call': 'call_jaxpr',
  'custom_vjp_call_jaxpr': 'fun_jaxpr',
  'checkpoint': 'jaxpr',
  'remat': 'jaxpr',
  'remat2': 'jaxpr',
}
# Products with weights.
WEIGHTED = 'dot_general', 'conv_general_dilated'
# JAX and what is installed beside it, this library, and Python's own.
_LIBRARIES = (
  os.path.dirname(os.path.dirname(jax.__file__)),
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
  os.path.dirname(os.__file__),
)


def opened(jaxpr) -> tuple[Jaxpr, list]:
  """A jaxpr and its constants."""
  if isinstance(jaxpr, ClosedJaxpr):
    return jaxpr.jaxpr, list(jaxpr.consts)
  return jaxpr, []


def called(equation):
  """(jaxpr, constants) of what a call calls; None for another primitive."""
  name = CALLS.get(equation.primitive.name)
  return opened(equation.params[name]) if name else None


def inner(equation):
  """All jaxprs in an equation's parameters."""
  for value in equation.params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, Jaxpr | ClosedJaxpr):
        yield opened(part)[0]


@functools.lru_cache(maxsize=4096)
def has_site(jaxpr) -> bool:
  return any(
    e.primitive is site_p or any(map(has_site, inner(e))) for e in jaxpr.eqns
  )


def holds_site(equation) -> bool:
  return any(map(has_site, inner(equation)))


DRAWS = 'random_bits', 'rng_bit_generator', 'rng_uniform', 'threefry2x32'


@functools.lru_cache(maxsize=4096)
def draws(jaxpr) -> bool:
  """Whether anything in a jaxpr is drawn at random."""
  return any(
    e.primitive.name in DRAWS or any(map(draws, inner(e))) for e in jaxpr.eqns
  )


@functools.lru_cache(maxsize=4096)
def multiplies(jaxpr) -> bool:
  """Whether a jaxpr holds a product."""
  return any(
    e.primitive.name in WEIGHTED or any(map(multiplies, inner(e)))
    for e in jaxpr.eqns
  )


def mark_of(equation):
  """The mark inside a call of `quantize_uniform`, or None."""
  if equation.primitive.name != 'custom_jvp_call':
    return None
  marks = [e for e in called(equation)[0].eqns if e.primitive is site_p]
  return marks[0] if marks else None


def scope_of(equation) -> str:
  """The name scopes that an equation stands in, without transformations."""
  parts = str(equation.source_info.name_stack).split('/')
  return '/'.join(x for x in parts if x and not re.search(r'[()]', x))


def joined(*scopes) -> str:
  return '/'.join(filter(None, scopes))


def written_in_library(jaxpr) -> bool:
  """Whether a library's function was traced: its lines are of no use, and
  those above it are of whoever called it first."""
  info = str(getattr(jaxpr.debug_info, 'func_src_info', ''))
  return any(f' at {path}' in info for path in _LIBRARIES)


def place_of(equation) -> str:
  """'file.py:12', the innermost line outside of libraries."""
  traceback = equation.source_info.traceback
  for frame in traceback.frames if traceback is not None else ():
    if not frame.file_name.startswith(_LIBRARIES):
      return f'{frame.file_name}:{frame.line_num}'
  return 'an unknown line'


def written_at(equation):
  """A context in which what is traced has the line of an equation."""
  return source_info_util.user_context(
    equation.source_info.traceback,
    name_stack=source_info_util.current_name_stack(),
  )


def of_scan(params):
  """How many operands of a scan are the same in each round, and are carried."""
  if 'ft_in' in params:  # from JAX 0.12 on
    fixed, carried, _ = params['ft_in'].unpack()
    return len(list(fixed.vals)), len(list(carried.vals))
  return params['num_consts'], params['num_carry']
