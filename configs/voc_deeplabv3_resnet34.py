"""PASCAL VOC on DeepLabv3 on ResNet-34, the official recipe.

  python train.py --config configs/voc_deeplabv3_resnet34.py \\
    --workdir runs/voc_deeplabv3_resnet34 --data.path DIR \\
    --pretrained FILE_OF_TORCHVISION
  python convert.py --workdir runs/voc_deeplabv3_resnet34

50 epochs at each of 32, 4, 3 and 2 bits, in batches of 32 on crops of 513
pixels.
The official code starts the heads anew at every stage (--inherit trunk), and at
3 bits on VOC the trunk too, from ImageNet; here a stage takes over all.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('deeplabv3_resnet34')
