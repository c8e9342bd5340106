"""Networks with levels of all kinds, and how exported files are run."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

import fastsnn_jax as fs

THETA = 1.25


def images_of(count, *shape):
  return jax.random.normal(jax.random.key(0), (count, *shape))


def drawn(network, images):
  """Variables under which neurons take all levels: random norms, some of whose
  scales are negative or zero, and statistics of about the right size."""
  variables = network.init(jax.random.key(1), images)
  random = np.random.default_rng(2)

  def row(params, stats):
    for name, part in params.items():
      if isinstance(part, dict) and name != 'norm':
        row(part, stats.get(name, {}))
      elif name == 'theta':
        params[name] = jnp.float32(THETA)
      elif name == 'bias':
        params[name] = jnp.asarray(0.3 * random.normal(size=part.shape), 'f4')
    if 'norm' in params:
      kernel, shape = params['kernel'], params['norm']['scale'].shape
      fan_in = kernel.size / shape[0]
      power = 1 if 'weight_alpha' in params else jnp.mean(kernel**2)
      scale = random.normal(0.8, 0.5, shape)
      scale[0] = 0
      params['norm'] = {
        'scale': jnp.asarray(scale, jnp.float32),
        'bias': jnp.asarray(random.normal(0.4, 0.3, shape), jnp.float32),
      }
      stats['norm'] = {
        'mean': jnp.asarray(random.normal(0, 0.3, shape), jnp.float32),
        'var': jnp.full(shape, 0.5 * fan_in * power, jnp.float32),
      }

  variables = jax.tree.map(lambda x: x, variables)
  for name, params in variables['params'].items():
    row(params, variables['batch_stats'].setdefault(name, {}))
  return variables


def session(path):
  return onnxruntime.InferenceSession(
    str(path), providers=['CPUExecutionProvider']
  )


def answers(runner, **inputs):
  """{output: array} of an onnxruntime session."""
  names = [x.name for x in runner.get_outputs()]
  inputs = {name: np.asarray(x) for name, x in inputs.items()}
  return dict(zip(names, runner.run(None, inputs), strict=True))


def reference(network, variables, images):
  """(output, activations) as evaluation computes them."""
  folded, ready = fs.fold(network, variables)
  return jax.jit(folded.apply)(ready, images)


def level_of(activity, theta, steps):
  return np.round(np.asarray(activity, np.float64) / (float(theta) / steps))


def ties(network, variables, images, activations, levels):
  """(levels that differ at a tie, images of which no level differs).

  An image's first difference has to be a current half-way between two levels,
  but for rounding; all that comes behind it may differ too.
  """
  steps, count = 2**network.neuron.bits - 1, 0
  same, seen = np.ones(len(images), bool), {'image': images, **activations}
  for layer in network.firing:
    theta = variables['params'][layer.name]['theta']
    ours = level_of(activations[layer.name], theta, steps)
    differ = ours != levels[layer.name]
    if (first := differ & same.reshape(-1, *(1,) * (ours.ndim - 1))).any():
      run = network.currents(layer, variables, images)
      current = run(*(seen[name] for name in layer.inputs))
      place = np.asarray(current, np.float64) / float(theta) * steps
      from_tie = np.abs(place - np.floor(place) - 0.5)
      assert from_tie[first].max() < 1e-4, layer.name
      count += first.sum()
    same &= ~differ.reshape(len(images), -1).any(1)
  return count, same


def agrees(network, variables, images, got):
  """All that must hold of a quantised network's export; the ties, in words."""
  output, activations = reference(network, variables, images)
  output = np.asarray(output)
  count, same = ties(network, variables, images, activations, got)
  total = sum(x.size for x in activations.values())
  said = f'{count} ties of {total} levels, {same.sum()} of {len(same)} without'
  assert count <= max(1, total * 1e-5), said
  assert same.any(), said
  scale = np.abs(output).max()
  np.testing.assert_allclose(
    got['output'][same], output[same], rtol=0, atol=1e-5 * scale
  )
  best, ours = got['output'].argmax(-1), output.argmax(-1)
  if output.ndim == 2:  # a class for each image: those with a tie too
    np.testing.assert_array_equal(best, ours)
  np.testing.assert_array_equal(best[same], ours[same])
  return f'{said}; arg-max differs at {(best != ours).sum()} of {best.size}'
