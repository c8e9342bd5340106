"""A function whose static part is evaluated: what hangs on parameters alone."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import static
from fastsnn_jax.tracing import jaxprs
from fastsnn_jax.tracing.walk import Walk, trace

_BATCHES = 1, 2, 3


class _Flat(Walk):
  """A walk that opens calls, and what has a site in it."""

  def _step(self, equation, values):
    held, name = jaxprs.holds_site(equation), equation.primitive.name
    if held or jaxprs.mark_of(equation) is not None:
      return super()._step(equation, values)
    if name in ('jit', 'pjit', 'closed_call', 'core_call'):
      return self._called(jaxprs.called(equation), values)
    return self.still(equation, values)


@dataclasses.dataclass(frozen=True)
class Ready:
  """A function of ({'kept': …, 'leaves': …}, images).

  It has the equations of the function, but for those whose values were kept.

  Attributes:
    function: of (params, images).
    tree: of its parameters.
    shapes: of their leaves: shape, dtype, and whether that is weak.
    kept: what is kept: the primitive that gave it, and its shape.
  """

  function: Callable
  tree: Any
  shapes: tuple[tuple[tuple[int, ...], Any, bool], ...]
  kept: tuple[tuple[str, tuple[int, ...]], ...] = ()

  def __call__(self, params, images):
    closed, cut, structure = self.cut(images)
    if _described(closed, cut) != self.kept:
      raise UserError(
        'the folded function computes other things of its parameters for '
        f'images of shape {images.shape}; give it unfolded'
      )
    leaves = [params['leaves'].get(str(i)) for i in range(len(self.shapes))]
    found = static.behind(closed, cut, params['kept'], [*leaves, images])
    return jax.tree.unflatten(structure, found)

  def cut(self, images):
    """(the function opened, where it is cut, tree of its output)."""
    leaves = [
      jax.ShapeDtypeStruct(shape, dtype, weak_type=weak)
      for shape, dtype, weak in self.shapes
    ]
    params = jax.tree.unflatten(self.tree, leaves)
    jaxpr, constants, structure = trace(self.function, params, images)

    def run(leaves, images):
      return _Flat().run(jaxpr, constants, [*leaves, images])

    closed = jax.make_jaxpr(run)(leaves, images)
    return closed, static.plan(closed.jaxpr, len(leaves)), structure


def made(function, params, image):
  """(a `Ready` function, its parameters); None where there is nothing to keep.

  Nor is there where what is kept has another shape for each size of a batch.
  """
  leaves, tree = jax.tree.flatten(params)
  plain = Ready(function, tree, tuple(map(_shape, leaves)))
  kept, needed = _found(plain, image)
  if not kept:
    return None
  values = _values(leaves, ready=plain, image=image)
  mine = {str(i): leaves[i] for i in needed}
  ready = dataclasses.replace(plain, kept=kept)
  return ready, {'kept': values, 'leaves': mine}


@functools.lru_cache(maxsize=64)
def _found(ready, image):
  """(what is kept, leaves that are needed besides)."""
  shape, dtype = image
  cuts = [
    ready.cut(jax.ShapeDtypeStruct((size, *shape), dtype)) for size in _BATCHES
  ]
  kept = {_described(closed, cut) for closed, cut, _ in cuts}
  leaves = {cut.leaves for _, cut, _ in cuts}
  alike = len(kept) == len(leaves) == 1
  return (kept.pop(), leaves.pop()) if alike else ((), ())


@functools.partial(jax.jit, static_argnames=('ready', 'image'))
def _values(leaves, *, ready, image):
  shape, dtype = image
  images = jax.ShapeDtypeStruct((_BATCHES[0], *shape), dtype)
  closed, cut, _ = ready.cut(images)
  return static.before(closed, cut, leaves)


def _described(closed, cut):
  equations = [closed.jaxpr.eqns[i] for i, _ in cut.kept]
  return tuple(
    (x.primitive.name, x.outvars[j].aval.shape)
    for x, (_, j) in zip(equations, cut.kept, strict=True)
  )


def _shape(leaf):
  weak = getattr(leaf, 'weak_type', isinstance(leaf, int | float))
  dtype = leaf.dtype if hasattr(leaf, 'dtype') else jnp.result_type(leaf)
  return jnp.shape(leaf), dtype, weak
