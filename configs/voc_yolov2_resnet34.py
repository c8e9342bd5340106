"""PASCAL VOC on YOLOv2 on ResNet-34, the official recipe.

  python train.py --config configs/voc_yolov2_resnet34.py \\
    --workdir runs/voc_yolov2_resnet34 --data.path DIR \\
    --pretrained FILE_OF_TORCHVISION
  python convert.py --workdir runs/voc_yolov2_resnet34

250 epochs at each of 32, 4, 3 and 2 bits, on sides from 320 to 608, in batches
of 16, judged at 416.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('yolov2_resnet34')
