"""The signed neuron: spikes packed in a word beside spikes stacked as floats.

python benchmarks/neuron.py
"""

import jax
import jax.numpy as jnp
from jax import lax
from timing import compare, show

from fastsnn_jax.nn.neurons import IntegrateAndFire


def stacked(currents, theta):
  """The plain way: a scan over time that stacks theta-scaled spikes."""

  def step(state, current):
    voltage, count = state
    voltage = voltage + current
    fire = voltage >= theta
    voltage = jnp.where(fire, voltage - theta, voltage)
    count = count + fire
    back = (voltage <= -1e-3) & (count > 0)
    voltage = jnp.where(back, voltage + theta, voltage)
    count = count - back
    return (voltage, count), theta * (fire.astype(jnp.float32) - back)

  time_first = jnp.moveaxis(currents, 1, 0)
  start = (jnp.full(time_first.shape[1:], theta / 2), 0 * time_first[0])
  _, spikes = lax.scan(step, start, time_first)
  return jnp.moveaxis(spikes, 0, 1)


def ours(currents, theta):
  neuron = IntegrateAndFire(currents.shape[1])
  return neuron.respond(lambda x: x, (currents,), theta)


def main():
  for steps in (3, 7, 15):
    shape = (8, steps, 32, 32, 64)
    currents = 0.7 * jax.random.normal(jax.random.key(0), shape)
    seconds = compare(
      {
        'stacked': (jax.jit(stacked), currents, 1.0),
        'packed (ours)': (jax.jit(ours), currents, 1.0),
        'copy of the currents': (jax.jit(lambda x: x + 1), currents),
      }
    )
    show(f'8 x 32 x 32 x 64 neurons, T = {steps}', seconds, 'packed (ours)')


if __name__ == '__main__':
  main()
