"""COCO 2017 on DeepLabv1 on VGG-9, the official recipe.

  python train.py --config configs/coco_deeplabv1_vgg9.py \\
    --workdir runs/coco_deeplabv1_vgg9 --data.path DIR
  python convert.py --workdir runs/coco_deeplabv1_vgg9

50 epochs at each of 32, 4, 3 and 2 bits, in batches of 32 on crops of 513
pixels, judged at 641.
The official code starts from an ImageNet VGG-9 that was never published; here
from random weights.
Not run here.
"""

import dataclasses

from fastsnn_jax.experiment.recipes import reference

_voc = reference('deeplabv1_vgg9')
config = dataclasses.replace(
  _voc,
  data=dataclasses.replace(_voc.data, name='coco', size=641, sizes=(513,)),
)
