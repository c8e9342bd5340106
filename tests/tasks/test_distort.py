"""Distorted colours against OpenCV's equations, a pixel at a time."""

import colorsys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_jax.tasks.detection.augment import distort_colors, to_hsv, to_rgb


def _opencv_hsv(r, g, b):
  """As OpenCV's float conversion is written, a pixel at a time."""
  eps = np.finfo(np.float32).eps
  v, low = max(r, g, b), min(r, g, b)
  s, scale = (v - low) / (abs(v) + eps), 60 / (v - low + eps)
  if v == r:
    h = (g - b) * scale
  elif v == g:
    h = (b - r) * scale + 120
  else:
    h = (r - g) * scale + 240
  return h + 360 * (h < 0), s, v


def _opencv_rgb(h, s, v):
  h = h / 60 % 6
  sector = int(h)
  part = h - sector
  table = (v, v * (1 - s), v * (1 - s * part), v * (1 - s * (1 - part)))
  b, g, r = ((1, 3, 0), (1, 0, 2), (3, 0, 1), (0, 2, 1), (0, 1, 3), (2, 1, 0))[
    sector
  ]
  return table[r], table[g], table[b]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
def test_hsv_against_colorsys(pixel):
  planes = [np.full((1, 1, 1), value, np.float32) for value in pixel]
  h, s, v = (float(x.item()) for x in to_hsv(*planes))
  expected = colorsys.rgb_to_hsv(*pixel)
  assert h == pytest.approx(expected[0] * 360, abs=1e-3)
  assert (s, v) == pytest.approx(expected[1:], abs=1e-5)
  assert _opencv_hsv(*map(float, pixel)) == pytest.approx((h, s, v), abs=1e-3)
  back = [x.item() for x in to_rgb(*to_hsv(*planes))]
  np.testing.assert_allclose(back, pixel, atol=1e-3)


def test_rgb_from_any_saturation_and_value_as_opencv():
  random = np.random.default_rng(0)
  h, s, v = random.uniform((0, 0, -60), (360, 1.8, 400), (500, 3)).T
  got = np.stack(to_rgb(*(np.float32(x) for x in (h, s, v))), -1)
  expected = [_opencv_rgb(*pixel) for pixel in zip(h, s, v, strict=True)]
  np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize('strength', [1.0, 0.5])
@pytest.mark.parametrize('contrast_first', [True, False])
def test_colors_are_distorted_as_in_the_reference(strength, contrast_first):
  random = np.random.default_rng(0)
  rows = 24
  draws = random.random((rows, 2, 4)).astype(np.float32)
  images = random.integers(0, 256, (rows, 3, 3, 3), dtype=np.uint8)
  images[0] = images[0, ..., :1]  # greys
  got = jax.jit(distort_colors, static_argnums=2)(draws, images, strength)
  expected = np.zeros(images.shape)
  for i, (coin, place) in enumerate(draws.astype(np.float64)):
    ranges = np.array([32, 0.5, 0.5, 18]) * strength
    bright, contrast, saturation, hue = (coin < 0.5) * (2 * place - 1) * ranges
    for place in np.ndindex(3, 3):
      pixel = images[(i, *place)] + bright
      if contrast_first:
        pixel = pixel * (1 + contrast)
      h, s, v = _opencv_hsv(*pixel)
      h += hue
      h += 360 * ((h < 0) - int(h > 360))
      pixel = np.array(_opencv_rgb(h, s * (1 + saturation), v))
      if not contrast_first:
        pixel = pixel * (1 + contrast)
      expected[(i, *place)] = pixel
  np.testing.assert_allclose(got, expected, atol=5e-3)
  if strength == 1:
    assert got.min() < 0  # nothing is clipped
    assert got.max() > 255
