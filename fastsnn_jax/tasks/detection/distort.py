"""Brightness, contrast, saturation and hue of images with boxes (spec 4)."""

import jax.numpy as jnp

from fastsnn_jax.errors import UserError

_BRIGHTNESS = 32.0  # grey levels
_CONTRAST = _SATURATION = 0.5  # factors 0.5 to 1.5
_HUE = 18.0  # degrees
_TINY = float(jnp.finfo(jnp.float32).eps)


def distort_colors(draws, images, strength: float = 1.0):
  """Changes the colours of images, and clips nothing.

  In turn, each with probability 1/2: brightness += U(-32, 32), contrast *=
  U(0.5, 1.5), saturation *= U(0.5, 1.5), hue += U(-18, 18) degrees. The
  reference draws whether contrast comes before or after the others: it scales
  all three channels, and saturation and hue do not change when one does, so
  both orders are one. Values below 0 and above 255 occur, and saturations above
  1. (Spec detection §4, step 3, and Q19.)

  Args:
    draws: [B, 2, 4], uniform in 0..1, for these four in turn: whether (below
      1/2), and where in the range.
    images: [B, H, W, 3], RGB in 0..255; uint8 or float.
    strength: scales the four ranges; 0 for none, 1 as the reference. Static
      under `jit`.

  Returns:
    float32, same shape.

  Raises:
    UserError: a strength outside 0..2, where a contrast would be negative.

  >>> draws = jnp.array([[[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]])
  >>> distort_colors(draws, jnp.full((1, 1, 1, 3), 100, jnp.uint8)).tolist()
  [[[[132.0, 132.0, 132.0]]]]
  """
  if not 0 <= strength <= 2:
    raise UserError(
      f'distort={strength}: the strength lies between 0 (none) and 2; 1 is the '
      "reference's"
    )
  images = images.astype(jnp.float32)
  if not strength:
    return images
  change = jnp.where(draws[:, 0] < 0.5, 2 * draws[:, 1] - 1, 0) * strength
  bright, contrast, saturation, hue = jnp.expand_dims(change.T, (2, 3))
  planes = (
    (images[..., channel] + bright * _BRIGHTNESS) * (1 + contrast * _CONTRAST)
    for channel in range(3)
  )
  h, s, v = to_hsv(*planes)
  h += hue * _HUE
  h = jnp.where(h < 0, h + 360, jnp.where(h > 360, h - 360, h))
  return jnp.stack(to_rgb(h, s * (1 + saturation * _SATURATION), v), -1)


def to_hsv(red, green, blue):
  """(hue in degrees, saturation, value) of three planes, as OpenCV has them.

  With V the largest and m the smallest of the three: S = (V - m) / |V|, and the
  hue is 60 times the difference of the other two over V - m, plus 0, 120 or 240
  where red, green or blue is largest. The absolute value matters for pixels
  that brightness has made negative: `to_rgb` does not give those back.

  >>> [float(x) for x in to_hsv(*map(jnp.float32, (0, 100, 200)))]
  [210.0, 1.0, 200.0]
  """
  value = jnp.maximum(jnp.maximum(red, green), blue)
  spread = value - jnp.minimum(jnp.minimum(red, green), blue)
  scale = 60 / (spread + _TINY)
  hue = jnp.where(
    value == red,
    (green - blue) * scale,
    jnp.where(
      value == green,
      (blue - red) * scale + 120,
      (red - green) * scale + 240,
    ),
  )
  hue = jnp.where(hue < 0, hue + 360, hue)
  return hue, spread / (jnp.abs(value) + _TINY), value


def to_rgb(hue, saturation, value):
  """(red, green, blue): V - V S max(0, min(k, 4 - k, 1)).

  k = (n + hue / 60) mod 6, with n = 5, 3 and 1 for the three.

  >>> planes = to_rgb(*map(jnp.float32, (210.0, 1.0, 200.0)))
  >>> [float(x) for x in planes]
  [0.0, 100.0, 200.0]
  """

  def plane(n):
    k = hue / 60 + n
    k = jnp.where(k >= 6, k - 6, k)
    share = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return value - value * saturation * share

  return plane(5), plane(3), plane(1)
