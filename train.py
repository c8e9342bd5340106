"""Trains a network at falling precision: 32, then 4, 3 and 2 bits."""

from fastsnn_jax.experiment.cli import run, train_command

if __name__ == '__main__':
  run(train_command)
