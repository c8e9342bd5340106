"""Fine-tuning: a step beside a forward pass, and the sequential schedule."""

import jax
import numpy as np

import fastsnn_jax as fs
from benchmarks.inference import forward, images_of, variables_of
from benchmarks.timing import compare, table
from fastsnn_jax.conversion import carried, steps


def step(ann, variables, images, schedule):
  """A step as a function of a state that it does not donate."""
  snn = fs.to_spiking(ann)
  layers = snn.firing[1:] if schedule == 'parallel' else snn.firing[-1:]
  tuning = fs.Tuning(schedule, batch=len(images))
  moving = {x.name: steps.movable(variables['params'], x) for x in layers}

  @jax.jit
  def run(tuned, frozen, images):
    return steps.tune_step(
      tuned,
      tuning.optimizer().init(moving),
      frozen,
      images,
      ann=ann,
      snn=snn,
      layers=layers,
      tuning=tuning,
    )

  return run, variables, variables, images


def sequential(ann, variables, images, kept):
  """The whole schedule, with or without what is kept between the layers."""
  snn, raw = fs.to_spiking(ann), {'image': images}
  tuning = fs.Tuning(batch=32, accept='always')

  def run():
    limit = carried.BYTES
    carried.BYTES = limit if kept else 0
    try:
      return fs.finetune(ann, snn, variables, raw, tuning)[0]
    finally:
      carried.BYTES = limit

  return (run,)


def tables(quick):
  model, side, batch = (
    ('small_resnet8', 8, 16) if quick else ('cifar_resnet20', 32, 64)
  )
  images = images_of(side, batch)
  for bits in (2, 3):
    ann = fs.build(model, bits)
    variables = variables_of(ann, images)
    took = compare(
      {
        'signed forward': (forward(fs.to_spiking(ann)), variables, images),
        'sequential, last layer': step(ann, variables, images, 'sequential'),
        'parallel, all layers': step(ann, variables, images, 'parallel'),
      },
      repeats=2 if quick else 7,
    )
    title = f'A step of fine-tuning, {model}, {bits} bits, batch {batch}'
    yield table(title, took, 'signed forward', batch)
  middle = {'mean': (0.5,) * 3, 'std': (0.25,) * 3}
  ann, count = fs.build(model, 2, **middle), 32 if quick else 256
  variables = variables_of(ann, images)
  random = np.random.default_rng(0)
  raw = random.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
  took = compare(
    {
      'kept': sequential(ann, variables, raw, True),
      'run again': sequential(ann, variables, raw, False),
    },
    repeats=2 if quick else 5,
  )
  title = f'Sequential fine-tuning, {model}, 2 bits, {count} images'
  yield table(title, took, 'kept', count)
