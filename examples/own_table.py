"""A network as a table of layers by hand, and its lossless spiking twin.

python examples/own_table.py
"""

import jax
import numpy as np

import fastsnn_jax as fs

BITS = 3

weights, ends = fs.Apot(BITS), fs.EightBit()
shortcut = fs.Conv(16, kernel=1, stride=2, padding=0, weights=weights)
head = fs.Dense(3, norm=False, weights=ends)
network = fs.Network(
  layers=(
    # A name, what makes the current, and the layers whose activities go in.
    fs.Layer('stem', fs.Conv(8, weights=ends)),
    fs.Layer('down', fs.Conv(16, stride=2, weights=weights), ('stem',)),
    fs.Layer(
      'sum',
      fs.Residual(fs.Conv(16, weights=weights), shortcut),
      ('down', 'stem'),
    ),
    fs.Layer('head', fs.Chain((fs.GlobalAveragePool(), head)), ('sum',)),
  ),
  neuron=fs.QuantRelu(BITS, initial_theta=2.0),
  bits=BITS,
  classes=('cat', 'dog', 'bird'),
)
images = jax.random.normal(jax.random.key(0), (64, 16, 16, 3))
variables = network.init(jax.random.key(1), images)
expected, _ = jax.jit(network.apply)(variables, images)

# Another neuron, the same variables: T = 2**3 - 1 = 7 steps with input, and in
# settled mode steps without, until nothing fires.
twins = {
  'unsigned': fs.to_spiking(network, 'unsigned'),
  'signed': fs.to_spiking(network, 'signed'),
  'settled': fs.to_spiking(network, 'settled'),
}
for mode, spiking in twins.items():
  logits, _ = jax.jit(spiking.apply)(variables, images)
  distance = float(np.abs(logits - expected).max())
  print(f'{mode}: logits differ by {distance:.1e} at most')
assert distance < 1e-5, 'settled should be equal to the quantised network'
