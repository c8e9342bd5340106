"""Turns the quantised networks of a workdir into spiking ones, and reports."""

from fastsnn_jax.experiment.cli import convert_command, run

if __name__ == '__main__':
  run(convert_command)
