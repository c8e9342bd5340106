"""Street scenes with a class for every pixel (CamVid), from scratch.

  python train.py --config configs/camvid.py --workdir runs/camvid \\
    --data.path DIR_IN_VOC_LAYOUT
  python convert.py --workdir runs/camvid

Measured (mIoU on 233 test images): float 46.37 %, 4 bits 46.36, 3 bits 46.94,
2 bits 44.11. On the validation images the float network has 61 %: they are of
a drive that it was trained on. Training took 37 minutes on one CPU core, the
conversion 54.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='medium_deeplab',
  data=fs.Data('camvid', batch=8, eval_batch=8, sizes=(161,), jitter=0.25),
  stages=(
    fs.Stage(32, 100, learning_rate=4e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(4, 20, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(3, 20, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
    fs.Stage(2, 30, learning_rate=1e-3, weight_decay=0.01, schedule='cosine'),
  ),
  convert=fs.Conversion(
    settle=12,
    tune=('sequential', 'parallel'),
    tune_images=120,
    batch_norm='eval',  # its statistics are those of augmented images
  ),
  optimizer='adamw',
  decay='kernels',
  warmup=1.0,
  balance=0.5,
)
