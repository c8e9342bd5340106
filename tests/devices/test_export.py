"""What runs on a TPU or GPU is lowered for them here, where there is none."""

import functools
import re

import jax
import pytest
from support.training import devices, experiment

import fastsnn_jax as fs
from fastsnn_jax import architectures, tasks
from fastsnn_jax.conversion import steps
from fastsnn_jax.conversion.tuning import Tuning
from fastsnn_jax.evaluation import evaluate as evaluation
from fastsnn_jax.training.step import make_step

pytestmark = pytest.mark.once

BATCH = 8
SIDES = {'detection': 64, 'segmentation': 65}
PLATFORMS = ('tpu', 'cuda')
NETWORKS = [  # one of each family; all layers of a family are of few kinds
  'small_resnet8',
  'small_yolo',
  'small_deeplab',
  *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
      'cifar_alexnet',
      'cifar_vgg11',
      'cifar_resnet20',
      'cifar_resnet18',
      'imagenet_alexnet',
      'imagenet_vgg16',
      'yolov2_tiny',
      'yolov2_resnet34',
      'deeplabv1_vgg9',
      'deeplabv3_resnet34',
    )
  ),
]
networks = pytest.mark.parametrize('name', NETWORKS)


def shape(dimensions, dtype='float32'):
  return jax.ShapeDtypeStruct(dimensions, dtype)


@functools.cache
def case(name, bits=2):
  """A network and the shapes of its variables and of a batch."""
  network = fs.build(name, bits, mean=(0.5,) * 3, std=(0.25,) * 3)
  side = SIDES.get(network.task, architectures.model(name).size)
  side = 8 if name == 'small_resnet8' else side
  images = shape((BATCH, side, side, 3), 'uint8')
  variables = jax.eval_shape(network.init, the_key(), images)
  labels = {
    'classification': {'label': ()},
    'detection': {'label': (5,), 'boxes': (5, 4)},
    'segmentation': {'label': (side, side)},
  }[network.task]
  batch = {
    name: shape((BATCH, *of_one), 'float32' if name == 'boxes' else 'int32')
    for name, of_one in labels.items()
  }
  batch |= {'image': images, 'mask': shape((BATCH,))}
  return network, variables, batch


def the_key():
  return jax.eval_shape(lambda: jax.random.key(0))


def lowered(function, *arguments, **static):
  """The text of the programs for the other platforms, looked through."""
  texts = []
  for platform in PLATFORMS:
    export = jax.export.export(function, platforms=[platform])
    text = export(*arguments, **static).mlir_module()
    assert 'stablehlo.convolution' in text
    assert not re.search(r'\bf64\b|xf64>', text)
    assert not re.search(r'custom_call @\S*callback', text)
    assert not re.search(r'stablehlo\.(infeed|outfeed|send|recv)\b', text)
    texts.append(text)
  return '\n'.join(texts)


def operands(text):
  """Element types that each convolution takes."""
  found = []
  for line in text.splitlines():
    if 'stablehlo.convolution' in line:
      (types,) = re.findall(r': \((.*?)\) ->', line)
      found.append(tuple(re.findall(r'x([a-z]\w*)>', types)))
  return found


def training_step(name, bits=2, on=1, **settings):
  network, variables, batch = case(name, bits)
  settings = {'batch': BATCH, 'jitter': 0.4, 'crop': 4, **settings}
  config = experiment(**settings)
  with devices(on):
    step = make_step(
      network, tasks.for_network(network), config, config.stages[0], 10
    )
    state = jax.eval_shape(lambda v: step.start(v, batch), variables)
    return lowered(step.advance, state, batch, the_key())


@networks
def test_the_training_step_lowers(name):
  assert set(operands(training_step(name))) == {('f32', 'f32')}


@networks
def test_in_bfloat16_every_convolution_of_training_takes_it(name):
  found = operands(training_step(name, dtype='bfloat16'))
  layers = [
    x for x in jax.tree.leaves(case(name)[1]['params']) if len(x.shape) == 4
  ]
  # Forward, and the two gradients of all but the first, which needs one.
  assert len(found) >= len(PLATFORMS) * (3 * len(layers) - 1)
  assert set(found) == {('bf16', 'bf16')}


@pytest.mark.parametrize(
  'settings',
  [
    {'accumulate': 2, 'remat': True, 'ema': 0.99, 'dtype': 'bfloat16'},
    {'optimizer': 'adamw', 'warmup': 0.5, 'schedule': 'cosine'},
    {'on': 8},
    {'on': 8, 'batch_stats': 'device'},
    {'bits': 32},
  ],
  ids=str,
)
def test_the_training_step_lowers_with_its_options(settings):
  training_step('small_resnet8', **settings)


@networks
def test_evaluation_lowers(name):
  network, variables, batch = case(name)
  for mode in (None, 'signed', 'settled'):
    judged = network if mode is None else fs.to_spiking(network, mode)
    lowered(
      evaluation._measure,
      variables,
      batch,
      network=judged,
      task=tasks.for_network(network),
    )
    found = {
      dtype: operands(
        lowered(
          jax.jit(judged.apply), variables, shape(batch['image'].shape, dtype)
        )
      )
      for dtype in ('float32', 'bfloat16')
    }
    narrow, full = ('bf16', 'bf16'), ('f32', 'f32')
    assert set(found['bfloat16']) == {narrow}
    # Only the image is no whole number; 8-bit read-outs are dense.
    assert set(found['float32']) == {narrow, full}
    assert found['float32'].count(full) == len(PLATFORMS)


@networks
@pytest.mark.parametrize('schedule', ['sequential', 'parallel'])
def test_the_fine_tuning_step_lowers(name, schedule):
  network, variables, batch = case(name)
  spiking = fs.to_spiking(network)
  layers = network.firing[1:]
  layers = layers if schedule == 'parallel' else layers[-1:]
  tuning = Tuning(schedule=schedule, batch=BATCH)
  moving = {
    layer.name: steps.movable(variables['params'], layer) for layer in layers
  }
  with devices(1):
    lowered(
      steps.tune_chunk,
      variables,
      jax.eval_shape(tuning.optimizer().init, moving),
      variables,
      shape((50, *batch['image'].shape[1:]), 'uint8'),
      shape((2, BATCH), 'int32'),
      jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),
      ann=network,
      snn=spiking,
      task=tasks.for_network(network),
      tuning=tuning,
      layers=layers,
    )


def test_what_is_looked_for_would_be_found():
  def calls_back(x):
    x = jax.pure_callback(lambda x: 2 * x, x, x)
    return jax.lax.conv(x, x, (1, 1), 'SAME')

  # JAX itself refuses to lower a callback into this process for another.
  with pytest.raises((AssertionError, ValueError)):
    lowered(jax.jit(calls_back), shape((2, 2, 2, 2)))
  wide = jax.jit(lambda x: jax.lax.conv(x, x, (1, 1), 'SAME'))
  with jax.enable_x64(True), pytest.raises(AssertionError):
    lowered(wide, shape((2, 2, 2, 2), 'float64'))
