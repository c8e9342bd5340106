"""The commands, with their signals handled before the package is imported."""

import os
import signal


def main(name: str | None = None) -> None:
  """`fastsnn NAME …`, or the command that `python NAME.py …` stands for."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _stop)
  from fastsnn_jax.experiment import cli  # which takes seconds

  if name is None:
    cli.main()
  else:
    cli.run(cli.COMMANDS[name])


def _stop(number, frame):
  """Ends a command that is still being imported; later `cli` does."""
  try:
    os.write(2, b'interrupted; give the same command again\n')
  finally:  # standard error may be closed
    os._exit(128 + number)
