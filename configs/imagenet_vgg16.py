"""ImageNet on VGG16, the official recipe.

  python train.py --config configs/imagenet_vgg16.py \\
    --workdir runs/imagenet_vgg16 --data.path DIR_OF_PREPARED_DATA
  python convert.py --workdir runs/imagenet_vgg16

60 epochs at each of 4, 3 and 2 bits, the first from random weights, in batches
of 1024; keeping the epoch that is best on the validation images as the
official code does. The scripts document no options for VGG16; these are those
of AlexNet.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('imagenet_vgg16')
