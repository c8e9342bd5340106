"""Trains a network at falling precision: 32, then 4, 3 and 2 bits."""

from fastsnn_command import main

if __name__ == '__main__':
  main('train')
