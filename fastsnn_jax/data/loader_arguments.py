"""What a loader can be asked for."""

from fastsnn_jax.errors import UserError

CROPS = ('none', 'random_resized', 'squash', 'pad')


def check(source, batch, seed, size, crop, index, count, workers):
  if not len(source):
    raise UserError('the split has no examples; it needs at least one')
  for name, value, least in (
    ('batch', batch, 1),
    ('seed', seed, 0),
    ('size', 1 if size is None else size, 1),
    ('workers', workers, 0),
    ('process_count', count, 1),
  ):
    if value < least:
      raise UserError(f'{name} is {value}; it must be {least} or more')
  if batch % count:
    raise UserError(
      f'batch is {batch}, for {count} processes; each takes the same share, so '
      f'choose a multiple of {count}'
    )
  if not 0 <= index < count:
    raise UserError(
      f'process_index is {index}; of {count} processes it must be 0 to '
      f'{count - 1}'
    )
  if crop not in CROPS:
    raise UserError(f'crop is {crop!r}; choose one of {", ".join(CROPS)}')
  if crop != 'none' and size is None:
    raise UserError(
      f'crop is {crop!r}, but images are taken as they are; give a size to '
      "resize them to, or crop 'none'"
    )
