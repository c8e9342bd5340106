"""Where config files written before version 0.2 import recipes from."""

from fastsnn_jax.experiment.recipes import recommended, reference

__all__ = ['recommended', 'reference']
