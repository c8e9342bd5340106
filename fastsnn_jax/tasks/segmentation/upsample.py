"""From a map of logits to one for every pixel, exactly.

Bilinear with aligned corners: the corners of the map are those of the image, so
of h cells with `factor` pixels from one to the next come (h - 1) factor + 1
rows (reference behaviour S1.4). `jax.image.resize` aligns the borders instead.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from fastsnn_jax.errors import UserError


def sides(side: int, factor: int) -> int:
  """Pixels along an axis of so many cells: (side - 1) factor + 1.

  >>> sides(65, 8), sides(33, 16)
  (513, 513)
  """
  return (side - 1) * factor + 1


def upsample(x, factor: int):
  """Linear along each axis between neighbouring cells of x [B, h, w, C].

    out[b, i factor + k, …] = (1 - k / factor) x[b, i, …]
                              + k / factor x[b, i + 1, …],  0 <= k < factor

  and the same for columns: [B, sides(h, factor), sides(w, factor), C]. A factor
  of 2^n has exact weights. Half precision is widened to float32.

  Raises:
    UserError: x is no batch of maps, or a factor below 1.

  >>> upsample(jnp.array([[0.0, 4.0]])[None, ..., None], 4).ravel().tolist()
  [0.0, 1.0, 2.0, 3.0, 4.0]
  """
  if jnp.ndim(x) != 4 or 0 in jnp.shape(x)[1:3]:
    raise UserError(
      f'a map of shape {jnp.shape(x)}, but it must be [B, h, w, C] with at '
      'least one cell'
    )
  if not isinstance(factor, int) or factor < 1:
    raise UserError(f'factor={factor!r}: a whole number, 1 or more, is needed')
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  rows, columns = (
    jnp.asarray(_weights(side, factor), x.dtype) for side in x.shape[1:3]
  )
  # An accelerator would otherwise round logits to half precision here.
  exact = lax.Precision.HIGHEST
  x = jnp.einsum('ih,bhwc->biwc', rows, x, precision=exact)
  return jnp.einsum('jw,biwc->bijc', columns, x, precision=exact)


def _weights(side, factor):
  """What each pixel has of each cell: [pixels, cells]."""
  pixel, cell = np.ogrid[: sides(side, factor), :side]
  return np.maximum(1 - np.abs(pixel / factor - cell), 0)
