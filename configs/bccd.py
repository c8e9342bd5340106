"""Blood cells in microscope images (BCCD), from scratch.

  python train.py --config configs/bccd.py --workdir runs/bccd \\
    --data.path DIR_IN_VOC_LAYOUT
  python convert.py --workdir runs/bccd

Measured (mAP50 on 72 test images): float 86.24 %, 4 bits 85.33, 3 bits 81.60,
2 bits 80.79; the README has the spiking networks. Training took 22 minutes and
the conversion 17, on two cores that did other work besides.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='small_yolo',
  data=fs.Data(
    'bccd', batch=16, eval_batch=24, size=224, jitter=0.25, anchors=5
  ),
  stages=(
    fs.Stage(32, 160, learning_rate=2e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(4, 40, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(3, 40, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(2, 60, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
  ),
  convert=fs.Conversion(settle=12, tune=('sequential', 'parallel')),
  optimizer='adamw',
  decay='kernels',
  warmup=2.0,
)
