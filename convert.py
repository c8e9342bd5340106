"""Turns the quantised networks of a workdir into spiking ones, and reports."""

from fastsnn_command import main

if __name__ == '__main__':
  main('convert')
