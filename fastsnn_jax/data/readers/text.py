"""Text files: UTF-8, whatever the machine's locale is."""

import codecs

from fastsnn_jax.errors import UserError


def read(path) -> str:
  """The content, without a byte order mark; UserError if it is not UTF-8."""
  try:
    content = path.read_bytes()
    return content.removeprefix(codecs.BOM_UTF8).decode()
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror}); check its permissions'
    ) from error
  except UnicodeDecodeError as error:
    place = error.start + len(content) - len(error.object)
    raise UserError(
      f'{path} is not UTF-8 (byte {place} is 0x{content[place]:02x}); write it '
      'again as UTF-8'
    ) from error


def first_file(paths):
  """The first of the paths that is a file, or None."""
  return next((path for path in paths if path.is_file()), None)


def lines(path) -> list[str]:
  r"""The lines, ended by \n, \r\n or \r, without empty ones at both ends."""
  text = read(path).replace('\r\n', '\n').replace('\r', '\n')
  return [line.strip() for line in text.strip().split('\n')]


def listed(path, layout) -> list[str]:
  """The lines with something in them; UserError if there is no such file."""
  if not path.is_file():
    raise UserError(f'{path}: no such file; the layout is {layout}')
  return [line for line in lines(path) if line]
