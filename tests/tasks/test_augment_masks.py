"""Augmentation of images with masks: every outcome is one of a known list."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.segmentation.augment import SCALES, augment_masks

ROWS, HEIGHT, WIDTH, SIDE = 16, 6, 9, 8
FILL = (123.675, 116.28, 103.53)
SEEDS = st.integers(0, 2**31 - 1)
_augment = jax.jit(functools.partial(augment_masks, side=SIDE, fill=FILL))


def _bilinear(image, new):
  """One axis after the other, as OpenCV: half-pixel, borders repeated."""
  for axis, length in enumerate(new):
    old = image.shape[axis]
    place = (np.arange(length) + 0.5) * old / length - 0.5
    place = np.clip(place, 0, old - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, old - 1)
    share = np.expand_dims(place - low, tuple(range(1, image.ndim - axis)))
    image = np.take(image, low, axis) * (1 - share) + (
      np.take(image, high, axis) * share
    )
  return image


def _variants(image, label):
  """{mask: [(image, scale, offset, mirrored)]} of an image (S3.1)."""
  found = {}
  for scale in SCALES:
    new = [int(length * scale) for length in label.shape]
    y, x = (
      np.floor(np.arange(n) * old / n).astype(int)
      for n, old in zip(new, label.shape, strict=True)
    )
    pads = [(0, max(SIDE - n, 0)) for n in new]
    mask = np.pad(label[y][:, x], pads, constant_values=255)
    inside = np.pad(np.ones((*new, 1)), (*pads, (0, 0)))
    scaled = np.pad(_bilinear(image, new), (*pads, (0, 0)))
    scaled = scaled + np.array(FILL) * (1 - inside)
    # The last offset is never drawn unless it is the only one.
    places = [range(max(n - SIDE, 1)) for n in new]
    for i in places[0]:
      for j in places[1]:
        for mirrored in (False, True):
          step = -1 if mirrored else 1
          piece = np.s_[i : i + SIDE, j : j + SIDE]
          found.setdefault(mask[piece][:, ::step].tobytes(), []).append(
            (scaled[piece][:, ::step], scale, (i, j), mirrored)
          )
  return found


def _outcome(image, mask, variants):
  """The draws that made an image and its mask, found by comparison."""
  hits = [
    draws
    for expected, *draws in variants[mask.tobytes()]
    if np.allclose(image, expected, atol=1e-3)
  ]
  assert len(hits) == 1
  return hits[0]


def _batch(random, rows=ROWS, height=HEIGHT, width=WIDTH):
  """Each pixel of a mask has a label of its own, so that outcomes differ."""
  shape = (rows, height, width)
  label = np.broadcast_to(np.arange(height * width).reshape(shape[1:]), shape)
  return {
    'image': random.uniform(0, 255, (*shape, 3)).astype(np.float32),
    'label': label.astype(np.int32),
  }


@pytest.mark.once
@settings(max_examples=4, deadline=None)
@given(SEEDS)
def test_images_and_masks_are_scaled_padded_cropped_and_mirrored(seed):
  batch = _batch(np.random.default_rng(seed))
  new = jax.tree.map(np.asarray, _augment(jax.random.key(seed), batch))
  assert new['image'].dtype == np.float32
  assert new['label'].dtype == np.int32
  for i in range(ROWS):
    variants = _variants(batch['image'][i].astype(float), batch['label'][i])
    _outcome(new['image'][i], new['label'][i], variants)


def test_only_the_real_part_of_an_array_counts():
  batch = _batch(np.random.default_rng(0))
  size = np.tile([[7, 5], [WIDTH, HEIGHT], [1, 1], [3, 6]], (ROWS // 4, 1))
  for i, (width, height) in enumerate(size):
    for name, junk in (('image', 1e4), ('label', 99)):
      batch[name][i, height:] = junk
      batch[name][i, :, width:] = junk
  batch |= {'size': size.astype(np.int32), 'mask': np.ones(ROWS)}
  new = jax.tree.map(np.asarray, _augment(jax.random.key(0), batch))
  assert np.all(new['size'] == SIDE)
  assert np.all(new['mask'] == 1)
  for i, (width, height) in enumerate(size):
    if width == 1:  # half of one pixel: ours is one, the official code fails
      assert set(np.unique(new['label'][i])) == {0, 255}
      continue
    image = batch['image'][i, :height, :width].astype(float)
    variants = _variants(image, batch['label'][i, :height, :width])
    _outcome(new['image'][i], new['label'][i], variants)


@pytest.mark.once
def test_scales_offsets_and_mirror_images_are_equally_likely():
  count = 4000
  batch = {
    'image': np.zeros((count, HEIGHT, WIDTH, 3), np.uint8),
    'label': _batch(np.random.default_rng(0))['label'][:1].astype(np.uint8),
  }
  batch['label'] = np.repeat(batch['label'], count, 0)
  new = np.asarray(_augment(jax.random.key(0), batch)['label'])
  assert new.dtype == np.uint8
  variants = _variants(np.zeros((HEIGHT, WIDTH, 3)), batch['label'][0])
  # Small images tell no scale from another by their masks alone: count what
  # the masks' law is.
  expected = {}
  for mask, draws in variants.items():
    for _, scale, _, _ in draws:
      new_size = [int(n * scale) for n in (HEIGHT, WIDTH)]
      places = np.prod([max(n - SIDE, 1) for n in new_size])
      expected[mask] = expected.get(mask, 0) + count / (14 * places)
  found = dict.fromkeys(expected, 0)
  for mask in new:
    found[mask.tobytes()] += 1
  off = [(found[m] - n) / np.sqrt(n) for m, n in expected.items()]
  assert max(map(abs, off)) < 6
  assert np.sum(np.square(off)) < len(off) + 6 * np.sqrt(2 * len(off))


@pytest.mark.once
def test_a_sample_with_its_key_is_the_same_in_any_batch():
  batch = _batch(np.random.default_rng(1))
  key = jax.random.key(2)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(ROWS))
  whole = jax.tree.map(np.asarray, _augment(keys, batch))
  for name, value in _augment(key, batch).items():
    np.testing.assert_array_equal(value, whole[name])
  rows = np.array([7, 3, 3])
  part = _augment(keys[rows], {name: x[rows] for name, x in batch.items()})
  for name, value in part.items():
    np.testing.assert_allclose(value, whole[name][rows], atol=1e-3)
  count = _augment._cache_size()
  other = _augment(jax.random.key(9), _batch(np.random.default_rng(4)))
  assert _augment._cache_size() == count
  assert not np.array_equal(other['label'], whole['label'])


@pytest.mark.parametrize('flip', [False, True])
def test_one_scale_and_a_side_that_fits_leave_all_but_the_mirror(flip):
  batch = _batch(np.random.default_rng(0), height=SIDE, width=SIDE)
  function = functools.partial(
    augment_masks, side=SIDE, fill=FILL, scales=(1,), flip=flip
  )
  new = jax.tree.map(np.asarray, jax.jit(function)(jax.random.key(0), batch))
  turned = np.any(new['label'] != batch['label'], (1, 2))
  assert (3 < turned.sum() < 13) if flip else not turned.any()
  for name, value in batch.items():
    np.testing.assert_array_equal(new[name][~turned], value[~turned])
    np.testing.assert_array_equal(new[name][turned], value[turned, :, ::-1])


@pytest.mark.last_bit
def test_sizes_are_those_of_exact_arithmetic():
  """int(0.29 · 100) is 29, though 0.29 in binary is less."""
  batch = {
    'image': np.full((1, 1, 100, 1), 9.0, np.float32),
    'label': np.zeros((1, 1, 100), np.uint8),
  }
  function = functools.partial(
    augment_masks, side=40, fill=(0,), scales=(0.29,), flip=False
  )
  new = jax.jit(function)(jax.random.key(0), batch)
  assert (np.asarray(new['label'])[0, 0] == 0).sum() == 29
  np.testing.assert_array_equal(new['image'][0, 0, :, 0], [9] * 29 + [0] * 11)


def test_what_cannot_be_augmented_is_refused():
  images, label = jnp.zeros((2, 4, 5, 3)), jnp.zeros((2, 4, 5), int)

  def refused(match, images=images, label=label, **options):
    options = {'side': 4, 'fill': FILL, **options}
    batch = {'image': images, 'label': label}
    with pytest.raises(UserError, match=match):
      augment_masks(jax.random.key(0), batch, **options)

  refused(r'\(2, 5, 4\)', label=label.mT)
  refused(r'\(4, 5, 3\)', images=images[0])
  refused('one number for each channel', fill=(0, 0))
  refused('above 0', scales=())
  refused('above 0', scales=(1, 0.0))
  refused('side=0', side=0)
