"""The one exception that means 'the caller can mend this'."""

import numbers


class UserError(ValueError):
  """A mistake that the message tells how to mend.

  The message states the value, the rule it breaks and the remedy. The command
  lines print it as one line and exit with code 2; in a library call it is an
  ordinary `ValueError`.
  """


class PixelsWarning(UserError, UserWarning):
  """What is mended and told; where warnings are errors, it is a UserError."""


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
