"""Normalisation, random crop and flip against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsnn_jax as fs
from fastsnn_jax.data import color_jitter, crop_flip, normalize
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.segmentation.task import Segmentation


def _images(batch, height, width, channels, seed=0):
  """Random images without black, so that every offset is told apart."""
  random = np.random.default_rng(seed)
  shape = (batch, height, width, channels)
  return random.integers(1, 256, shape, dtype=np.uint8)


def _variants(image, padding):
  """Every legal outcome for one image: {(row, column, mirrored): image}."""
  height, width, _ = image.shape
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  windows = {
    (row, column): padded[row : row + height, column : column + width]
    for row in range(2 * padding + 1)
    for column in range(2 * padding + 1)
  }
  return {
    (*place, mirrored): window[:, ::-1] if mirrored else window
    for place, window in windows.items()
    for mirrored in (False, True)
  }


def _outcome(image, output, padding):
  """The draw that turned an image into the output, found by comparison."""
  hits = [
    draw
    for draw, variant in _variants(image, padding).items()
    if np.array_equal(variant, output)
  ]
  assert len(hits) == 1, hits
  return hits[0]


@pytest.mark.once
@settings(max_examples=15, deadline=None)
@given(
  st.tuples(*(st.integers(3, 8),) * 2, st.integers(1, 3)),
  st.integers(0, 2),
  st.integers(0, 2**31 - 1),
)
def test_each_output_is_a_legal_window_of_its_input(shape, padding, seed):
  images = _images(4, *shape, seed)
  outputs = crop_flip(jax.random.key(seed), images, padding=padding)
  assert outputs.shape == images.shape
  assert outputs.dtype == jnp.uint8
  for image, output in zip(images, np.asarray(outputs), strict=True):
    _outcome(image, output, padding)


@pytest.mark.once
def test_all_offsets_and_both_flips_occur_equally():
  image = _images(1, 5, 6, 2)
  batch = np.repeat(image, 2000, axis=0)
  outputs = np.asarray(crop_flip(jax.random.key(1), batch, padding=2))
  draws = {v.tobytes(): k for k, v in _variants(image[0], 2).items()}
  counts = dict.fromkeys(draws.values(), 0)
  for output in outputs:
    counts[draws[output.tobytes()]] += 1
  # 50 draws of 40 each on average; 6 sigma on either side.
  assert len(counts) == 50
  assert min(counts.values()) > 2
  assert max(counts.values()) < 80
  mirrored = sum(count for draw, count in counts.items() if draw[2])
  assert abs(mirrored - 1000) < 6 * np.sqrt(500)


def test_default_padding_is_four():
  image = _images(1, 9, 9, 1)
  batch = np.repeat(image, 1000, axis=0)
  outputs = np.asarray(crop_flip(jax.random.key(0), batch, flip=False))
  draws = {v.tobytes(): k for k, v in _variants(image[0], 4).items()}
  places = {draws[output.tobytes()] for output in outputs}
  assert not any(mirrored for *_, mirrored in places)
  assert {row for row, *_ in places} == set(range(9))
  assert {column for _, column, _ in places} == set(range(9))


def test_without_padding_and_flip_it_is_the_identity():
  images = _images(3, 4, 5, 3)
  same = crop_flip(jax.random.key(0), images, padding=0, flip=False)
  np.testing.assert_array_equal(same, images)


def test_crop_flip_under_jit_and_vmap():
  images = _images(6, 8, 8, 3)
  keys = jax.random.split(jax.random.key(3), 4)
  eager = np.stack([crop_flip(key, images) for key in keys])
  jitted = jax.jit(crop_flip)
  np.testing.assert_array_equal([jitted(k, images) for k in keys], eager)
  mapped = jax.vmap(lambda key: crop_flip(key, images))(keys)
  np.testing.assert_array_equal(mapped, eager)
  assert len({output.tobytes() for output in eager}) == 4


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.int32])
def test_crop_flip_keeps_the_dtype(dtype):
  images = jnp.ones((2, 8, 8, 1), dtype)
  assert crop_flip(jax.random.key(0), images).dtype == dtype


def test_crop_flip_refuses_what_it_cannot_do():
  with pytest.raises(UserError, match='padding is -1'):
    crop_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1)), padding=-1)
  with pytest.raises(UserError, match=r'\(8, 8, 1\)'):
    crop_flip(jax.random.key(0), jnp.ones((8, 8, 1)))


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('compiled', [False, True])
def test_normalize_against_numpy(dtype, compiled):
  mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
  images = _images(4, 8, 8, 3).astype(dtype)
  function = jax.jit(normalize, static_argnums=(1, 2))
  got = (function if compiled else normalize)(images, mean, std)
  expected = (images.astype(np.float64) / 255 - mean) / std
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_normalize_wants_a_number_for_each_channel():
  with pytest.raises(UserError, match='one number for each channel'):
    normalize(np.zeros((1, 2, 2, 3), np.uint8), (0.5,), (0.5,))


@pytest.mark.once
def test_the_mean_grey_of_an_image_does_not_hang_on_its_padding():
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (3, 6, 7, 3)).astype(np.float32)
  padded = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)))
  size = jnp.array([[7, 6]] * 3)
  key = jax.random.key(1)
  found = color_jitter(key, padded, 0.5, size)
  wanted = color_jitter(key, images, 0.5)
  np.testing.assert_allclose(found[:, :6, :7], wanted, rtol=1e-5, atol=1e-3)
  fill = (10.0, 20.0, 30.0)
  task = Segmentation(3, mean=tuple(x / 255 for x in fill), std=(1 / 255,) * 3)
  batch = {'image': padded, 'label': np.zeros((3, 9, 9), np.uint8)}
  new = task.augment(
    key, {**batch, 'size': size}, fs.Data(crop=0, flip=False, jitter=0.5)
  )
  images_of_new = np.asarray(new['image']) + fill
  wanted = color_jitter(jax.random.fold_in(key, 1), images, 0.5)
  np.testing.assert_allclose(
    images_of_new[:, :6, :7], wanted, rtol=1e-5, atol=1e-3
  )
  rim = images_of_new[:, 6:]
  np.testing.assert_allclose(rim, np.broadcast_to(fill, rim.shape), atol=1e-3)
