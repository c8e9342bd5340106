"""One command at a time works in a workdir."""

import contextlib
import errno
import os
import pathlib
import re
import socket
from collections.abc import Iterator

from fastsnn_jax import distributed
from fastsnn_jax.errors import UserError

try:
  import fcntl
except ImportError:  # no POSIX: the name of the process in the lock has to do
  fcntl = None

_NO_FLOCK = errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Makes a workdir and keeps it from other commands until it is left.

  The first process of a launch holds WORKDIR/lock by `flock`, which ends with
  the process however that ends; so a lock that a kill left is none. Where the
  file system has no `flock`, the process that the file names has to be dead, on
  this host. UserError, in all processes of a launch, where another one works.
  """
  path, file, problem = workdir / 'lock', None, None
  try:
    if distributed.first():
      workdir.mkdir(parents=True, exist_ok=True)
      file = _lock(path)
  except UserError as error:
    problem = error
  except OSError as error:
    problem = UserError(
      f'--workdir {workdir}: it cannot be written to ({error.strerror}); make '
      'room, or name a directory that can be written to'
    )
  try:
    if distributed.any_of(problem is not None):
      raise problem or UserError(f'--workdir {workdir}: see the first process')
    yield
    if file is not None and not _is_at(path, file):
      raise UserError(
        f'--workdir {workdir}: it was removed or replaced while this command '
        'worked there, and what it wrote is lost; give the command again'
      )
  finally:
    if file is not None:
      with contextlib.suppress(OSError):
        if _is_at(path, file):
          path.unlink()  # before it is let go: nobody else has it
      os.close(file)


def _lock(path):
  """A descriptor of the file, which no other process has locked."""
  flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
  for _ in range(100):
    try:
      file, new = os.open(path, flags | os.O_EXCL, 0o644), True
    except FileExistsError:
      file, new = os.open(path, flags, 0o644), False
    try:
      held = os.read(file, 300).decode(errors='replace').strip()
      if held and not re.fullmatch(r'\d+ on .+', held):
        raise UserError(f'{path}: a file of another kind; give it another name')
      if not _take(file, held, new):
        who = f'process {held}' if held else 'another process'
        raise UserError(
          f'--workdir {path.parent}: {who} works there; wait for its end or '
          f'give another one ({path} can be removed where no process works)'
        )
      # Its last holder may have removed it since it was opened.
      if _is_at(path, file):
        os.ftruncate(file, 0)
        me = f'{os.getpid()} on {socket.gethostname()}\n'
        os.pwrite(file, me.encode(), 0)
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)
  raise UserError(f'--workdir {path.parent}: {path.name} changes all the time')


def _is_at(path, file):
  """Whether an open file still has this path."""
  try:
    return os.path.samestat(os.stat(path), os.fstat(file))
  except OSError:
    return False


def _take(file, held, new):
  """Locks an open file, unless a living process has it."""
  here = socket.gethostname()
  try:
    if fcntl is not None:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      return False
    if error.errno not in _NO_FLOCK:
      raise
  process, _, host = held.partition(' on ')
  if new or fcntl is None or host != here or not process.isdecimal():
    return new
  try:
    os.kill(int(process), 0)
  except ProcessLookupError:
    return True
  except (PermissionError, OverflowError):  # another user's, or no process
    pass
  return False
