"""Looks for operations in a traced program, and in what it calls."""


def equations(jaxpr, name):
  """All equations of a primitive, those of inner programs too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      yield equation
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(part, 'jaxpr', part)
        if hasattr(inner, 'eqns'):
          yield from equations(inner, name)
