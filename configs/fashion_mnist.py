"""Fashion-MNIST on a residual network of 14 layers.

  python train.py --config configs/fashion_mnist.py --workdir runs/fashion \\
    --data.path DIR_OF_IDX_FILES
  python convert.py --workdir runs/fashion

Measured: float 92.50 %, 4 bits 92.26, 3 bits 91.76, 2 bits 90.70; the README
has the spiking networks. The two commands took 28 minutes each on two cores
that did other work besides.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='small_resnet14',
  data=fs.Data('fashion_mnist', batch=128, crop=2, flip=True),
  stages=(
    fs.Stage(32, epochs=16, learning_rate=0.1, schedule='cosine'),
    fs.Stage(4, epochs=8, learning_rate=0.04, schedule='cosine'),
    fs.Stage(3, epochs=8, learning_rate=0.04, schedule='cosine'),
    fs.Stage(2, epochs=12, learning_rate=0.04, schedule='cosine'),
  ),
  convert=fs.Conversion(tune=('sequential', 'parallel'), tune_images=5120),
)
