"""The same neurons in other libraries, where they are installed.

Each is first shown to give the spikes of `fs.integrate_and_fire`, then timed.
Currents are (T, B, ...), thetas 1, voltages start at 1/2.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

import fastsnn_jax as fs

SIGNED = {}
UNSIGNED = {'signed': False}


def settled(currents):
  """The rule of ST-BIF: a cap of T spikes, and a threshold of 0 below."""
  return {'negative_threshold': 0.0, 'max_count': len(currents)}


def torch_rule(currents):
  """The signed rule by its equations, as PyTorch users would write it."""
  import torch

  voltage = torch.full_like(currents[0], 0.5)
  count = torch.zeros_like(voltage)
  spikes = []
  for current in currents:
    voltage = voltage + current
    fire = (voltage >= 1).to(voltage.dtype)
    voltage, count = voltage - fire, count + fire
    back = ((voltage <= -1e-3) & (count > 0)).to(voltage.dtype)
    voltage, count = voltage + back, count - back
    spikes.append(fire - back)
  return torch.stack(spikes)


def torch_compiled():
  import torch

  return torch.compile(torch_rule)


def spikingjelly_if(currents):
  import torch
  from spikingjelly.activation_based import neuron

  node = neuron.IFNode(1.0, v_reset=None, step_mode='m')
  node.v = torch.full_like(currents[0], 0.5)
  return node(currents)


def spikingjelly_stbif(currents):
  import torch
  from spikingjelly.activation_based import neuron

  steps = len(currents)
  return neuron.STBIFNode(torch.tensor(1.0), steps + 1, False, step_mode='m')(
    currents
  )


def snntorch_leaky(currents):
  """It fires above the threshold, not at it."""
  import snntorch
  import torch

  node = snntorch.Leaky(1.0, threshold=1.0)
  voltage, spikes = torch.full_like(currents[0], 0.5), []
  for current in currents:
    spike, voltage = node(current, voltage)
    spikes.append(spike)
  return torch.stack(spikes)


def spyx_if(currents):
  """It fires a step late: a step more, and the first is left out."""
  import spyx.nn

  node = spyx.nn.IF(currents.shape[2:])
  more = jnp.concatenate([currents, jnp.zeros_like(currents[:1])])
  start = jnp.full(currents.shape[1:], 0.5)
  return spyx.nn.run(node, more, start)[0][1:]


def peers(currents):
  """{name: (function, currents)} of those that are here and right."""
  known = {
    'PyTorch, the signed rule': ('torch', lambda: torch_rule, SIGNED),
    'torch.compile of it': ('torch', torch_compiled, SIGNED),
    'SpikingJelly IFNode': ('spikingjelly', lambda: spikingjelly_if, UNSIGNED),
    'SpikingJelly STBIFNode': (
      'spikingjelly',
      lambda: spikingjelly_stbif,
      settled(currents),
    ),
    'snnTorch Leaky': ('snntorch', lambda: snntorch_leaky, UNSIGNED),
    'Spyx IF': ('spyx', lambda: jax.jit(spyx_if), UNSIGNED),
  }
  found = {}
  for name, (package, make, rule) in known.items():
    if importlib.util.find_spec(package) is None:
      continue
    given = currents
    function = make()
    if package != 'spyx':
      import torch

      given = torch.tensor(np.asarray(currents))
      function = functools.partial(_without_gradient, function)
    spikes = np.asarray(function(given))
    expected = np.asarray(fs.integrate_and_fire(currents, 1.0, **rule))
    if (differing := (spikes != expected).mean()) > 1e-5:
      raise SystemExit(
        f'{name}: {differing:.2%} of the spikes are not those of '
        f'fs.integrate_and_fire with {rule}'
      )
    found[name] = function, given
  return found


def _without_gradient(function, currents):
  import torch

  with torch.inference_mode():
    return function(currents)
