"""COCO 2017 on DeepLabv3 on ResNet-34, the official recipe.

  python train.py --config configs/coco_deeplabv3_resnet34.py \\
    --workdir runs/coco_deeplabv3_resnet34 --data.path DIR \\
    --pretrained FILE_OF_TORCHVISION
  python convert.py --workdir runs/coco_deeplabv3_resnet34

50 epochs at each of 32, 4, 3 and 2 bits, in batches of 32 on crops of 513
pixels, judged at 641.
The official code starts the heads anew at every stage (--inherit trunk), and at
3 bits on VOC the trunk too, from ImageNet; here a stage takes over all.
Not run here.
"""

import dataclasses

from fastsnn_jax.experiment.recipes import reference

_voc = reference('deeplabv3_resnet34')
config = dataclasses.replace(
  _voc,
  data=dataclasses.replace(_voc.data, name='coco', size=641, sizes=(513,)),
)
