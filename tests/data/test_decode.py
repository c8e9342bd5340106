"""Pictures of every kind become arrays; crops follow the specification."""

import io
import math

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pictures import encode, smooth

from fastsnn_jax.data import decode
from fastsnn_jax.data.stream import Draws


def _whole(width, height):
  return 0, 0, width, height


# -------------------------------------------------------------------- boxes


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**40))
def test_random_boxes_lie_in_the_picture(width, height, number):
  left, top, right, bottom = decode.random_box(width, height, Draws(0, number))
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height
  w, h = right - left, bottom - top
  # Half a pixel of rounding on either side.
  assert (w + 0.5) / (h - 0.5) >= 0.8
  assert (w - 0.5) / (h + 0.5) <= 1.25


@pytest.mark.parametrize('shape', [(500, 375), (400, 400), (300, 480)])
def test_random_boxes_follow_the_specification(shape):
  boxes = [decode.random_box(*shape, Draws(3, i)) for i in range(4000)]
  left, top, right, bottom = np.array(boxes, float).T
  w, h = right - left, bottom - top
  area, aspect = w * h / math.prod(shape), w / h
  assert 0.099 < area.min() < 0.11
  assert 0.79 < aspect.min() < 0.81  # of whole pixels
  assert 1.24 < aspect.max() < 1.265
  # What the rule gives: drawn in bulk, and again where it does not fit.
  random = np.random.default_rng(0)
  draws = random.uniform(0.1, 1, 100_000) * math.prod(shape)
  ratio = np.exp(random.uniform(math.log(0.8), math.log(1.25), 100_000))
  fits = (np.sqrt(draws * ratio) <= shape[0]) & (
    np.sqrt(draws / ratio) <= shape[1]
  )
  wanted_area, wanted_aspect = draws[fits] / math.prod(shape), ratio[fits]
  for got, wanted in ((area, wanted_area), (aspect, wanted_aspect)):
    grid = np.quantile(wanted, np.linspace(0.05, 0.95, 19))
    share = (got[:, None] <= grid).mean(0)
    # Five deviations of a share among 4000, and the rounding to pixels.
    assert np.abs(share - np.linspace(0.05, 0.95, 19)).max() < 0.045
  # The place is uniform among those that there are.
  for first, room in ((left, shape[0] - w), (top, shape[1] - h)):
    place = ((first + 0.5) / (room + 1))[room > 20]
    assert abs(place.mean() - 0.5) < 5 * math.sqrt(1 / 12 / len(place))
    assert abs(place.std() - math.sqrt(1 / 12)) < 0.02


def test_pictures_too_long_are_cut_in_the_centre():
  draws = Draws(0, 0)
  assert decode.random_box(1000, 40, draws) == (475, 0, 525, 40)
  assert decode.random_box(40, 1001, draws) == (0, 475, 40, 525)
  assert decode.random_box(1, 1, draws) == (0, 0, 1, 1)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300))
def test_centre_boxes_are_square_parts(width, height, size):
  left, top, right, bottom = decode.centre_box(width, height, size)
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height
  share = size / round(size * 256 / 224)
  short = min(width, height)
  sides = (right - left, bottom - top)
  assert sides[width > height] == pytest.approx(short * share)
  # Centred up to one pixel of the picture resized.
  assert left + right == pytest.approx(width, abs=1.5 * short / size)
  assert top + bottom == pytest.approx(height, abs=1.5 * short / size)


# ----------------------------------------------------------------- resizing


@pytest.mark.parametrize('shape', [(80, 130), (100, 40), (64, 64), (9, 31)])
def test_evaluation_is_resizing_and_cutting_out_the_centre(shape):
  image = PIL.Image.fromarray(smooth(*shape))
  size, short = 32, 37
  height, width = (round(n * short / min(shape)) for n in shape)
  left, top = (width - size) // 2, (height - size) // 2
  wanted = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
  wanted = wanted.crop((left, top, left + size, top + size))
  got = decode.resized(
    encode(image), size, lambda w, h: decode.centre_box(w, h, size)
  )
  assert got.shape == (size, size, 3)
  assert got.dtype == np.uint8
  # Two roundings to whole levels instead of one are not told apart.
  assert np.abs(got.astype(int) - np.asarray(wanted)).max() <= 1


def test_a_crop_is_what_the_box_shows():
  image = smooth(60, 90)
  box = (20, 5, 60, 45)
  got = decode.resized(encode(image), 40, lambda w, h: box)
  np.testing.assert_array_equal(got, image[5:45, 20:60])


def test_large_jpegs_decoded_small_differ_little():
  image = smooth(480, 640)
  encoded = encode(image, 'JPEG', quality=95)
  full = PIL.Image.open(io.BytesIO(encoded))
  for box in (_whole(640, 480), (101, 50, 401, 370)):
    wanted = np.asarray(
      full.resize((32, 32), PIL.Image.Resampling.BILINEAR, box=box)
    ).astype(int)
    got = decode.resized(encoded, 32, lambda w, h, box=box: box)
    assert np.abs(got - wanted).mean() < 1
    assert np.abs(got - wanted).max() < 8


# -------------------------------------------------------------------- kinds


def _grey():
  return smooth(40, 50)[..., 0]


def _kinds():
  """{kind: (encoded, colour expected at each place)}."""
  grey = _grey()
  colour = smooth(40, 50)
  repeated = np.repeat(grey[..., None], 3, axis=2)
  as_image = PIL.Image.fromarray
  alpha = np.dstack([colour, grey])
  palette = as_image(colour).quantize(32)
  shown = np.asarray(palette.convert('RGB'))
  deep = as_image(grey.astype(np.uint16) * 256 + 17)
  return {
    'grey': (encode(grey), repeated),
    'grey jpeg': (encode(grey, 'JPEG', quality=98), repeated),
    'black and white': (
      encode(as_image(grey).convert('1')),
      np.asarray(as_image(grey).convert('1').convert('RGB')),
    ),
    'grey and alpha': (encode(as_image(grey).convert('LA')), repeated),
    '16 bits': (encode(deep), repeated),
    '16 bits tiff': (encode(deep, 'TIFF'), repeated),
    'rgb': (encode(colour), colour),
    'rgba': (encode(as_image(alpha)), colour),
    'palette': (encode(palette), shown),
    'transparent palette': (encode(palette, transparency=b'\0\x80'), shown),
    'gif': (encode(palette, 'GIF'), shown),
    'bmp': (encode(colour, 'BMP'), colour),
    'webp': (encode(as_image(colour), 'WEBP', lossless=True), colour),
    'cmyk jpeg': (
      encode(as_image(colour).convert('CMYK'), 'JPEG', quality=98),
      colour,
    ),
  }


@pytest.mark.parametrize('kind', _kinds())
def test_every_kind_becomes_rgb(kind):
  encoded, wanted = _kinds()[kind]
  tolerance = 12 if 'jpeg' in kind else 0
  for got in (
    decode.whole(encoded, 3),
    decode.resized(encoded, 40, lambda w, h: (0, 0, 40, 40)),
  ):
    assert got.dtype == np.uint8
    assert got.shape[2] == 3
    difference = np.abs(got.astype(int) - wanted[:, : got.shape[1]])
    assert difference.max() <= tolerance


@pytest.mark.parametrize('shape', [(1, 1), (1, 300), (7, 2)])
def test_tiny_pictures_are_enlarged(shape):
  image = np.full((*shape, 3), 99, np.uint8)
  for box in (decode.centre_box, lambda w, h, s: _whole(w, h)):
    got = decode.resized(encode(image), 24, lambda w, h, box=box: box(w, h, 24))
    assert got.shape == (24, 24, 3)
    assert (got == 99).all()


def test_whole_pictures_keep_grey():
  assert decode.whole(encode(_grey())).shape == (40, 50, 1)
  assert decode.whole(encode(_grey()), 1).shape == (40, 50, 1)
  assert decode.whole(encode(smooth(40, 50)), 1).shape == (40, 50, 3)
  assert decode.whole(encode(smooth(40, 50))).shape == (40, 50, 3)


# ------------------------------------------------------------------- damage


def _damaged():
  jpeg = encode(smooth(80, 60), 'JPEG')
  png = encode(smooth(80, 60))
  return {
    'empty': b'',
    'text': b'no picture',
    'half a jpeg': jpeg[: len(jpeg) // 2],
    'head of a jpeg': jpeg[:30],
    'half a png': png[: len(png) // 2],
    'flipped bytes': png[:60] + bytes(255 - x for x in png[60:200]) + png[200:],
    'floats': encode(PIL.Image.fromarray(np.ones((9, 9), np.float32)), 'TIFF'),
  }


@pytest.mark.parametrize('kind', _damaged())
def test_damaged_pictures_are_told_apart(kind):
  encoded = _damaged()[kind]
  with pytest.raises(decode.Undecodable, match=r'\w+: .'):
    decode.whole(encoded)
  with pytest.raises(decode.Undecodable):
    decode.resized(encoded, 16, _whole)
