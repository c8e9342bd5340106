"""What a step of training, judging or fine-tuning needs, beside the formula.

  python -m benchmarks memory

Temporary memory as the compiled program states it, in units of the formula of
docs/scale.md: training B * N * 4 bytes, with N all neurons of an image; spiking
evaluation B * (T + k) * W * 4 bytes, with W the neurons of the widest layer;
until quiet B * N * 4 bytes; comparing and fine-tuning B * (T + k) * N * 4
bytes. The CPU's compiler merges what remat computes twice, so for that the
arrays that wait for the backward pass are counted.
"""

import functools
import math

import jax

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.conversion import steps
from fastsnn_jax.evaluation import compare, operations
from fastsnn_jax.training.gradients import gradients

MODELS = {'small_resnet14': (28, 28, 1), 'cifar_resnet20': (32, 32, 3)}


def built(model, image, bits=2):
  """A network for images of this shape."""
  half = (0.5,) * image[-1]
  return fs.build(model, bits, mean=half, std=half)


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


def temporary(function, *arguments, **static):
  """Bytes of a function that is jitted here, or before."""
  if not hasattr(function, 'lower'):
    function = jax.jit(function)
  compiled = function.lower(*arguments, **static).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def training(network, image, batch):
  """(bytes of a step, times the formula)."""
  variables, neurons, rows = shapes(network, image, batch)
  step = functools.partial(
    gradients, network=network, task=tasks.for_network(network)
  )
  needed = temporary(step, variables, rows)
  return needed, needed / (4 * batch * sum(neurons))


def twin_of(network, mode):
  """The spiking twin; a settled one runs 8 steps more, row by row."""
  settle = {'settle': 8} if mode == 'settled' else {}
  return fs.to_spiking(network, mode, **settle)


def spiking(network, image, batch, mode):
  """Of the network alone."""
  variables, neurons, rows = shapes(network, image, batch)
  network = twin_of(network, mode)
  needed = temporary(
    lambda tree, x: network.apply(tree, x)[0], variables, rows['image']
  )
  unit = 4 * batch * network.neuron.total_steps * max(neurons)
  return needed, needed / unit


def folded(network, image, batch, mode):
  """Of the network alone, folded as evaluation runs it."""
  shape = (batch, *image)
  variables = network.init(jax.random.key(0), jax.numpy.zeros(shape))
  neurons = shapes(network, image, batch)[1]
  snn, ready = fs.fold(fs.to_spiking(network, mode), variables)
  needed = temporary(
    lambda tree, x: snn.apply(tree, x)[0],
    ready,
    jax.ShapeDtypeStruct(shape, 'float32'),
  )
  count = sum(neurons) if snn.until_quiet else max(neurons)
  steps = 1 if snn.until_quiet else snn.neuron.total_steps
  return needed, needed / (4 * batch * steps * count)


def comparing(network, image, batch, mode):
  """Of `fs.compare`: a spiking twin, beside what the ANN said."""
  variables, neurons, rows = shapes(network, image, batch)
  rows['image'] = jax.ShapeDtypeStruct((batch, *image), 'uint8')
  task = tasks.for_network(network)
  ann = functools.partial(compare._ann, network=network, task=task)
  seen, _ = jax.eval_shape(ann, variables, rows)
  twin = twin_of(network, mode)
  needed = temporary(
    compare._compare,
    variables,
    operations.connections(network, variables, image),
    rows,
    seen,
    network=twin,
    task=task,
  )
  return needed, needed / (4 * batch * twin.neuron.total_steps * sum(neurons))


def tuning(network, image, batch, schedule):
  """Of a step of fine-tuning, the costliest: of the last layer, or of all."""
  variables, neurons, _ = shapes(network, image, batch)
  twin, how = fs.to_spiking(network), fs.Tuning(schedule=schedule)
  layers = twin.firing[1:] if schedule == 'parallel' else twin.firing[-1:]
  moving = {x.name: steps.movable(variables['params'], x) for x in layers}
  needed = temporary(
    steps.tune_chunk,
    variables,
    jax.eval_shape(how.optimizer().init, moving),
    variables,
    jax.ShapeDtypeStruct((batch, *image), 'uint8'),
    jax.ShapeDtypeStruct((2, batch), 'int32'),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),
    ann=network,
    snn=twin,
    task=tasks.for_network(network),
    tuning=how,
    layers=tuple(layers),
  )
  return needed, needed / (4 * batch * twin.neuron.steps * sum(neurons))


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


def tables(quick):
  models = list(MODELS.items())[:1] if quick else MODELS.items()
  for model, image in models:
    network, rows = built(model, image), []

    def add(name, batch, needed, times, rows=rows):
      rows.append([name, batch, round(needed / 1e6, 1), round(times, 2)])

    for batch in (16,) if quick else (16, 64):
      add('training', batch, *training(network, image, batch))
      variables, neurons, given = shapes(network, image, batch)
      for remat in (False, True):
        kept = waiting(network, variables, given, remat)
        name = 'kept for the backward pass' + ', remat' * remat
        add(name, batch, kept, kept / (4 * batch * sum(neurons)))
      for mode in ('signed', 'settled'):
        add(mode, batch, *spiking(network, image, batch, mode))
      for name, mode in (('signed', 'signed'), ('until quiet', 'settled')):
        add(f'{name}, folded', batch, *folded(network, image, batch, mode))
    for mode in () if quick else ('signed', 'settled'):
      add(f'compared: {mode}', 16, *comparing(network, image, 16, mode))
    for schedule in () if quick else ('parallel', 'sequential'):
      name = f'{schedule} fine-tuning'
      add(name, 16, *tuning(network, image, 16, schedule))
    title = f'Memory, {model}, {image[0]} x {image[1]}'
    columns = ['', 'B', 'MB', 'times the formula']
    yield {'title': title, 'columns': columns, 'rows': rows}
