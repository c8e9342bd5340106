"""What quantisation and spiking cost beside the plain float network."""

import functools

import jax

import fastsnn_jax as fs
from benchmarks.timing import compare, table

# (model, side of images, batch, bits)
CASES = (
  ('cifar_resnet20', 32, 64, (2, 3, 4)),
  ('cifar_alexnet', 32, 128, (2, 3)),
  ('small_yolo', 64, 16, (2, 3)),
  ('small_deeplab', 65, 16, (2, 3)),
)
QUICK = (('small_resnet8', 8, 16, (2,)),)


def variables_of(network, images):
  """Fresh variables whose batch norms have seen the images."""
  variables = network.init(jax.random.key(0), images)
  train = jax.jit(functools.partial(network.apply, train=True))
  for _ in range(10):
    *_, variables['batch_stats'] = train(variables, images)
  return variables


def forward(network):
  return jax.jit(lambda variables, images: network.apply(variables, images)[0])


def images_of(side, batch):
  return jax.random.normal(jax.random.key(1), (batch, side, side, 3))


def case(model, side, batch, widths):
  """{name: (function, variables, images)}: the float network and its twins."""
  images = images_of(side, batch)
  plain = fs.build(model, 32)
  variables = variables_of(plain, images)
  found = {'float': (forward(plain), variables, images)}
  for bits in widths:
    ann = fs.build(model, bits)
    variables = variables_of(ann, images)
    found[f'{bits} bits: quantised'] = (forward(ann), variables, images)
    for mode in ('signed', 'settled'):
      snn = fs.to_spiking(ann, mode)
      name = f'{bits} bits: {mode}, T = {snn.neuron.steps}'
      if snn.until_quiet:
        name += (
          f', {int(jax.jit(snn.settle)(variables, images).steps.max())} run'
        )
      found[name] = (forward(snn), variables, images)
  return found


def tables(quick):
  for model, side, batch, widths in QUICK if quick else CASES:
    took = compare(case(model, side, batch, widths), repeats=2 if quick else 7)
    title = f'Forward pass, {model}, {side} x {side} pixels, batch {batch}'
    yield table(title, took, 'float', batch)
