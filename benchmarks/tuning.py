"""A step of fine-tuning beside a forward pass of the spiking network."""

import jax

import fastsnn_jax as fs
from benchmarks.inference import forward, images_of, variables_of
from benchmarks.timing import compare, table
from fastsnn_jax.conversion import steps


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
