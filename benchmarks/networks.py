"""What quantisation and spiking cost beside the plain float network.

python benchmarks/networks.py [--model cifar_resnet20] [--batch 64]
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from timing import compare, show

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.training import step as training
from fastsnn_jax.training.optimizer import make_optimizer


def variables_of(network, images):
  """Fresh variables whose batch norms have seen the images."""
  variables = network.init(jax.random.key(0), images)
  train = jax.jit(functools.partial(network.apply, train=True))
  for _ in range(10):
    *_, variables['batch_stats'] = train(variables, images)
  return variables


def forward(network):
  return jax.jit(lambda variables, images: network.apply(variables, images)[0])


def step(network, variables, images):
  """A training step as a function of a state that it does not donate."""
  stage = fs.Stage(network.bits, epochs=1)
  optimizer = make_optimizer(fs.Experiment(), stage, epoch_steps=1)
  sums = dict.fromkeys(('correct', 'count', 'loss'), jnp.float32(0))
  state = training.create(variables, optimizer, sums)
  batch = {
    'image': images,
    'label': jnp.zeros(len(images), jnp.int32),
    'mask': jnp.ones(len(images)),
  }
  take = functools.partial(
    training.train_step,
    network=network,
    task=tasks.for_network(network),
    optimizer=optimizer,
  )
  return jax.jit(take), state, batch


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  models = [x for x in fs.models() if 'yolo' not in x and 'lab' not in x]
  parser.add_argument('--model', default='cifar_resnet20', choices=models)
  parser.add_argument('--batch', type=int, default=64)
  args = parser.parse_args()
  shape = (args.batch, 32, 32, 3)
  images = jax.random.normal(jax.random.key(1), shape)
  plain = fs.build(args.model, 32)
  floating = variables_of(plain, images)
  inference = {'float ANN': (forward(plain), floating, images)}
  steps = {'float ANN': step(plain, floating, images)}
  for bits in (2, 3, 4):
    ann = fs.build(args.model, bits)
    variables = variables_of(ann, images)
    name = f'{bits} bits'
    inference[f'{name}: ANN'] = (forward(ann), variables, images)
    for mode in ('signed', 'settled'):
      snn = fs.to_spiking(ann, mode)
      label = f'{name}: {mode}, {snn.neuron.total_steps} steps'
      inference[label] = (forward(snn), variables, images)
    steps[f'{name}: QAT'] = step(ann, variables, images)
  title = f'{args.model}, batch {args.batch}'
  show(f'Forward pass, {title}', compare(inference, 5), 'float ANN')
  show(f'Training step, {title}', compare(steps, 5), 'float ANN')


if __name__ == '__main__':
  main()
