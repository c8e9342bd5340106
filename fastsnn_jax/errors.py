"""The one exception that means 'the caller can mend this'."""


class UserError(ValueError):
  """A mistake that the message tells how to mend.

  The message states the value, the rule it breaks and the remedy. The command
  lines print it as one line and exit with code 2; in a library call it is an
  ordinary `ValueError`.
  """
