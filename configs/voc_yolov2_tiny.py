"""PASCAL VOC on YOLOv2 tiny, the official recipe.

  python train.py --config configs/voc_yolov2_tiny.py \\
    --workdir runs/voc_yolov2_tiny --data.path DIR
  python convert.py --workdir runs/voc_yolov2_tiny

250 epochs at each of 32, 4, 3 and 2 bits, on sides from 320 to 608, in batches
of 16, judged at 416.
The official code starts from an ImageNet trunk that was never published; here
from random weights.
Not run here.
"""

from fastsnn_jax.experiment.recipes import reference

config = reference('yolov2_tiny')
