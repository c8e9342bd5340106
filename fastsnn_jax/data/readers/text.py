"""Text as people's tools write it: encodings, numbers, ids and XML."""

import codecs
import math
import re
from xml.etree import ElementTree

from fastsnn_jax.errors import UserError, told

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's begin alike
_DECLARED = re.compile(rb'<\?xml[^>]*encoding\s*=\s*["\']([A-Za-z][\w.:-]*)')
# What is declared -> what is written: all of it, and some more characters.
_WIDER = {'gb2312': 'gb18030', 'gbk': 'gb18030', 'shift_jis': 'cp932'}
_WIDER |= {'shift-jis': 'cp932', 'sjis': 'cp932', 'euc-kr': 'cp949'}
_WHOLE = re.compile(r'[+-]?\d{1,99}(\.0*)?', re.ASCII)


def read(path) -> str:
  """The content, without a byte order mark; UserError if it is not UTF-8."""
  try:
    content = path.read_bytes()
    result = content.decode()
    place = content.find(b'\0')
    if place >= 0:
      raise UnicodeDecodeError('utf-8', content, place, place + 1, 'a NUL')
    return result.replace('\ufeff', '')  # lists put together have several
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror}); check its permissions'
    ) from error
  except UnicodeDecodeError as error:
    place = error.start
    wide = content.startswith(_UTF16) or b'\0' in content
    raise UserError(
      f'{path} is not UTF-8 (byte {place} is 0x{content[place]:02x})'
      f'{", but looks like UTF-16" * wide}; write it again as UTF-8'
    ) from error


def lines(path) -> list[str]:
  r"""The lines, ended by \n, \r\n or \r, without empty ones at both ends."""
  text = read(path).replace('\r\n', '\n').replace('\r', '\n')
  return [line.strip() for line in text.strip().split('\n')]


def listed(path, layout) -> list[str]:
  """The lines with something in them; UserError if there is no such file."""
  if not path.is_file():
    raise UserError(f'{path}: no such file; the layout is {layout}')
  return [line for line in lines(path) if line]


def xml(path) -> ElementTree.Element:
  """The root of an XML file in any encoding that Python knows.

  ValueError if it cannot be read. Where the declared encoding is unknown or
  wrong, UTF-8 is tried.
  """
  content = path.read_bytes()
  content = content.removeprefix(codecs.BOM_UTF8).lstrip()
  match = _DECLARED.match(content)
  name = match[1].decode().lower() if match else ''
  codings = [_WIDER.get(name, name), 'utf-8'] if match else [None]
  for coding in codings:  # of a str, the declaration does not count
    try:
      text = content.decode(coding) if coding else content
      return ElementTree.fromstring(text)
    except (LookupError, ValueError, ElementTree.ParseError) as error:
      reason = told(error)
  raise ValueError(reason)


def number(value) -> float:
  """A number of JSON or XML, as text too; NaN for anything else."""
  try:
    return math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def flag(value) -> bool:
  """A mark of JSON or XML: true, "true", and any number but 0, as text too."""
  if isinstance(value, bool):
    return value
  true = isinstance(value, str) and value.strip().lower() in ('true', 'yes')
  return true or abs(number(value)) > 0


def identity(value) -> int | str | None:
  """What an id stands for: 7, 7.0, '7' and '007' are one; None is no id."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  if not isinstance(value, str):
    return int(value) if value == value // 1 else None
  value = value.strip()
  whole = _WHOLE.fullmatch(value)
  return int(value.partition('.')[0]) if whole else value or None
