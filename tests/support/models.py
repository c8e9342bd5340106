"""Models that are registered for the time of a test."""

import contextlib

from fastsnn_jax import architectures


@contextlib.contextmanager
def registered(name, table, **settings):
  """As `register`; afterwards the name stands for nothing again."""
  architectures.register(name, table, **settings)
  try:
    yield
  finally:
    del architectures._MODELS[name]
