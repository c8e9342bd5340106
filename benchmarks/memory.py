"""What a training and a spiking evaluation step need, beside the formula.

  python benchmarks/memory.py

Temporary memory as the compiled program states it, in units of the formula of
docs/scale.md: training B * N * 4 bytes, with N all neurons of an image; spiking
evaluation B * (T + k) * W * 4 bytes, with W the neurons of the widest layer.
The CPU's compiler merges what remat computes twice, so for that the arrays that
wait for the backward pass are counted.
"""

import functools
import math

import jax

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.gradients import gradients

MODELS = {'small_resnet14': (28, 28, 1), 'cifar_resnet20': (32, 32, 3)}


def shapes(network, image, batch):
  """(variables, neurons per layer, a batch), nothing of it computed."""
  images = jax.ShapeDtypeStruct((batch, *image), 'float32')
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  _, activations = jax.eval_shape(network.apply, variables, images)
  neurons = [math.prod(x.shape[1:]) for x in activations.values()]
  rows = {
    'image': images,
    'label': jax.ShapeDtypeStruct((batch,), 'int32'),
    'mask': jax.ShapeDtypeStruct((batch,), 'float32'),
  }
  return variables, neurons, rows


def temporary(function, *arguments):
  compiled = jax.jit(function).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def waiting(network, variables, batch, remat):
  """Bytes of the arrays that the backward pass gets from the forward one."""

  def pull(tree, images):
    def forward(params):
      now = {**tree, 'params': params}
      return network.apply(now, images, train=True, remat=remat)[0]

    return jax.vjp(forward, tree['params'])[1]

  pulled = jax.eval_shape(pull, variables, batch['image'])
  weights = sum(x.size for x in jax.tree.leaves(variables))
  return 4 * (sum(x.size for x in jax.tree.leaves(pulled)) - weights)


def main():
  for model, image in MODELS.items():
    network = fs.build(model, 2)
    print(f'\n{model}, {image[0]} x {image[1]}\n')
    print(
      '| step | B | steps | MB | times the formula |\n|---|--:|--:|--:|--:|'
    )
    for batch in (16, 64):
      variables, neurons, rows = shapes(network, image, batch)
      unit = 4 * batch * sum(neurons)
      step = functools.partial(
        gradients, network=network, task=tasks.for_network(network)
      )
      needed = temporary(step, variables, rows)
      print(
        f'| training | {batch} | | {needed / 1e6:.1f} | {needed / unit:.2f} |'
      )
      for remat in (False, True):
        kept = waiting(network, variables, rows, remat)
        name = 'kept for the backward pass' + ', remat' * remat
        print(f'| {name} | {batch} | | {kept / 1e6:.1f} | {kept / unit:.2f} |')
      for mode in ('signed', 'settled'):
        spiking = fs.to_spiking(network, mode)
        steps = spiking.neuron.total_steps
        unit_now = 4 * batch * steps * max(neurons)
        needed = temporary(
          lambda tree, x, net=spiking: net.apply(tree, x)[0],
          variables,
          rows['image'],
        )
        print(
          f'| {mode} | {batch} | {steps} | {needed / 1e6:.1f} | '
          f'{needed / unit_now:.2f} |'
        )


if __name__ == '__main__':
  main()
