"""A float network becomes a quantised one without training."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import QuantRelu, Relu
from fastsnn_jax.nn.quantizers import quantize_activation
from fastsnn_jax.tracing import jaxprs
from fastsnn_jax.tracing.dependence import check_alone
from fastsnn_jax.tracing.traced import from_function
from fastsnn_jax.tracing.walk import Walk, check_arrays, trace

_BINS, _CHUNK = 2048, 128
_SHARE = 0.999  # of the values above 0 that 'percentile' leaves unclipped
METHODS = 'mse', 'percentile', 'max'


def _rectifies(jaxpr) -> bool:
  return any(
    e.primitive.name in ('max', 'clamp')
    or any(map(_rectifies, jaxprs.inner(e)))
    for e in jaxpr.eqns
  )


class _Rectifiers(Walk):
  """A walk that stops at max(x, 0), alone, under a min, or as a clamp.

  Args:
    answer: (name, x, cap) -> the rectifier's value; the cap is None where it
      is not known yet or there is none.
    caps: {name: upper bound of a clip}, found on the way.
  """

  def __init__(self, answer, caps=None):
    super().__init__()
    self.answer, self.caps = answer, dict(caps or {})
    self.known = caps is not None
    self.names: list[str] = []
    self._made = {}

  def _step(self, equation, values):
    if any(map(_rectifies, jaxprs.inner(equation))):
      if call := jaxprs.called(equation):
        return self._called(call, values)
      if equation.primitive.name == 'scan':
        return self._unrolled(equation, values)
    return super()._step(equation, values)

  def still(self, equation, values):
    name, numbers = equation.primitive.name, list(map(self.constant, values))
    floats = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
    if name == 'max' and floats and 0 in numbers and None in numbers:
      return [self._rectified(values[numbers.index(None)], equation)]
    if name == 'clamp' and floats and numbers[0] == 0 and numbers[1] is None:
      value = self._rectified(values[1], equation)
      return [self._capped(value, numbers[2], equation, values[2])]
    if name == 'min':
      for x, other, number in zip(
        values, values[::-1], numbers[::-1], strict=True
      ):
        if id(x) in self._made:
          return [self._capped(x, number, equation, other)]
    return super().still(equation, values)

  def _rectified(self, x, equation):
    base, i = self._scope or 'relu', 1
    name = base
    while name in self.names:
      i += 1
      name = f'{base}_{i}'
    self.names.append(name)
    value = self.answer(name, x, self.caps.get(name))
    value = jnp.broadcast_to(value, equation.outvars[0].aval.shape)
    self._made[id(value)] = value, name
    return value

  def _capped(self, value, number, equation, other):
    _, name = self._made[id(value)]
    if number is not None and np.isfinite(number) and number > 0:
      self.caps[name] = float(number)
      if self.known:
        return value  # theta is not above it
    return jnp.minimum(value, other)


@dataclasses.dataclass(frozen=True)
class Calibrated:
  """A function whose rectifiers are quantised activations.

  It takes ({'function': its parameters, 'theta': {site: clip}}, images), so
  that quantisation-aware training moves both.
  """

  function: Callable
  bits: int
  caps: tuple[tuple[str, float], ...] = ()

  def __call__(self, params, images):
    def answer(name, x, cap):
      theta = jnp.asarray(params['theta'][name], x.dtype)
      theta = theta if cap is None else jnp.minimum(theta, cap)
      return quantize_activation(x, theta, self.bits, name=name)

    walk = _Rectifiers(answer, dict(self.caps))
    return _run(walk, self.function, params['function'], images)


def _run(walk, function, params, images):
  jaxpr, constants, tree = trace(function, params, images)
  found = walk.run(jaxpr, constants, [*jax.tree.leaves(params), images])
  return jax.tree.unflatten(tree, found)


def calibrate(
  network,
  variables,
  images,
  bits: int = 4,
  method: str = 'mse',
  per_channel: bool = False,
  **fields,
):
  """A quantised network from a float one and some hundred images.

  Each ReLU, ReLU6 or clip from 0 becomes a quantised activation, whose theta is
  chosen by the values that come out of it:

    'mse': the theta with the least mean squared error of quantisation,
    'percentile': 99.9 % of the values above 0 are not clipped,
    'max': no value is.

  Weights stay as they are.

  Args:
    network: a function (params, images) -> output, or a table with `fs.Relu`.
    variables: the function's params, or the table's variables.
    images: [N, …], normalised floats as the network takes them.
    bits: of the activations, 1 to 8.
    method: how theta is chosen.
    per_channel: a theta for each channel, the last axis, of what has more axes
      than one; otherwise one for each rectifier.
    **fields: of a function, as of `fs.from_function`.

  Returns:
    (network, variables) as `fs.to_spiking` takes them. Those of a function are
    {'params': {'function': its own, 'theta': {site: theta}}}.

  Raises:
    UserError: no rectifier, an argument of another kind, or a function whose
      answer to an image depends on the rest of the batch.

  >>> import fastsnn_jax as fs
  >>> def model(params, x):
  ...   return jax.nn.relu(x @ params) @ params
  >>> images = jax.random.normal(jax.random.key(0), (64, 3))
  >>> network, variables = fs.calibrate(model, jnp.eye(3), images, bits=8)
  >>> output, _ = network.apply(variables, images)
  >>> bool(jnp.abs(output - model(jnp.eye(3), images)).max() < 0.05)
  True
  """
  if method not in METHODS:
    raise UserError(f'method={method!r}: the methods are {", ".join(METHODS)}')
  if not (isinstance(bits, int | np.integer) and 1 <= bits <= 8):
    raise UserError(
      f'bits={bits!r}, but calibration takes whole numbers from 1 to 8'
    )
  images = jnp.asarray(images)
  if not len(images) or not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(
      f'images of shape {images.shape} and dtype {images.dtype}, but they must '
      'be a batch of normalised floats, some hundred'
    )
  if isinstance(network, Network):
    how = int(bits), method, per_channel
    return _table(network, variables, images, how, fields)
  check_arrays(variables)
  caps, order = {}, []

  def collect(params, images):
    found = {}

    def answer(name, x, cap):
      found[name] = x
      return jnp.maximum(x, 0)

    walk = _Rectifiers(answer)
    _run(walk, network, params, images)
    caps.update(walk.caps)
    order[:] = walk.names
    return found

  jax.eval_shape(collect, variables, images[:1])
  if not order:
    raise UserError(
      'calibrate: the function has no max(x, 0), so nothing to quantise; it '
      'takes ReLU, ReLU6 and clips from 0'
    )
  if len(images) > 1:
    check_alone(network, variables, images[:2])
  how = int(bits), method, per_channel
  thetas = _thetas(collect, variables, images, how, caps)
  function = Calibrated(network, int(bits), tuple(sorted(caps.items())))
  params = {'function': variables, 'theta': thetas}
  return from_function(function, params, images[:1], **fields)


def _table(network, variables, images, how, fields):
  if not isinstance(network.neuron, Relu) or fields:
    raise UserError(
      f'calibrate: the neuron is {network.neuron}, given are {sorted(fields)}; '
      'but a table must have fs.Relu(), and it keeps its own settings'
    )

  def collect(variables, images):
    return network.apply(variables, images)[1]

  thetas = _thetas(collect, variables, images, how, {})
  params = {
    name: {**own, 'theta': thetas[name]} if name in thetas else own
    for name, own in {
      **{name: {} for name in thetas},
      **variables['params'],
    }.items()
  }
  quantised = dataclasses.replace(network, neuron=QuantRelu(how[0]), model=None)
  return quantised, {**variables, 'params': params}


def _thetas(collect, variables, images, how, caps):
  """{site: theta}, from two passes: the largest values, then histograms."""
  bits, method, per_channel = how
  chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]

  def apart(x):
    """[values, channels], or [values, 1]."""
    each = per_channel and x.ndim > 1
    return x.reshape(-1, x.shape[-1] if each else 1)

  @jax.jit
  def largest(variables, images):
    found = collect(variables, images)
    return {name: jnp.max(apart(x), 0, initial=0) for name, x in found.items()}

  @jax.jit
  def histograms(variables, images, tops):
    def count(x, top):
      bins = jnp.clip(x / top * _BINS, 0, _BINS - 1).astype(jnp.int32)
      return jnp.zeros(_BINS).at[bins].add((x > 0) * 1.0)

    count = jax.vmap(count, (1, 0))
    found = collect(variables, images)
    return {name: count(apart(x), tops[name]) for name, x in found.items()}

  tops = [largest(variables, chunk) for chunk in chunks]
  tops = jax.tree.map(lambda *x: np.max(x, 0), *tops)
  for name, top in tops.items():
    if not np.isfinite(top).all():
      raise UserError(
        f'calibrate: {top[~np.isfinite(top)][0]} comes out of {name!r}; give '
        'finite weights and normalised images'
      )
    # Of a silent channel any will do.
    tops[name] = np.where(top > 0, top, top.max() or 1)
  counts = [histograms(variables, chunk, tops) for chunk in chunks]
  counts = jax.tree.map(lambda *x: np.sum(x, 0, np.float64), *counts)
  thetas = {}
  for name, top in tops.items():
    pairs = zip(counts[name], top, strict=True)
    found = [_theta(*pair, bits, method, caps.get(name)) for pair in pairs]
    one = len(found) == 1
    thetas[name] = jnp.asarray(found[0] if one else found, float)
  return thetas


def _theta(counts, top, bits, method, cap):
  """The clip by the histogram of what is above 0, up to `top`."""
  edges = (np.arange(_BINS) + 1) * top / _BINS
  values = edges - top / _BINS / 2
  if cap is not None:  # the clip comes before the quantiser
    values, edges, top = (np.minimum(x, cap) for x in (values, edges, top))
  if method == 'max' or not counts.sum():
    return top
  if method == 'percentile':
    share = np.cumsum(counts) / counts.sum()
    return edges[min(np.searchsorted(share, _SHARE), _BINS - 1)]
  levels = 2**bits - 1

  def error(theta):
    rounded = np.round(np.clip(values / theta, 0, 1) * levels) / levels * theta
    return counts @ np.square(values - rounded)

  return min(top * np.arange(1, 101) / 100, key=error)
