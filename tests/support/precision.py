"""Runs a function as a device would whose products round their operands."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

HIGHEST = lax.Precision.HIGHEST
INNER = 'jaxpr', 'call_jaxpr'
PRODUCTS = 'conv_general_dilated', 'dot_general'


def _kept(bits, x):
  """float32 with so many bits less of the fraction, ties to even."""
  word = lax.bitcast_convert_type(x, jnp.uint32)
  word = word + jnp.uint32(2 ** (bits - 1) - 1) + ((word >> bits) & 1)
  word = (word >> bits) << bits
  return lax.bitcast_convert_type(word, x.dtype)


bfloat16, tf32 = functools.partial(_kept, 16), functools.partial(_kept, 13)


def rounded(function, rounding):
  """`function`, but products in less than HIGHEST round their operands."""

  @jax.jit
  def run(*args):
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    values = _run(closed, jax.tree.leaves(args), rounding)
    return jax.tree.unflatten(jax.tree.structure(shape), values)

  return run


def _run(closed, args, rounding):
  jaxpr = closed.jaxpr
  known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  known |= dict(zip(jaxpr.invars, args, strict=True))

  def read(atom):
    return atom.val if isinstance(atom, Literal) else known[atom]

  for equation in jaxpr.eqns:
    values = [read(atom) for atom in equation.invars]
    params, primitive = equation.params, equation.primitive
    inner = next((params[k] for k in INNER if k in params), None)
    if primitive.name in PRODUCTS:
      precision = params['precision']
      if not precision or HIGHEST not in precision:
        values = [rounding(x) for x in values]
      found = [primitive.bind(*values, **params)]
    elif primitive.name == 'platform_index':
      found = [params['platforms'].index(('cpu',))]
    elif primitive.name == 'cond' and isinstance(values[0], int):
      found = _run(params['branches'][values[0]], values[1:], rounding)
    elif inner is not None and primitive.name not in ('scan', 'while'):
      inner = inner if hasattr(inner, 'consts') else ClosedJaxpr(inner, ())
      found = _run(inner, values, rounding)
    else:
      found = primitive.bind(*values, **params)
      found = found if primitive.multiple_results else [found]
    known |= dict(zip(equation.outvars, found, strict=True))
  return [read(atom) for atom in jaxpr.outvars]
