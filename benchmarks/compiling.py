"""How long XLA compiles a network: seconds, not of calls."""

import time

import jax

import fastsnn_jax as fs
from benchmarks.inference import forward, images_of


def tables(quick):
  model, side, batch = (
    ('small_resnet8', 8, 16) if quick else ('cifar_resnet20', 32, 64)
  )
  images = images_of(side, batch)
  rows, unit = [], None
  for bits in (32, 2) if quick else (32, 2, 3, 4):
    network = fs.build(model, bits)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    networks = {'float' if bits == 32 else f'{bits} bits: quantised': network}
    if bits != 32:
      for mode in ('signed', 'settled'):
        networks[f'{bits} bits: {mode}'] = fs.to_spiking(network, mode)
    for name, judged in networks.items():
      lowered = forward(judged).lower(variables, images)
      start = time.perf_counter()
      lowered.compile()
      took = time.perf_counter() - start
      unit = unit or took
      rows.append([name, round(took, 2), round(took / unit, 2)])
  title = f'Compile time, {model}, batch {batch}'
  yield {'title': title, 'columns': ['', 's', 'times float'], 'rows': rows}
