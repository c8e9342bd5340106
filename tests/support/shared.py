"""The repository, and the folder of golden vectors, data and checkpoints."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def shared_folder() -> pathlib.Path:
  """Golden vectors, data sets and checkpoints, beside the repository."""
  beside = ROOT.parent / 'shared'
  return pathlib.Path(os.environ.get('FASTSNN_SHARED') or beside)


def find_shared(*parts: str) -> pathlib.Path:
  """A path in the shared folder; skips the test where there is none.

  Under CI a folder that is there has to be whole: a missing item fails.
  """
  folder = shared_folder()
  path = folder.joinpath(*parts)
  if not path.exists():
    message = f'{path} is missing; FASTSNN_SHARED names the shared folder'
    if os.environ.get('CI') and folder.is_dir():
      pytest.fail(message)
    pytest.skip(message)
  return path
