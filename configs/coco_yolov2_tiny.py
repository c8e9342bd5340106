"""COCO 2017 on YOLOv2 tiny, the official recipe.

  python train.py --config configs/coco_yolov2_tiny.py \\
    --workdir runs/coco_yolov2_tiny --data.path DIR
  python convert.py --workdir runs/coco_yolov2_tiny

250 epochs at each of 32, 4, 3 and 2 bits, on sides from 320 to 608, in batches
of 16, judged at 416.
The official code starts from an ImageNet trunk that was never published; here
from random weights.
The epoch is chosen by mAP50, where the official code takes the mean over IoUs
from 0.5 to 0.95.
Not run here.
"""

import dataclasses

from fastsnn_jax.experiment.recipes import reference

_voc = reference('yolov2_tiny')
config = dataclasses.replace(
  _voc,
  data=dataclasses.replace(_voc.data, name='coco'),
  convert=dataclasses.replace(_voc.convert, coco=True),
)
