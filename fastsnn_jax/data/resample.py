"""Windows of images, cut and resized as two matrix products an image.

Where each image has a window and a scale of its own, gathering pixels is slow
on accelerators; two small matrices an image are work they are made for.
"""

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError


def row_keys(key, rows: int):
  """A random key for each row of a batch.

  Args:
    key: one key, into which the number of each row is folded; or `rows` keys,
      which are taken as they are. The latter give a sample the same draws in
      whatever batch it comes.
    rows: B.

  Returns:
    [B] keys.

  Raises:
    UserError: another number of keys.

  >>> key = jax.random.key(0)
  >>> bool(row_keys(key, 3)[2] == jax.random.fold_in(key, 2))
  True
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if not key.ndim:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
  if key.shape != (rows,):
    raise UserError(
      f'there are keys of shape {key.shape} for {rows} images; give one key, '
      'or one for each image'
    )
  return key


def bilinear(numerator, denominator, length):
  """Rows of the matrix that reads a line of pixels at given positions.

  At p between the centres i and i + 1 the weights are 1 - (p - i) and p - i, of
  all other pixels 0; beyond the first or the last centre p is moved there. p is
  given as a fraction of integers: the pixel is then exact, whatever the size.

  Args:
    numerator: int32 [..., n].
    denominator: int32, broadcasts to it; positive.
    length: pixels of the line, L.

  Returns:
    float32 [..., n, L].

  >>> bilinear(jnp.array([-1, 1, 3, 9]), 4, 2).tolist()
  [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
  """
  numerator = jnp.clip(numerator, 0, (length - 1) * denominator)
  whole, rest = numerator // denominator, numerator % denominator
  share = rest.astype(jnp.float32) / jnp.float32(denominator)
  apart = whole[..., None] - jnp.arange(length)
  return jnp.maximum(0, 1 - jnp.abs(apart + share[..., None]))


def resample(images, rows, columns):
  """Reads images along both axes.

  `result[b, i, l, c] = Σ_j Σ_k rows[b, i, j] columns[b, l, k]
  images[b, j, k, c]`

  Args:
    images: [B, H, W, C].
    rows, columns: [B, h, H] and [B, w, W], as from `bilinear`.

  Returns:
    float32 [B, h, w, C].

  >>> half = jnp.full((1, 1, 2), 0.5)
  >>> resample(jnp.arange(4.0).reshape(1, 2, 2, 1), half, half).item()
  1.5
  """
  # Channel by channel (faster on a CPU), and in full precision: what TPUs do of
  # themselves keeps eight bits, a grey level at the most.
  planes = jnp.moveaxis(images.astype(jnp.float32), -1, 1)
  exact = jax.lax.Precision.HIGHEST
  planes = jnp.einsum('bij,bcjk->bcik', rows, planes, precision=exact)
  planes = jnp.einsum('bcik,blk->bcil', planes, columns, precision=exact)
  return jnp.moveaxis(planes, 1, -1)
