"""Digits in drawn scenes, found by a small detector.

  python train.py --config configs/scenes_detection.py --workdir runs/scenes
  python convert.py --workdir runs/scenes

The scenes are drawn from the embedded digits: there is nothing to download.

Measured (mAP50 on 1,000 test scenes): float 87.57 %, 4 bits 86.17, 3 bits
86.27, 2 bits 80.93; the README has the spiking networks. Training took 14
minutes and the conversion 20, on two cores that did other work besides.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='small_yolo',
  data=fs.Data(
    'scenes',
    batch=32,
    eval_batch=50,
    size=96,
    flip=False,  # a digit in the mirror is none
    jitter=0.25,
    anchors=3,
  ),
  stages=(
    fs.Stage(32, 40, learning_rate=2e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(4, 10, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(3, 10, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(2, 16, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
  ),
  convert=fs.Conversion(tune=('sequential', 'parallel'), tune_images=1280),
  optimizer='adamw',
  decay='kernels',
  warmup=1.0,
)
