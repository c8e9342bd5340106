"""CIFAR-10 on AlexNet, the official recipe.

  python train.py --config configs/cifar10_alexnet.py \\
    --workdir runs/cifar10_alexnet --data.path DIR_OF_PREPARED_DATA
  python convert.py --workdir runs/cifar10_alexnet

300 epochs at each of 32, 4, 3 and 2 bits, keeping the epoch that is best on
the test images as the official code does; put recommended in place of reference
to keep one by held-out images.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('cifar_alexnet')
