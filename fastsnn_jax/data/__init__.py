"""How pictures come in, whatever the task: data sets, splits, batches.

Splits are in `dataset`, those on disk in `stream`, and `Dataset` in `own`;
`named` finds them by name, `readers` has one module for each form of files.
"""

from fastsnn_jax.data.dataset import Arrays, Shuffle, Split
from fastsnn_jax.data.image_ops import (
  color_jitter,
  crop_flip,
  normalize,
  resize,
)
from fastsnn_jax.data.named import load, names, register
from fastsnn_jax.data.own import Dataset, as_dataset, as_split
from fastsnn_jax.data.stream import Stream

__all__ = ['Arrays', 'Dataset', 'Shuffle', 'Split', 'Stream']
__all__ += ['as_dataset', 'as_split', 'load', 'names', 'register']
__all__ += ['color_jitter', 'crop_flip', 'normalize', 'resize']
