"""Random numbers for streams: fixed by the seed for good, wherever drawn.

NumPy promises that the raw stream of a bit generator stays; not so what its
`Generator` makes of it.
"""

import functools
import threading

import numpy as np

_lock = threading.Lock()


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of the examples in an epoch.

  Returns:
    int64 [size], each of 0 … size - 1 once. It is shared: do not write to it.

  >>> sorted(permutation(0, 1, 3).tolist())
  [0, 1, 2]
  """
  with _lock:  # else every thread would work it out as an epoch begins
    return _permutation(seed, epoch, size)


@functools.lru_cache(maxsize=4)
def _permutation(seed, epoch, size):
  return np.argsort(_stream(seed, 0, epoch).random_raw(size), kind='stable')


class Draws:
  """Uniform numbers for one example, four at each call.

  Args:
    seed: 0 or more.
    number: of the example, counted through all epochs.

  >>> draws = Draws(0, 7)
  >>> len(draws()), 0 <= min(draws()) <= max(draws()) < 1
  (4, True)
  """

  def __init__(self, seed: int, number: int):
    self._stream = _stream(seed, 1, number)

  def __call__(self) -> list[float]:
    return ((self._stream.random_raw(4) >> 11) * 2.0**-53).tolist()


def _stream(seed, *key):
  return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))
