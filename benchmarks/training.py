"""A step of quantisation-aware training beside one of the float network."""

import functools

import jax
import jax.numpy as jnp

import fastsnn_jax as fs
from benchmarks.inference import images_of, variables_of
from benchmarks.timing import compare, table
from fastsnn_jax import tasks
from fastsnn_jax.training import step as training
from fastsnn_jax.training.optimizer import make_optimizer


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


def tables(quick):
  small, large = ('small_resnet8', 8, 16), ('cifar_resnet20', 32, 64)
  model, side, batch = small if quick else large
  images = images_of(side, batch)
  steps = {}
  for bits in (32, 2) if quick else (32, 4, 3, 2):
    network = fs.build(model, bits)
    variables = variables_of(network, images)
    name = 'float' if bits == 32 else f'{bits} bits'
    steps[name] = step(network, variables, images)
  took = compare(steps, repeats=2 if quick else 7)
  title = f'A step of training, {model}, batch {batch}'
  yield table(title, took, 'float', batch)
