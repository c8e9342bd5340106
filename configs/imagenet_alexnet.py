"""ImageNet on AlexNet, the official recipe.

  python train.py --config configs/imagenet_alexnet.py \\
    --workdir runs/imagenet_alexnet --data.path DIR_OF_PREPARED_DATA
  python convert.py --workdir runs/imagenet_alexnet

60 epochs at each of 4, 3 and 2 bits, the first from random weights, in batches
of 1024; keeping the epoch that is best on the validation images as the
official code does.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('imagenet_alexnet')
