"""PASCAL VOC on DeepLabv1 on VGG-9, the official recipe.

  python train.py --config configs/voc_deeplabv1_vgg9.py \\
    --workdir runs/voc_deeplabv1_vgg9 --data.path DIR
  python convert.py --workdir runs/voc_deeplabv1_vgg9

50 epochs at each of 32, 4, 3 and 2 bits, in batches of 32 on crops of 513
pixels.
The official code starts from an ImageNet VGG-9 that was never published; here
from random weights.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('deeplabv1_vgg9')
