"""Experiments as plain trees: for checkpoints, and for the report."""

import dataclasses
from typing import Any

from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.config import (
  Compute,
  Conversion,
  Data,
  Experiment,
  Stage,
)


def to_dict(config: Experiment) -> dict[str, Any]:
  """Plain dicts and lists, for JSON."""
  return dataclasses.asdict(config)


def from_dict(tree: dict[str, Any]) -> Experiment:
  """The inverse of `to_dict`."""

  def tuples(part):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}

  try:
    parts = {
      **tree,
      'data': Data(**tuples(tree['data'])),
      'stages': tuple(Stage(**tuples(stage)) for stage in tree['stages']),
      'convert': Conversion(**tuples(tree['convert'])),
      'compute': Compute(**tree.get('compute', {})),
    }
    return Experiment(**parts)
  except (KeyError, TypeError) as error:
    raise UserError(
      f'the experiment in this checkpoint does not fit this version ({error}); '
      'load it with the version that wrote it'
    ) from error


def flat(
  config: Experiment,
  conversion: Conversion,
  imported: dict[str, str] | None = None,
) -> dict[str, Any]:
  """Settings as one level of names, for the report; paths are left out.

  Those of the training too, unless the network was imported from a file.
  """
  tree = {**to_dict(config), 'convert': dataclasses.asdict(conversion)}
  result = {}
  if imported:
    kept = ('model', 'data', 'convert', 'seed')
    tree = {name: tree[name] for name in kept}
    result['imported from'] = imported['file']
  for name, value in tree.items():
    if name == 'stages':
      for stage in value:
        words = [f'{k} {v}' for k, v in stage.items() if k != 'bits']
        result[f'stage {stage["bits"]} bits'] = ', '.join(words)
    elif isinstance(value, dict):
      result |= {
        f'{name}.{k}': v
        for k, v in value.items()
        if k not in ('path', 'data_path')
      }
    else:
      result[name] = value
  return result
