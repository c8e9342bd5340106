"""Which operation does what to values that come in steps.

Positions of operands that an operation is linear in, all of them together; its
other operands (indices, a predicate) have no steps.
"""

ALL = slice(None)
LINEAR = {
  **dict.fromkeys(
    (
      *('reshape', 'transpose', 'broadcast_in_dim', 'squeeze', 'expand_dims'),
      *('rev', 'slice', 'dynamic_slice', 'gather', 'split', 'unstack'),
      *('reduce_sum', 'cumsum', 'reduce_window_sum', 'neg', 'real', 'imag'),
      *('convert_element_type', 'reduce_precision', 'stop_gradient', 'copy'),
      *('copy_p', 'sharding_constraint', 'layout_constraint'),
    ),
    slice(0, 1),
  ),
  **dict.fromkeys(('add', 'sub', 'add_any', 'concatenate'), ALL),
  **dict.fromkeys(('optimization_barrier',), ALL),
  'pad': slice(0, 2),
  'select_n': slice(1, None),
  'dynamic_update_slice': slice(0, 2),
  'scatter': slice(0, 3, 2),
  'scatter-add': slice(0, 3, 2),
  'scatter_add': slice(0, 3, 2),
}
# Linear in either of two operands, if the other one has no steps.
BILINEAR = {
  'mul': (0, 1),
  'div': (0,),
  'dot_general': (0, 1),
  'conv_general_dilated': (0, 1),
}


def places(name, count):
  """Positions that an operation is linear in, all of them together."""
  return range(count)[LINEAR.get(name, slice(0, 0))]


def is_linear(name, moving, infinite) -> bool:
  """Whether an operation is linear in all operands that have steps.

  Args:
    name: of its primitive.
    moving: for each operand, whether it has steps.
    infinite: for each operand, whether it is a constant that is not finite,
      which cannot be shown and withdrawn.
  """
  mine = [i for i, moves in enumerate(moving) if moves]
  if name in BILINEAR:
    return len(mine) == 1 and mine[0] in BILINEAR[name]
  if name not in LINEAR:
    return False
  values = places(name, len(moving))
  return set(mine) <= set(values) and not any(infinite[i] for i in values)


# What only moves numbers, of any type.
MOVES = (
  *('reshape', 'transpose', 'broadcast_in_dim', 'squeeze', 'expand_dims'),
  *('rev', 'slice', 'concatenate', 'copy', 'copy_p'),
)
# What costs little enough to be done again by each reader: it moves, scales or
# adds up two.
LIGHT = (
  *(*MOVES, 'neg', 'convert_element_type', 'stop_gradient'),
  *('add', 'sub', 'add_any', 'pad', 'select_n', 'mul', 'div'),
)
