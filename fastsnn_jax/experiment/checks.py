"""Settings that are checked when they are made, with errors that name them."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from fastsnn_jax.errors import UserError


class Settings:
  """Base of the dataclasses that a config file is written in.

  Config files are Python: types are checked here, not by the command line.

  Attributes:
    rules: {field: (what is true of a good value, the rule in words)}; None
      passes, where a field may be None.
  """

  rules: ClassVar[dict[str, tuple[Callable[[Any], bool], str]]] = {}

  def __new__(cls, *values, **named):
    del values
    known = [field.name for field in dataclasses.fields(cls)]
    for name in named:
      if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
          f'{cls.__name__} has no {name!r}; '
          + (f'did you mean {near[0]!r}?' if near else ', '.join(known))
        )
    return super().__new__(cls)

  def __post_init__(self):
    hints = typing.get_type_hints(type(self))
    for field in dataclasses.fields(self):
      hint = hints[field.name]
      self.check(field.name, lambda v, hint=hint: _fits(v, hint), _words(hint))
    for name, (good, words) in self.rules.items():
      if _fits(None, hints[name]):
        words += ', or none'
      if getattr(self, name) is not None:
        self.check(name, good, words)

  def check(self, name: str, good: Callable[[Any], bool], words: str) -> None:
    """Raises a UserError if the value of a field is not good."""
    value = getattr(self, name)
    if not good(value):
      kind = type(self).__name__.lower()
      raise UserError(f'{kind}.{name}={value!r}, but it must be {words}')


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
