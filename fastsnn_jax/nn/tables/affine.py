"""Which synapses are affine, as a spiking network needs them to be.

An affine map of a mean over time is the mean of the map; of no other map is
that true (docs/method.md).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.layers import convertible

_SCALES = 1.0, 100.0  # of random inputs: what is flat far out shows there
_TOLERANCE = 1e-3  # of the largest output


def check(layer, shapes=None) -> None:
  """Raises a UserError for a row whose synapse is not affine.

  A class of one's own that declares nothing has to show it: for random x and y
  and random parameters, f(x) + f(y) - f(0) = f(x + y).

  Args:
    layer: a row.
    shapes: of its inputs, batch first; None where they are not known yet.
  """
  known, reason = convertible(layer.synapse), ''
  if known is None:
    shapes = shapes and tuple(tuple(shape[1:]) for shape in shapes)
    if not shapes or shown(layer.synapse, shapes):
      return
    reason = (
      ': f(x) + f(y) - f(0) is not f(x + y) there; if it is affine all the '
      'same, say affine = True in the class itself'
    )
  if not known:
    raise UserError(
      f'to_spiking: layer {layer.name!r} ({type(layer.synapse).__name__}) is '
      'not affine, so the mean of its outputs over time is not its output at '
      'the mean; use a strided convolution or a pooling of fs there, or a row '
      f'of its own for what comes behind a nonlinearity{reason}'
    )


@functools.lru_cache(maxsize=256)
def shown(synapse, shapes) -> bool:
  """Whether a synapse is affine at such inputs (without the batch)."""
  random = np.random.default_rng(0)

  def draw(scale):
    drawn = (scale * random.standard_normal((2, *shape)) for shape in shapes)
    return [jnp.asarray(x, jnp.float32) for x in drawn]

  def moved(path, leaf):  # what is 0 at first may hide the rest
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    noise = 0.3 * random.standard_normal(leaf.shape)
    # A variance stays positive.
    return leaf + (noise if path[0].key == 'params' else np.abs(noise))

  with jax.ensure_compile_time_eval():  # under `jit` too
    first = synapse.init(jax.random.key(0), *draw(1.0))
    drawn = jax.tree_util.tree_map_with_path(moved, first)
    cases = [[draw(scale), draw(scale)] for scale in _SCALES]
    for variables in (drawn, first):
      run = functools.partial(synapse.apply, variables)
      errors = [_error(run, x, y) for x, y in cases]
      if np.isfinite(errors).all():
        return max(errors) < _TOLERANCE
  return False


def _error(run, x, y):
  """|f(x) + f(y) - f(0) - f(x + y)|, as a share of the largest of them."""
  zero = [0 * a for a in x]
  both = [a + b for a, b in zip(x, y, strict=True)]
  values = [np.asarray(run(*z), np.float64) for z in (x, y, zero, both)]
  largest = max(np.abs(value).max(initial=0) for value in values)
  at_x, at_y, at_0, at_both = values
  off = np.abs(at_x + at_y - at_0 - at_both).max(initial=0)
  return off / largest if largest else off
