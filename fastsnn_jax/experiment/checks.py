"""Checks of a dataclass's fields, with errors that name value and rule."""

import math
import typing
from typing import Literal

from fastsnn_jax.errors import UserError


def check(owner, name, good, rule):
  value = getattr(owner, name)
  if not good(value):
    kind = type(owner).__name__.lower()
    raise UserError(f'{kind}.{name}={value!r}, but it must be {rule}')


def check_types(owner):
  """Config files are Python: what they set is checked here, not by tyro."""
  for name, hint in typing.get_type_hints(type(owner)).items():
    check(owner, name, lambda v, hint=hint: _fits(v, hint), _words(hint))


def _fits(value, hint):
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return value in parts
  if origin is tuple:
    return isinstance(value, tuple) and all(_fits(v, parts[0]) for v in value)
  if parts:  # X | None
    return any(_fits(value, part) for part in parts)
  if hint is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
  return isinstance(value, hint) and (
    hint is bool or not isinstance(value, bool)
  )


def _words(hint):
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return 'one of ' + ', '.join(map(str, parts))
  if origin is tuple:
    return f'a tuple, each {_words(parts[0])}'
  if parts:
    return ' or '.join(map(_words, parts))
  plain = {int: 'a whole number', float: 'a finite number', str: 'text'}
  return plain.get(hint, 'none' if hint is type(None) else hint.__name__)
