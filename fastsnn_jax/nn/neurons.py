r"""The nonlinearities of a network, and the only code that knows of time.

A network has one neuron: `Relu` (float), `QuantRelu` (quantised) or
`IntegrateAndFire` (spiking). They are frozen dataclasses with the same four
members, so that a network is converted by replacing one by another:

  initial_theta                      None where the neuron has no threshold
  respond(synapse, inputs, theta)    currents through `synapse`, then activity
  decode(activity)                   activity -> the activation it stands for
  quantum(theta)                     what all activity is a multiple of, or None

Time is the second axis, [B, T, ...], and is folded into the batch as (B T) for
the synapses: a batch sharded over devices then stays where it is.
"""

import dataclasses
import math
import numbers
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.integrate_and_fire import Rule, simulate
from fastsnn_jax.nn.quantizers import check_bits, quantize_activation


def _is_finite(value):
  return isinstance(value, numbers.Real) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Relu:
  """max(current, 0), of any shape: the neuron of the float network.

  >>> Relu().respond(lambda x: 2 * x, (jnp.array([-1.0, 3.0]),)).tolist()
  [0.0, 6.0]
  """

  initial_theta: ClassVar[None] = None

  def respond(self, synapse, inputs, theta=None, *, static=()):
    del theta, static
    return jnp.maximum(synapse(*inputs), 0)

  def decode(self, activity):
    return activity

  def quantum(self, theta):
    del theta


@dataclasses.dataclass(frozen=True)
class QuantRelu:
  """`fs.quantize_activation` of the current, with theta as the learned clip.

    activation = round(clip(current / theta, 0, 1) n) theta / n,  n = 2^bits - 1

  Attributes:
    bits: 1 to 16.
    initial_theta: positive, in the current's unit.

  Raises:
    UserError: a field outside of the above.

  >>> QuantRelu(2).respond(lambda x: x, (jnp.array([-1.0, 3.5]),), 6.0).tolist()
  [0.0, 4.0]
  """

  bits: int
  initial_theta: float = 6.0

  def __post_init__(self):
    check_bits(self.bits, 1, 16, 'activation')
    if not _is_finite(self.initial_theta) or self.initial_theta <= 0:
      raise UserError(
        f'QuantRelu: initial_theta={self.initial_theta!r}, but it must be a '
        'positive number'
      )

  def respond(self, synapse, inputs, theta, *, static=()):
    del static
    return quantize_activation(synapse(*inputs), theta, self.bits)

  def decode(self, activity):
    return activity

  def quantum(self, theta):
    return theta / (2**self.bits - 1)


@dataclasses.dataclass(frozen=True)
class IntegrateAndFire:
  """Integrate-and-fire neurons that may take a spike back.

  The dynamics are those of `fs.integrate_and_fire` (Fast-SNN,
  https://arxiv.org/abs/2305.19868), with spikes of the height theta:
  [B, H, W, C] images or [B, T, ...] spikes -> [B, T + settle, ...].

  Attributes:
    steps: T, the steps during which the input is shown; rates divide by it.
    signed: negative spikes on or off.
    negative_threshold: a spike is taken back at a voltage of this or less; in
      the current's unit.
    max_count: cap on the net spike count, or None.
    settle: steps after the T-th with zero input and no bias: the current is
      synapse(x) - synapse(0) there, so that late charge is still answered.

  Raises:
    UserError: a field of another kind or out of range.

  >>> neuron = IntegrateAndFire(steps=3)
  >>> image = jnp.array([[0.1, 2.0]])
  >>> spikes = neuron.respond(lambda x: x, (image,), 1.0, static=(True,))
  >>> spikes.shape, neuron.decode(spikes).tolist()
  ((1, 3, 2), [[0.0, 1.0]])
  """

  steps: int
  signed: bool = True
  negative_threshold: float = -1e-3
  max_count: int | None = None
  settle: int = 0

  initial_theta: ClassVar[float] = 1.0

  def __post_init__(self):
    def check(name, valid, needed):
      if not valid:
        raise UserError(
          f'IntegrateAndFire: {name}={getattr(self, name)!r}, but it must be '
          f'{needed}'
        )

    for name, low in (('steps', 1), ('settle', 0), ('max_count', 1)):
      value = getattr(self, name)
      whole = isinstance(value, numbers.Integral) and value >= low
      unset = (name, value) == ('max_count', None)
      check(name, whole or unset, f'a whole number from {low} up')
    check('signed', isinstance(self.signed, bool | np.bool_), 'True or False')
    negative = self.negative_threshold
    check('negative_threshold', _is_finite(negative), 'a finite number')

  @property
  def total_steps(self) -> int:
    return self.steps + self.settle

  def respond(self, synapse, inputs, theta, *, static=()):
    """Spikes [B, T + settle, ...] in {-theta, 0, theta}.

    `static[i]` says that input i has no time axis: an image, shown for T steps
    and then withdrawn.
    """
    static = static or (False,) * len(inputs)
    if all(static):
      # The same current at each step: one synapse, and no copy per step.
      current = jnp.expand_dims(synapse(*inputs), 1)
      return self._fire(current, theta, constant=True)
    inputs = [
      self._show(x) if alone else x
      for x, alone in zip(inputs, static, strict=True)
    ]
    batch, time = inputs[0].shape[:2]
    folded = [x.reshape(batch * time, *x.shape[2:]) for x in inputs]
    current = synapse(*folded)
    current = current.reshape(batch, time, *current.shape[1:])
    if self.settle:
      bias = synapse(*(jnp.zeros_like(x[:1]) for x in folded))
      late = jnp.arange(time) >= self.steps
      late = late.reshape(time, *(1,) * (current.ndim - 2))
      current = jnp.where(late, current - bias, current)
    return self._fire(current, theta, constant=False)

  def quantum(self, theta):
    return theta

  def decode(self, activity):
    """Mean over T, settled charge included: [B, T, ...] -> [B, ...]."""
    return jnp.sum(activity, 1) / self.steps

  def decode_over_time(self, activity):
    """What `decode` would say after each step: mean over t, or over T if t > T.

    [B, T + settle, ...] -> the same shape.
    """
    time = jnp.minimum(jnp.arange(1, self.total_steps + 1), self.steps)
    time = time.reshape(-1, *(1,) * (activity.ndim - 2))
    return jnp.cumsum(activity, 1) / time.astype(activity.dtype)

  def _show(self, image):
    shown = jnp.arange(self.total_steps) < self.steps
    shown = shown.reshape(1, -1, *(1,) * (image.ndim - 1))
    return jnp.where(shown, jnp.expand_dims(image, 1), 0)

  def _fire(self, current, theta, constant):
    rule = Rule(
      self.signed,
      self.negative_threshold,
      self.max_count,
      axis=1,
      steps=self.steps,
      total_steps=self.total_steps,
      constant=constant,
    )
    wide = jnp.promote_types(current.dtype, jnp.float32)
    spikes = simulate(current, jnp.asarray(theta, wide), rule)
    return spikes * jnp.asarray(theta, spikes.dtype)
