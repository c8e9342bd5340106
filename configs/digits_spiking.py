"""A spiking network trained directly, from scratch, on 8 x 8 digits.

  python train.py --config configs/digits_spiking.py --workdir runs/direct

prints the accuracy of the signed network of three steps on the test images:
90.83 %, after half a minute on two cores.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='small_resnet8',
  data=fs.Data('digits', batch=16, eval_batch=120, crop=1, flip=False),
  stages=(
    fs.Stage(2, epochs=5, learning_rate=0.003, schedule='cosine', spiking=True),
  ),
  optimizer='adamw',
)
