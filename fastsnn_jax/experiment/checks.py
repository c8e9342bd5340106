"""Settings that are checked when they are made, with errors that name them."""

import dataclasses
import difflib
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from fastsnn_jax.errors import UserError

_MOST = float(np.finfo(np.float32).max)  # NaN is not below it


class Rule(NamedTuple):
  """What is true of a value, in an `Annotated` type."""

  good: Callable[[Any], bool]
  words: str


class Settings:
  """Base of the dataclasses that a config file is written in.

  Config files are Python: types are checked here, not by the command line. A
  field of type `Annotated[int, Rule(good, words)]` is checked by the rule, too.
  """

  def __new__(cls, *values, **named):
    del values
    known = [field.name for field in dataclasses.fields(cls)]
    for name in named.keys() - set(known):
      near = difflib.get_close_matches(name, known, 1)
      hint = f'did you mean {near[0]!r}?' if near else ', '.join(known)
      raise UserError(f'{cls.__name__} has no {name!r}; {hint}')
    return super().__new__(cls)

  def __post_init__(self):
    hints = typing.get_type_hints(type(self), include_extras=True)
    for name, hint in hints.items():
      self.check(name, lambda v, hint=hint: _fits(v, hint), _words(hint))

  def check(self, name: str, good: Callable[[Any], bool], words: str) -> None:
    """Raises a UserError if the value of a field is not good."""
    value = getattr(self, name)
    if not good(value):
      kind = type(self).__name__.lower()
      raise UserError(f'{kind}.{name}={value!r}, but it must be {words}')


def _fits(value, hint):
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return _fits(value, parts[0]) and parts[1].good(value)
  if origin is Literal:
    return any(value == p and type(value) is type(p) for p in parts)
  if origin is tuple:
    return isinstance(value, tuple) and all(_fits(v, parts[0]) for v in value)
  if parts:  # X | None
    return any(_fits(value, part) for part in parts)
  if isinstance(value, bool):
    return hint is bool
  if hint is float:
    return isinstance(value, int | float) and abs(value) <= _MOST
  return isinstance(value, hint)


def _words(hint):
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return f'{_words(parts[0])} {parts[1].words}'
  if origin is Literal:
    names = ', '.join(map(str, parts))
    return f'one of {names}' if len(parts) > 1 else names
  if origin is tuple:
    return f'a tuple, each {_words(parts[0])}'
  if parts:
    return ' or '.join(map(_words, parts))
  plain = {int: 'a whole number', float: 'a finite number', str: 'text'}
  return plain.get(hint, 'none' if hint is type(None) else hint.__name__)
