"""The one exception that means 'the caller can mend this'."""

import collections
import numbers
from collections.abc import Callable, Iterable


class UserError(ValueError):
  """A mistake that the message tells how to mend.

  The message states the value, the rule it breaks and the remedy. The command
  lines print it as one line and exit with code 2; in a library call it is an
  ordinary `ValueError`.
  """


class PixelsWarning(UserError, UserWarning):
  """What is mended and told; where warnings are errors, it is a UserError."""


class DivergesWarning(UserWarning):
  """A network that should equal another does not."""


def repeated(names: Iterable[str], same: Callable = str) -> list[str]:
  """The names of which there are several, as `same` reads them.

  >>> repeated(['Cat', 'dog', 'cat'], str.lower)
  ['Cat', 'cat']
  """
  names = list(names)
  counts = collections.Counter(map(same, names))
  return [name for name in names if counts[same(name)] > 1]


def told(error: BaseException) -> str:
  """What another library's error says, short and on one line.

  >>> told(OSError('no such\\nfile'))
  'OSError: no such file'
  """
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def printable(text: str) -> str:
  """A text whose characters can all be shown, as escapes where they cannot.

  >>> printable('a\\x1b[31m')
  'a\\\\x1b[31m'
  """
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_whole(name: str, value, low: int = 0) -> None:
  """Raises a UserError for a value that is no whole number from `low` up."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not (whole and value >= low):
    raise UserError(
      f'{name}={value!r}, but it must be a whole number from {low} up'
    )


def check_fields(owner, *rules: tuple[str, object, str]) -> None:
  """Raises a UserError for the first field that is not valid.

  A rule is (the field's name, whether it is valid, what it must be).
  """
  for name, valid, needed in rules:
    if not valid:
      raise UserError(
        f'{type(owner).__name__}: {name}={getattr(owner, name)!r}, but it must '
        f'be {needed}'
      )
