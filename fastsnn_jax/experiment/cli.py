"""How a command line starts and ends: `python train.py`, `fastsnn …`."""

import argparse
import contextlib
import ctypes
import errno
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import signal
import sys
import threading

import jax
from absl import logging as absl_logging

from fastsnn_jax import distributed
from fastsnn_jax.errors import UserError, printable
from fastsnn_jax.experiment.commands import COMMANDS


def main() -> None:
  """The console script: `fastsnn train …` and the others."""
  usage = (
    f'fastsnn {{{",".join(COMMANDS)}}} …; fastsnn train --help has the options'
  )
  parser = argparse.ArgumentParser('fastsnn', usage)
  parser.add_argument('command', choices=COMMANDS)
  with _ended():
    name = parser.parse_args(sys.argv[1:2]).command
  sys.argv[:2] = [f'fastsnn {name}']
  run(COMMANDS[name])


def run(command) -> None:
  """Runs a command; what the user can mend ends as one line and code 2."""
  with _ended():
    _silence_orbax()
    _reuse_memory()
    distributed.start()
    _cache_compilations()
    command(sys.argv[1:])


@contextlib.contextmanager
def _ended():
  """Turns what ends a command into a line and the code that shells know."""
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:  # closed by the shell; this takes its number
      setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
    with contextlib.suppress(AttributeError):  # a notebook's has no encoding
      getattr(sys, name).reconfigure(errors='backslashreplace')
  try:
    with _signals():
      try:
        yield
      finally:
        sys.stdout.flush()
    return
  except BrokenPipeError:  # `--help | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except UserError as error:
    said = str(error)
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
      raise
    where = error.filename or 'standard output or a file'
    said = f'{where}: {error.strerror}; make room, and give the command again'
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    known = 'RESOURCE_EXHAUSTED'  # the name of XLA's status
    if not isinstance(error, MemoryError) and known not in str(error):
      raise
    said = (str(error) or 'no memory is left').split('\n')[0] + (
      '; take less at a time: smaller --data.batch or --data.eval-batch, '
      '--compute.accumulate N or --compute.remat where it trains, smaller '
      '--eval-batch or --tune-batch where it converts'
    )
  except KeyboardInterrupt as asked:
    sys.stderr.write('interrupted; give the same command again\n')
    sys.stderr.flush()
    # An ordinary end crashed beside XLA's threads at work.
    os._exit(128 + (asked.args or [signal.SIGINT])[0])
  # A name in it may hold what a terminal obeys, or a second line.
  print(f'error: {printable(said)}', file=sys.stderr)
  sys.exit(2)


@contextlib.contextmanager
def _signals():
  """SIGTERM and SIGINT interrupt; `KeyboardInterrupt` knows which it was."""

  def interrupt(number, frame):
    raise KeyboardInterrupt(number)

  names = signal.SIGTERM, signal.SIGINT
  before = {name: signal.signal(name, interrupt) for name in names}
  try:
    yield
  finally:
    for name, handler in before.items():
      signal.signal(name, handler)


def _silence_orbax() -> None:
  """A failed read or write is told once, in one line, by us.

  Orbax logs it with a traceback. And when one part of a tree fails, the others
  still come, into asyncio's closed loop, of which Python would tell.
  """
  absl_logging.set_verbosity(absl_logging.FATAL)
  kinds = RuntimeError, OSError, ValueError  # Orbax's, TensorStore's, asyncio's
  show, threads = sys.unraisablehook, threading.excepthook
  sys.unraisablehook = lambda late: (
    None if isinstance(late.exc_value, kinds) else show(late)
  )
  threading.excepthook = lambda late: (
    None if isinstance(late.exc_value, kinds) else threads(late)
  )
  for name in ('asyncio', 'concurrent.futures'):
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _reuse_memory() -> None:
  """On a CPU, keeps the memory that a step frees for the next one.

  glibc gives large blocks back to the kernel at once, and each step would pay
  for fresh pages: an eighth of ResNet-20's time (benchmarks/training_step.py).
  """
  if importlib.metadata.entry_points(group='jax_plugins') or (
    importlib.util.find_spec('libtpu')
  ):
    return  # one arena would slow the many threads that decode there
  with contextlib.suppress(OSError, AttributeError, TypeError):
    mallopt = ctypes.CDLL(None).mallopt  # glibc alone has it
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):
      mallopt(option, value)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX


def _cache_compilations() -> None:
  """Compiled programs are kept between runs, unless the user set otherwise.

  Not on a CPU: there, jaxlib 0.10.0 was seen to hang while it read one back.
  """
  # Not by the environment: jax, imported with this package, has read it.
  given = jax.config.jax_compilation_cache_dir
  if jax.default_backend() != 'cpu' and not given:
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = str(pathlib.Path(home, 'fastsnn_jax'))
    jax.config.update('jax_compilation_cache_dir', folder)
