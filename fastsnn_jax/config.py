"""Where config files written before version 0.2 import the schema from."""

from fastsnn_jax.experiment.config import (
  Compute,
  Conversion,
  Data,
  Experiment,
  Stage,
)

__all__ = ['Compute', 'Conversion', 'Data', 'Experiment', 'Stage']
