"""What is done to images on the device, whatever the task."""

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError


def normalize(images, mean, std):
  """`(images / 255 - mean) / std`, channel by channel, as float32 [..., C].

  Args:
    images: [..., C], uint8 or floats in 0..255.
    mean, std: C numbers each, of images in 0..1; std is positive.

  Raises:
    UserError: mean or std has not one number for each channel.

  >>> normalize(jnp.full((1, 1, 1), 255, jnp.uint8), (0.5,), (0.25,)).item()
  2.0
  """
  images = jnp.asarray(images)
  channels = images.shape[-1:]
  mean, std = jnp.float32(mean), jnp.float32(std)
  if not channels == mean.shape == std.shape:
    raise UserError(
      f'images have shape {images.shape}, but mean has shape {mean.shape} and '
      f'std {std.shape}; give one number for each channel, the last dimension, '
      'as mean=… and std=… of the network'
    )
  # Ranks are promoted by hand: JAX may be told to refuse it.
  mean, std = (x.reshape(*(1,) * (images.ndim - 1), -1) for x in (mean, std))
  return (images.astype(jnp.float32) / 255 - mean) / std


def resize(images, side: int):
  """Square images of another size: bilinear, without smoothing beforehand.

  As the official code resizes batches in training (reference behaviour D3.7).

  >>> resize(jnp.ones((1, 64, 64, 3)), 32).shape
  (1, 32, 32, 3)
  """
  if images.shape[1:3] == (side, side):
    return images
  shape = (len(images), side, side, images.shape[-1])
  return jax.image.resize(images, shape, 'linear', antialias=False)


def crop_flip(key, images, *, padding=4, flip=True):
  """Moves each image by a random offset and mirrors half of them.

  Every image is padded with black on all sides and a window of its own size is
  cut out at one of (2 padding + 1)² places, each as likely as the other; then
  it is mirrored left to right with probability 1/2. The images differ in their
  draws. (Reference behaviour C4.1; raw images, before `normalize`.)

  Args:
    key: a JAX random key.
    images: [B, H, W, C]; shape and dtype stay.
    padding: pixels on each side; 0 for no crop. Static under `jit`.
    flip: whether to mirror. Static under `jit`.

  Raises:
    UserError: a negative padding, or images that are not a batch.

  >>> images = jnp.ones((2, 8, 8, 1), jnp.uint8)
  >>> crop_flip(jax.random.key(0), images).shape
  (2, 8, 8, 1)
  """
  if padding < 0:
    raise UserError(f'padding is {padding}; it must be 0 (no crop) or more')
  images = jnp.asarray(images)
  if images.ndim != 4:
    raise UserError(
      f'images have shape {images.shape}; crop_flip takes [B, H, W, C]'
    )
  crop_key, flip_key = jax.random.split(key)
  if padding:
    sides = (padding, padding)
    padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
    offsets = jax.random.randint(crop_key, (len(images), 2), 0, 2 * padding + 1)
    # One gather of whole windows: faster on a CPU than one of single pixels or
    # a scan over the batch.
    shape = images.shape[1:]
    images = jax.vmap(
      lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), shape)
    )(padded, offsets)
  if flip:
    mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
  return images


def color_jitter(key, images, strength, size=None):
  """Brightness, contrast and saturation of each image, changed at random.

  Three factors a uniform in 1 ± strength: the image times the first; its
  distances from its mean grey times the second; those from its own grey pixel
  by pixel times the third. Clipped to 0..255 after each.

  Args:
    key: a JAX random key.
    images: [B, H, W, C], 0..255; uint8 or float. The result is float32.
    strength: 0 for none, below 1.
    size: [B, 2], (width, height) of images that lie at the top left of their
      arrays: the mean grey is that of the image alone.

  >>> images = jnp.full((2, 4, 4, 3), 100, jnp.uint8)
  >>> bool(jnp.all(color_jitter(jax.random.key(0), images, 0.0) == 100))
  True
  """
  images = jnp.asarray(images).astype(jnp.float32)
  shape = (3, len(images), 1, 1, 1)
  low, high = 1 - strength, 1 + strength
  bright, contrast, colour = jax.random.uniform(key, shape, float, low, high)

  def apart(images, centre, factor):
    return jnp.clip(centre + (images - centre) * factor, 0, 255)

  images = apart(images, 0, bright)
  real = None
  if size is not None:
    real = jnp.arange(images.shape[1])[:, None] < size[:, 1, None, None]
    real &= jnp.arange(images.shape[2]) < size[:, 0, None, None]
    real = jnp.broadcast_to(real[..., None], images.shape)
  grey = jnp.mean(images, (1, 2, 3), keepdims=True, where=real)
  images = apart(images, grey, contrast)
  return apart(images, jnp.mean(images, -1, keepdims=True), colour)


def row_keys(key, rows: int):
  """A random key for each row of a batch.

  The number of the row is folded into one key. As many keys as rows are taken
  as they are: a sample then gets the same draws in whatever batch it comes.
  UserError if there is another number of keys.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if not key.ndim:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
  if key.shape != (rows,):
    raise UserError(
      f'keys of shape {key.shape} for {rows} images; give one for each image'
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
    length: pixels of the line, L. The result is float32 [..., n, L].

  >>> bilinear(jnp.array([-1, 1, 3, 9]), 4, 2).tolist()
  [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
  """
  numerator = jnp.clip(numerator, 0, (length - 1) * denominator)
  whole, rest = numerator // denominator, numerator % denominator
  share = rest.astype(jnp.float32) / jnp.float32(denominator)
  apart = whole[..., None] - jnp.arange(length)
  return jnp.maximum(0, 1 - jnp.abs(apart + share[..., None]))


def resample(images, rows, columns):
  """`out[b, i, l, c] = Σ_jk rows[b, i, j] columns[b, l, k] images[b, j, k, c]`.

  Args:
    images: [B, H, W, C]; the result is float32 [B, h, w, C].
    rows, columns: [B, h, H] and [B, w, W], as from `bilinear`.
  """
  # Channel by channel (faster on a CPU), and in full precision: what TPUs do of
  # themselves keeps eight bits, a grey level at the most.
  planes = jnp.moveaxis(images.astype(jnp.float32), -1, 1)
  exact = jax.lax.Precision.HIGHEST
  planes = jnp.einsum('bij,bcjk->bcik', rows, planes, precision=exact)
  planes = jnp.einsum('bcik,blk->bcil', planes, columns, precision=exact)
  return jnp.moveaxis(planes, 1, -1)
