"""What each site of a function, and its output, depends on."""

import functools

import jax
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.folded.static import literal
from fastsnn_jax.tracing.walk import Walk

IMAGES, SPIKES = 'images', 'spikes'
NOTHING = frozenset()


class Dependence(Walk):
  """A walk over sets of names: leaves of the parameters by number, `IMAGES`.

  A site's answer depends on `SPIKES` only, so `inputs` and `clips` have, for
  each site, what lies between it and the sites before.
  """

  def __init__(self):
    super().__init__()
    self.inputs, self.clips = {}, {}

  def _read(self, environment, variable):
    if literal(variable) is not None:
      return NOTHING
    return environment.get(variable, NOTHING)

  def still(self, equation, values):
    return [NOTHING.union(*values)] * len(equation.outvars)

  operation = still

  def each(self, function, *values):
    return NOTHING.union(*values)

  def constant(self, value):
    return None

  def site(self, site, x, theta):
    self.inputs[site.name], self.clips[site.name] = x, theta
    return frozenset({SPIKES})


def of(jaxpr, constants, leaves: int):
  """(walk, what the output depends on) of a traced function.

  The first `leaves` of its arguments are parameters, the last is the images.
  """
  walk = Dependence()
  return walk, NOTHING.union(*run(walk, jaxpr, constants, leaves))


def run(walk, jaxpr, constants, leaves: int) -> list:
  arguments = [frozenset({i}) for i in range(leaves)] + [frozenset({IMAGES})]
  return walk.run(jaxpr, [NOTHING] * len(constants), arguments)


def check_alone(function, params, images) -> None:
  """UserError for a function that answers an image by the others of its batch.

  Where one image's tangent is 0, that of its answer is exactly 0. A function
  without forward derivatives is not looked at.

  Args:
    function: (params, images) -> a tree of [B, ...].
    params: its parameters.
    images: two at least.
  """
  moved = jax.random.normal(jax.random.key(0), images.shape, images.dtype)
  moved = moved.at[0].set(0)
  run = jax.jit(functools.partial(function, params))
  try:
    _, tangents = jax.jvp(run, (images,), (moved,))
  except (TypeError, ValueError, NotImplementedError):
    return  # it has no forward mode: a custom_vjp, a callback
  first = [np.nan_to_num(x[0]) for x in jax.tree.leaves(tangents) if x.ndim]
  if any(x.any() for x in first):
    raise UserError(
      'the answer to an image depends on the other images of the batch; give '
      'the function at inference, batch norm with its running statistics'
    )
