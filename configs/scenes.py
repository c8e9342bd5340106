"""Objects in drawn scenes, with a small detector.

  python train.py --config configs/scenes.py --workdir runs/scenes
  python convert.py --workdir runs/scenes

The scenes are drawn from the embedded digits: nothing to download.
"""

from fastsnn_jax.config import Conversion, Data, Experiment, Stage

config = Experiment(
  model='small_yolo',
  data=Data(
    'scenes', batch=32, eval_batch=50, size=96, crop=0, flip=False, jitter=0.25
  ),
  stages=(
    Stage(32, 30, learning_rate=0.01, weight_decay=5e-4, schedule='cosine'),
    Stage(4, 8, learning_rate=0.004, weight_decay=5e-4, schedule='cosine'),
    Stage(3, 8, learning_rate=0.004, weight_decay=5e-4, schedule='cosine'),
    Stage(2, 12, learning_rate=0.004, weight_decay=5e-4, schedule='cosine'),
  ),
  convert=Conversion(tune=('sequential', 'parallel'), tune_images=1280),
  warmup=1.0,
)
