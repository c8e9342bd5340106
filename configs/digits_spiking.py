"""A spiking network trained directly, from scratch, on 8 x 8 digits.

  python train.py --config configs/digits_spiking.py --workdir runs/direct

prints the accuracy of the signed network of three steps on the test images:
99.17 %, after half a minute on two cores. Random crops, which move a digit of 8
pixels by a whole one, need more epochs: 93.06 % with --data.crop 1.
"""

import fastsnn_jax as fs

config = fs.Experiment(
  model='small_resnet8',
  data=fs.Data('digits', batch=16, eval_batch=120, crop=0, flip=False),
  stages=(
    fs.Stage(2, epochs=5, learning_rate=0.01, schedule='cosine', spiking=True),
  ),
  optimizer='adamw',
)
