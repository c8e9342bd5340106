"""The cores that this process may use."""

import os


def cores() -> int:
  """Their number; a container may allow few of many."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # not on Linux
    return os.cpu_count() or 1
