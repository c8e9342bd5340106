"""A tiny problem, and the ways to train on it."""

import contextlib
import dataclasses
import functools
import itertools
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import fastsnn_jax as fs
from fastsnn_jax import distributed, tasks
from fastsnn_jax.conversion import carried, runs, steps
from fastsnn_jax.data import Shuffle, as_split
from fastsnn_jax.evaluation import compare, evaluate
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.weights import Apot, EightBit
from fastsnn_jax.training import loop
from fastsnn_jax.training.log import Log
from fastsnn_jax.training.step import make_step

CLASSES, IMAGES = 4, 50
IDENTITY = {'seed': 0}


def tiny(bits=2, features=4):
  """Two firing layers for images of 4 x 4: compiles in a second."""
  weights = None if bits == 32 else Apot(bits)
  layers = (
    fs.Layer('stem', Conv(features, weights=EightBit())),
    fs.Layer('body', Conv(features, weights=weights, stride=2), ('stem',)),
    fs.Layer('out', Dense(CLASSES, norm=False), ('body',)),
  )
  neuron = fs.Relu() if bits == 32 else fs.QuantRelu(bits)
  names = tuple(map(str, range(CLASSES)))
  return fs.Network(
    layers, neuron, bits=bits, classes=names, mean=(0.5,), std=(0.25,)
  )


@functools.cache
def initial(bits=2):
  return tiny(bits).init(jax.random.key(7), jnp.zeros((1, 4, 4, 1)))


def drawn_data(seed=0):
  """Images whose class is the quadrant that is bright, in noise."""
  random = np.random.default_rng(seed)
  label = random.integers(0, CLASSES, IMAGES).astype(np.int32)
  image = random.integers(0, 120, (IMAGES, 4, 4, 1)).astype(np.uint8)
  for picture, quadrant in zip(image, label, strict=True):
    top, left = 2 * (quadrant // 2), 2 * (quadrant % 2)
    picture[top : top + 2, left : left + 2] += 120
  return {'image': image, 'label': label}


def experiment(**changes):
  """An experiment of one stage; each setting goes where it belongs."""
  settings = {
    'batch': 8,
    'crop': 1,
    'bits': 2,
    'epochs': 3,
    'learning_rate': 0.05,
    'schedule': 'cosine',
    'save_minutes': 1e9,
    **changes,
  }

  def take(kind):
    names = {field.name for field in dataclasses.fields(kind)} & set(settings)
    return kind(**{name: settings.pop(name) for name in names})

  data, stage, compute = take(fs.Data), take(fs.Stage), take(fs.Compute)
  return fs.Experiment(data=data, stages=(stage,), compute=compute, **settings)


@contextlib.contextmanager
def devices(count):
  """Everything inside runs on so many of the devices."""
  mesh = jax.make_mesh(
    (count,),
    (distributed.AXIS,),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )
  with mock.patch.object(distributed, 'mesh', return_value=mesh):
    _forget_programs_of_other(mesh)
    yield mesh
  _forget_programs_of_other(distributed.mesh())


@functools.lru_cache(maxsize=1)
def _forget_programs_of_other(mesh):
  del mesh
  # They were traced for another mesh.
  for function in (
    *(steps.tune_chunk, steps.tune_row, steps.draw_all, runs._distance),
    *(carried._levels, carried._spikes, evaluate._measure, compare._compare),
  ):
    function.clear_cache()


@functools.cache
def _step(network, task, config, stage, epoch_steps, mesh, wide):
  del mesh, wide  # programs of their own
  return make_step(network, task, config, stage, epoch_steps)


def compiled_once(network, task, config, stage, epoch_steps):
  """`make_step`, with the program of an equal call before."""
  return _step(
    network,
    task,
    config,
    stage,
    epoch_steps,
    distributed.mesh(),
    jax.config.jax_enable_x64,
  )


def train_steps(
  network, variables, config, count, *, task=None, data=None, state=None
):
  """So many steps from a state on: (the state behind, what each reported)."""
  split, size = as_split(data or drawn_data()), config.data.batch
  step = compiled_once(
    network,
    task or tasks.for_network(network),
    config,
    config.stages[0],
    split.steps(size),
  )
  if state is None:
    state = step.start(variables, split.shapes(size))
  shuffle = Shuffle(3)
  state, key = distributed.everywhere((state, shuffle.draw_key))
  batches = split.batches(size, shuffle=shuffle, start=int(state.step))
  reports = []
  for batch in itertools.islice(batches, count):
    state, report = step.advance(state, distributed.by_row(batch), key, None)
    reports.append(report)
  return state, reports


def run_stage(
  directory,
  config=None,
  *,
  network=None,
  variables=None,
  task=None,
  data=None,
  score=lambda variables, epoch: {'accuracy': 0.5, 'score': epoch},
  asked=lambda: None,
  trace=None,
  identity=IDENTITY,
):
  """`loop.run_stage` on the tiny problem; (best variables, score)."""
  config = config or experiment()
  network = network or tiny()
  with (
    contextlib.closing(Log(directory)) as log,
    mock.patch.object(loop, 'make_step', compiled_once),
  ):
    return loop.run_stage(
      network,
      initial() if variables is None else variables,
      task or tasks.for_network(network),
      as_split(data or drawn_data()),
      config,
      config.stages[0],
      score=score,
      session=loop.Session(directory, log, asked, trace),
      identity=identity,
    )


def after(looks, number=signal.SIGTERM):
  """`asked` that says so from the given look on."""
  count = itertools.count()
  return lambda: number if next(count) >= looks else None


def epochs_of(directory):
  """(epoch, step) of each row of the log."""
  return [(row['epoch'], row['step']) for row in Log(directory).rows()]


def assert_equal_bits(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_close(ours, theirs, rtol, atol):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
    jax.device_get(ours),
    jax.device_get(theirs),
  )
