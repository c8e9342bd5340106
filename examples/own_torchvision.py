"""torchvision's ResNet-18, VGG16-BN and MobileNetV2 as spiking networks.

python examples/own_torchvision.py

Their weights are drawn here, of an eighth of the channels. With torchvision,
real ones are read("resnet18(weights='DEFAULT').state_dict()"), and some hundred
normalised photographs take the place of the random images.
"""

import functools

import jax
import jax.numpy as jnp
from shared.torchvision import drawn, mobilenet_v2, read, resnet18, vgg16_bn

import fastsnn_jax as fs

images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
for network in (resnet18, vgg16_bn, mobilenet_v2):
  settings = {'width': 1 / 8, 'classes': 10}
  params = read(drawn(network, images, **settings))
  function = functools.partial(network, **settings)
  quantised, variables = fs.calibrate(function, params, images, bits=4)
  settled = fs.to_spiking(quantised, 'settled', allow_differences=False)
  wanted, _ = jax.jit(quantised.apply)(variables, images)
  answer, _ = jax.jit(settled.apply)(variables, images)
  floats = jax.jit(function)(params, images)

  def agree(a, b):
    return float(jnp.mean(a.argmax(1) == b.argmax(1)))

  print(
    f'{network.__name__}: {len(quantised.firing)} sites; the same answer for '
    f'{agree(floats, wanted):.2f} of the images float and quantised, for '
    f'{agree(wanted, answer):.2f} quantised and settled'
  )
  assert agree(wanted, answer) > 0.9
