"""What decodes: the cores that there are, and worker processes."""

import multiprocessing
import os
import signal
import threading


def cores() -> int:
  """The cores that this process may use; a container may allow few of many."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # not on Linux
    return os.cpu_count() or 1


def start_worker(index: int, count: int) -> None:
  """Runs first in each worker process of grain's."""
  del index, count
  # A signal to the whole job is the training's affair, which saves first and
  # then tells the workers to stop.
  for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, signal.SIG_IGN)
  # Killed, it tells nobody; workers would wait for it for ever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)
