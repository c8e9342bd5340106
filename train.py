"""Trains a network at falling precision: 32, then 4, 3 and 2 bits."""

import os
import signal


def stop(number, frame):
  """Ends a command that is still being imported; later `run` does."""
  os.write(2, b'interrupted; give the same command again\n')
  os._exit(128 + number)


if __name__ == '__main__':
  for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, stop)
  from fastsnn_jax.experiment.cli import run, train_command

  run(train_command)
