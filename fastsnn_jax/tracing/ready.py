"""A function whose static part is evaluated: what hangs on parameters alone."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded import static
from fastsnn_jax.nn.folded.together import Packing
from fastsnn_jax.tracing import jaxprs
from fastsnn_jax.tracing.products import Whole
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
    packings: of what is kept as whole numbers, see `products.Whole`; () of
      what is not.
  """

  function: Callable
  tree: Any
  shapes: tuple[tuple[tuple[int, ...], Any, bool], ...]
  kept: tuple[tuple[str, tuple[int, ...]], ...] = ()
  packings: tuple[tuple[tuple[tuple[int, int], Packing], ...], ...] = ()

  def opened(self, params):
    """(params with all that is kept as floats, {id: (value, `Whole`)})."""
    kept, kernels = list(params['kept']), {}
    for i, own in enumerate(kept):
      if isinstance(own, Mapping):
        numbers, step = own['numbers'], own['step']
        value = kept[i] = numbers.astype(step.dtype) * step
        whole = Whole(numbers, step, dict(self.packings[i]))
        kernels[id(value)] = value, whole
    return {**params, 'kept': kept}, kernels

  def __call__(self, params, images):
    closed, cut, structure = self.cut(images)
    if _described(closed, cut) != self.kept:
      raise UserError(
        'the folded function computes other things of its parameters for '
        f'images of shape {images.shape}; give it unfolded'
      )
    leaves = [params['leaves'].get(str(i)) for i in range(len(self.shapes))]
    kept = self.opened(params)[0]['kept']
    found = static.behind(closed, cut, kept, [*leaves, images])
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


def made(function, params, image, known=True, packed=True):
  """(a `Ready` function, its parameters).

  None where what is kept has another shape for each size of a batch. What is
  `known` and turns out to be whole numbers times a step is kept so; unless
  `packed`, nothing static follows them.
  """
  leaves, tree = jax.tree.flatten(params)
  plain = Ready(function, tree, tuple(map(_shape, leaves)))
  found = _found(plain, image)
  if found is None:
    return None
  kept, needed = found
  values = _values(leaves, ready=plain, image=image)
  mine = {str(i): leaves[i] for i in needed}
  traced = any(isinstance(x, jax.core.Tracer) for x in values)
  if known and not traced:
    values = list(map(_whole, values))
  packings = tuple(
    _packings(x['numbers'], packed) if isinstance(x, Mapping) else ()
    for x in values
  )
  ready = dataclasses.replace(plain, kept=kept, packings=packings)
  return ready, {'kept': values, 'leaves': mine}


def _whole(value):
  """{'numbers': int8, 'step': …} of a kernel that is that, up to rounding."""
  if value.ndim < 2 or value.dtype not in (jnp.float32, jnp.float64):
    return value
  kernel, most = np.abs(np.asarray(value)), np.iinfo(np.int8).max
  some = np.unique(kernel.ravel()[: 4 * most])
  sizes = some if len(some) > most + 1 else np.unique(kernel)
  sizes = sizes.astype(np.float64)
  if not sizes.size or not 0 < sizes[-1] < np.inf or len(sizes) > most + 1:
    return value
  counts = np.arange(1, most + 1)[:, None]
  ratios = sizes / sizes[-1] * counts
  fits = (
    np.abs(ratios - np.round(ratios)) <= 8 * jnp.finfo(value.dtype).eps * counts
  )
  (found,) = np.nonzero(np.all(fits, 1))
  if not found.size:
    return value
  step = sizes[-1] / (found[0] + 1)
  numbers = np.round(np.asarray(value, np.float64) / step).astype(np.int8)
  return {
    'numbers': jnp.asarray(numbers),
    'step': jnp.asarray(step, value.dtype),
  }


def _packings(numbers, packed):
  """For axes of inputs and outputs that are the last two or the first two."""
  numbers, last = np.asarray(numbers), numbers.ndim - 1
  pairs = {(last - 1, last), (last, last - 1), (1, 0), (0, 1)}
  return tuple(
    (pair, Packing.of(numbers, *pair) if packed else Packing())
    for pair in sorted(pairs)
  )


@functools.lru_cache(maxsize=64)
def _found(ready, image):
  """(what is kept, leaves that are needed besides), or None: see `made`."""
  shape, dtype = image
  cuts = [
    ready.cut(jax.ShapeDtypeStruct((size, *shape), dtype)) for size in _BATCHES
  ]
  kept = {_described(closed, cut) for closed, cut, _ in cuts}
  leaves = {cut.leaves for _, cut, _ in cuts}
  alike = len(kept) == len(leaves) == 1
  return (kept.pop(), leaves.pop()) if alike else None


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
