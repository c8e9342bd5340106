"""What each site of a function, and its output, depends on directly."""

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
