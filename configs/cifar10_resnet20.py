"""CIFAR-10 on ResNet-20, a short recipe.

  python train.py --config configs/cifar10_resnet20.py \\
    --workdir runs/cifar10 --data.path DIR_OF_PREPARED_DATA
  python convert.py --workdir runs/cifar10

Measured on the JPEG copies: float 83.78 %, 4 bits 83.59, 3 bits 82.63, 2 bits
80.40; the README has the spiking networks. Training took 94 minutes on two
cores that did other work besides. The paper's 300 epochs a stage are
configs/cifar10_resnet20_paper.py.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='cifar_resnet20',
  data=fs.Data('cifar10', batch=128),
  stages=(
    fs.Stage(
      32, epochs=14, learning_rate=0.1, weight_decay=5e-4, schedule='cosine'
    ),
    fs.Stage(4, epochs=6, learning_rate=0.04, schedule='cosine'),
    fs.Stage(3, epochs=5, learning_rate=0.04, schedule='cosine'),
    fs.Stage(2, epochs=7, learning_rate=0.04, schedule='cosine'),
  ),
  convert=fs.Conversion(tune=('sequential', 'parallel'), tune_images=1280),
)
