"""What decodes: the cores that there are, and worker processes."""

import multiprocessing
import os
import shutil
import signal
import threading

from fastsnn_jax.errors import UserError

_SHARED = '/dev/shm'  # where Linux keeps what processes share


def cores() -> int:
  """The cores that this process may use; a container may allow few of many."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # not on Linux
    return os.cpu_count() or 1


def check_room(needed: int) -> None:
  """Worker processes hand over batches in shared memory; is there enough?

  Writing to more than there is kills a process without a word, and containers
  often have 64 MB only.

  Args:
    needed: bytes.

  Raises:
    UserError: less is free.
  """
  if os.path.isdir(_SHARED):
    free = shutil.disk_usage(_SHARED).free
    if free < needed:
      raise UserError(
        f'{_SHARED} has {free / 1e6:.0f} MB free, the batches of the workers '
        f'need {needed / 1e6:.0f} MB; use fewer workers, or none (threads '
        'decode too), or give the container more (docker: --shm-size)'
      )


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
