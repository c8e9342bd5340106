"""Augmentation of images with boxes: what comes out tells what was drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastsnn_jax.data.image_ops import row_keys
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.augment import augment_boxes

pytestmark = pytest.mark.once

# A power of two: shares of it are exact, and so is where a centre lies.
ROWS, SIDE, PLACES = 16, 32, 3
MANY = 4000
SEEDS = st.integers(0, 2**31 - 1)
_plain = jax.jit(functools.partial(augment_boxes, distort=0.0))
_full = jax.jit(augment_boxes)
_strict = jax.jit(
  functools.partial(augment_boxes, distort=0.0, true_overlap=True)
)


def _ramps(rows=ROWS, side=SIDE):
  """Pixels that say where they are: channel 0 column, channel 1 row."""
  images = np.zeros((rows, side, side, 3), np.float32)
  images[..., 0] = np.arange(side)
  images[..., 1] = np.arange(side)[:, None]
  return images


def _objects(random, rows=ROWS, places=PLACES, grid=SIDE):
  """Boxes with corners on a grid, about a third of them not there."""
  low = random.integers(0, grid - 3, (rows, places, 2))
  high = np.minimum(low + random.integers(3, grid, (rows, places, 2)), grid)
  label = random.integers(0, 9, (rows, places)).astype(np.int32)
  label[random.random((rows, places)) < 0.3] = -1
  boxes = np.concatenate([low, high], -1) / grid * (label >= 0)[..., None]
  return boxes.astype(np.float32), label


def _window(image, size):
  """((x0, y0, x1, y1), mirrored): of which piece a row of ramps was made.

  The steps between pixels give the extent, the middle pixels the place.
  """
  side = len(image)
  lines = (image[0, :, 0], image[:, 0, 1])
  ends = []
  for line, length in zip(lines, size, strict=True):
    middle = line[side // 2 - 1 : side // 2 + 1].astype(np.float64)
    extent = abs(middle[1] - middle[0]) * length
    centre = (middle.mean() + 0.5) * length / side
    ends.append((centre - extent / 2, centre + extent / 2))
  window = np.array(ends).T.reshape(4)
  np.testing.assert_allclose(window, np.round(window), atol=2e-2)
  return np.round(window).astype(int), bool(lines[0][0] > lines[0][-1])


def _expected_boxes(boxes, label, size, window, mirrored):
  """Spec 4, steps 4 to 6, one box at a time."""
  (x0, y0, x1, y1), (width, height) = window, size
  whole = (x0, y0, x1, y1) == (0, 0, width, height)
  new, labels = np.zeros_like(boxes), np.full_like(label, -1)
  for i, (box, name) in enumerate(zip(boxes, label, strict=True)):
    box = box.astype(np.float64) * [width, height, width, height]
    x, y = (box[:2] + box[2:]) / 2
    if name < 0 or not (whole or (x0 < x < x1 and y0 < y < y1)):
      continue
    box = np.clip(box, [x0, y0, x0, y0], [x1, y1, x1, y1])
    box = (box - [x0, y0, x0, y0]) / [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
    if mirrored:
      box[[0, 2]] = 1 - box[[2, 0]]
    new[i], labels[i] = box, name
  return new, labels


def _pillow(image, window, mirrored):
  """The window of a float image at the image's own size."""
  x0, y0, x1, y1 = window
  planes = [
    Image.fromarray(np.ascontiguousarray(plane[y0:y1, x0:x1])).resize(
      plane.shape, Image.Resampling.BILINEAR
    )
    for plane in np.moveaxis(image, -1, 0)
  ]
  image = np.stack(planes, -1)
  return image[:, ::-1] if mirrored else image


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_images_and_boxes_are_those_of_one_window(seed):
  random = np.random.default_rng(seed)
  boxes, label = _objects(random)
  images = _ramps()
  images[..., 2] = random.uniform(0, 255, images.shape[:3])
  batch = {'image': images, 'boxes': boxes, 'label': label}
  new = jax.tree.map(np.asarray, _plain(jax.random.key(seed), batch))
  for i in range(ROWS):
    window, mirrored = _window(new['image'][i], (SIDE, SIDE))
    width, height = window[2:] - window[:2]
    assert min(width, height) >= 0.3 * SIDE - 1
    assert (height + 1) / (width - 1) >= 0.5
    assert (height - 1) / (width + 1) <= 2
    np.testing.assert_allclose(
      new['image'][i], _pillow(images[i], window, mirrored), atol=2e-3
    )
    expected = _expected_boxes(
      boxes[i], label[i], (SIDE, SIDE), window, mirrored
    )
    np.testing.assert_allclose(new['boxes'][i], expected[0], atol=1e-6)
    np.testing.assert_array_equal(new['label'][i], expected[1])
  assert new['boxes'].min() >= 0
  assert new['boxes'].max() <= 1
  # An image that had objects has some.
  assert np.all((new['label'] >= 0).any(1) == (label >= 0).any(1))


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_windows_are_drawn_in_pixels_of_the_picture(seed):
  random = np.random.default_rng(seed)
  size = random.integers(20, 500, (ROWS, 2)).astype(np.int32)
  boxes, label = _objects(random)
  batch = {'image': _ramps(), 'boxes': boxes, 'label': label, 'size': size}
  new = jax.tree.map(np.asarray, _plain(jax.random.key(seed), batch))
  np.testing.assert_array_equal(new['size'], size)
  for i, (width, height) in enumerate(size):
    window, mirrored = _window(new['image'][i], (width, height))
    x0, y0, x1, y1 = window
    if (x0, y0, x1, y1) != (0, 0, width, height):
      assert x1 - x0 >= 0.3 * width - 1
      assert y1 - y0 >= 0.3 * height - 1
      assert (y1 - y0 + 1) / (x1 - x0 - 1) >= 0.5
      assert (y1 - y0 - 1) / (x1 - x0 + 1) <= 2
    at = (np.arange(SIDE) + 0.5) / SIDE
    for line, low, high, length, turned in (
      (new['image'][i, 0, :, 0], x0, x1, width, mirrored),
      (new['image'][i, :, 0, 1], y0, y1, height, False),
    ):
      place = np.clip(low + at * (high - low), low + 0.5, high - 0.5)
      place = np.clip(place / length * SIDE - 0.5, 0, SIDE - 1)
      np.testing.assert_allclose(
        line, place[::-1] if turned else place, atol=1e-4
      )
    expected = _expected_boxes(boxes[i], label[i], size[i], window, mirrored)
    np.testing.assert_allclose(new['boxes'][i], expected[0], atol=1e-5)
    np.testing.assert_array_equal(new['label'][i], expected[1])


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.booleans())
def test_a_painted_object_stays_in_its_box(seed, sized):
  random = np.random.default_rng(seed)
  boxes, label = _objects(random)
  images = np.zeros((ROWS, SIDE, SIDE, 3), np.float32)
  for i, c in np.argwhere(label >= 0):  # each object has a channel of its own
    x1, y1, x2, y2 = np.round(boxes[i, c] * SIDE).astype(int)
    images[i, y1:y2, x1:x2, c] = 255
  batch = {'image': images, 'boxes': boxes, 'label': label}
  if sized:
    batch['size'] = random.integers(60, 500, (ROWS, 2)).astype(np.int32)
  new = jax.tree.map(np.asarray, _plain(jax.random.key(seed), batch))
  for i, c in np.argwhere(new['label'] >= 0):
    rows, columns = np.nonzero(new['image'][i, ..., c] > 127)
    if not len(rows):  # less than a pixel is left of it
      assert np.min(np.diff(new['boxes'][i, c].reshape(2, 2), axis=0)) < 0.05
      continue
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(painted, new['boxes'][i, c] * SIDE, atol=1.01)


def _simulated(box, size, strict):
  """The reference's loop for one box, often: windows in shares, None if whole.

  The picture is a square of `size` pixels.
  """
  random, found = np.random.default_rng(1), []
  centre = (box[:2] + box[2:]) / 2
  while len(found) < MANY:
    mode = random.integers(6)
    if mode == 5:
      found.append(None)
      continue
    least = (0.1, 0.3, 0.7, 0.9, 0)[mode] if strict else 0
    extent = random.uniform(0.3, 1, (50, 2))
    start = random.uniform(0, 1 - extent)
    windows = np.concatenate([start, start + extent], 1)
    windows = np.floor(windows * size) / size
    start = windows[:, :2]
    shape = extent[:, 1] / extent[:, 0]
    both = np.minimum(windows[:, 2:], box[2:]) - np.maximum(start, box[:2])
    both = np.prod(np.maximum(both, 0), 1)
    union = (
      np.prod(windows[:, 2:] - start, 1) + np.prod(box[2:] - box[:2]) - both
    )
    valid = (shape >= 0.5) & (shape <= 2) & (both / union >= least)
    valid &= np.all((start < centre) & (centre < windows[:, 2:]), 1)
    if valid.any():
      found.append(windows[np.argmax(valid)])
  return found


@pytest.mark.parametrize(
  ('box', 'size', 'strict'),
  [
    ((0.2, 0.3, 0.8, 0.8), 4000, False),  # all but one in six are cropped
    ((0.2, 0.3, 0.8, 0.8), 13, False),  # corners are cut to integers
    ((0.0, 0.0, 0.006, 0.006), 4000, False),  # a mode often fails
    ((0.05, 0.05, 0.9, 0.9), 4000, True),  # each mode can be met
    ((0.3, 0.3, 0.5, 0.5), 4000, True),  # most modes cannot
  ],
)
def test_crops_have_the_law_of_the_reference(box, size, strict):
  count, box = MANY, np.array(box)
  batch = {
    'image': _ramps(count, 4),
    'boxes': np.tile(box, (count, 1, 1)).astype(np.float32),
    'label': np.zeros((count, 1), np.int32),
    'size': np.full((count, 2), size, np.int32),
  }
  new = (_strict if strict else _plain)(jax.random.key(3), batch)
  images = np.asarray(new['image'], np.float64)
  extent = (
    np.abs(images[:, 0, 2, 0] - images[:, 0, 1, 0]),
    (np.abs(images[:, 2, 0, 1] - images[:, 1, 0, 1])),
  )
  start = [
    (images[:, 0, 1:3, 0].mean(1) + 0.5) / 4 - extent[0] / 2,
    (images[:, 1:3, 0, 1].mean(1) + 0.5) / 4 - extent[1] / 2,
  ]
  whole = np.isclose(extent[0], 1) & np.isclose(extent[1], 1)
  mirrored = images[:, 0, 1, 0] > images[:, 0, 2, 0]
  assert abs(mirrored.mean() - 0.5) < 0.04

  expected = _simulated(box, size, strict)
  windows = np.array([window for window in expected if window is not None])
  assert abs(whole.mean() - (1 - len(windows) / count)) < 0.04
  for got, wanted in (
    (start[0], windows[:, 0]),
    (start[1], windows[:, 1]),
    (extent[0], windows[:, 2] - windows[:, 0]),
    (extent[0] * extent[1], np.prod(windows[:, 2:] - windows[:, :2], 1)),
  ):
    # Kolmogorov and Smirnov: the two distributions nowhere far apart.
    got = np.sort(got[~whole])
    at = np.linspace(0, 1, 101) + 1e-4
    apart = np.searchsorted(got, at) / len(got) - np.searchsorted(
      np.sort(wanted), at
    ) / len(wanted)
    assert np.abs(apart).max() < 2.2 * np.sqrt(1 / len(got) + 1 / len(wanted))


def test_most_images_are_cropped_and_half_are_mirrored():
  count = MANY
  batch = {
    'image': _ramps(count, 4),
    'boxes': np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (count, 1, 1)),
    'label': np.zeros((count, 1), np.int32),
    'size': np.full((count, 2), 400, np.int32),
  }
  batch['label'][::2] = -1
  new = jax.tree.map(np.asarray, _plain(jax.random.key(0), batch))
  image = new['image']
  whole = np.isclose(np.abs(image[:, 0, 0, 0] - image[:, 0, 3, 0]), 3)
  assert np.all(whole[::2])  # no object, no crop
  assert np.all(new['label'][::2] == -1)
  assert np.all(new['boxes'][::2] == 0)
  assert abs(whole[1::2].mean() - 1 / 6) < 0.04
  assert abs((image[:, 0, 0, 0] > image[:, 0, 3, 0]).mean() - 0.5) < 0.04


def test_a_sample_with_its_key_is_the_same_in_any_batch():
  random = np.random.default_rng(0)
  boxes, label = _objects(random)
  images = random.integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
  size = np.full((ROWS, 2), 90, np.int32)
  batch = {'image': images, 'boxes': boxes, 'label': label, 'size': size}
  batch |= {'mask': np.ones(ROWS), 'difficult': label > 4}
  key = jax.random.key(5)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(ROWS))
  whole = _full(keys, batch)
  order = random.permutation(ROWS)
  other = _full(keys[order], {name: x[order] for name, x in batch.items()})
  for name, value in other.items():
    np.testing.assert_array_equal(value, whole[name][order])
  # One key stands for those with the rows' numbers folded in.
  for name, value in _full(key, batch).items():
    np.testing.assert_array_equal(value, whole[name])
  assert {'mask', 'difficult', 'size'} < set(whole)
  np.testing.assert_array_equal(whole['difficult'], label > 4)
  different = _full(jax.random.key(6), batch)
  assert not np.array_equal(different['image'], whole['image'])
  assert _full._cache_size() == 2  # one key, and keys; no more


def test_keys_of_the_old_kind_do_as_well():
  keys = jax.random.split(jax.random.key(1), 3)
  assert jnp.all(row_keys(jax.random.key_data(keys), 3) == keys)
  old = row_keys(jax.random.PRNGKey(7), 3)
  assert jnp.all(old == row_keys(jax.random.key(7), 3))


def test_each_step_can_be_left_out():
  random = np.random.default_rng(0)
  boxes, label = _objects(random)
  images = random.uniform(0, 255, (ROWS, SIDE, SIDE, 3)).astype(np.float32)
  batch = {'image': images, 'boxes': boxes, 'label': label}

  def run(**options):
    function = jax.jit(functools.partial(augment_boxes, distort=0.0, **options))
    return jax.tree.map(np.asarray, function(jax.random.key(1), batch))

  same = run(crop=False, flip=False)
  assert same['image'].dtype == np.float32
  for name, value in batch.items():
    np.testing.assert_array_equal(same[name], value)
  turned = run(crop=False)
  mirrored = np.any(turned['image'] != images, (1, 2, 3))
  assert 3 < mirrored.sum() < 13
  np.testing.assert_array_equal(
    turned['image'][mirrored], images[mirrored, :, ::-1]
  )
  swapped = boxes[..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
  expected = np.where(mirrored[:, None, None], swapped, boxes)
  expected[label < 0] = 0
  np.testing.assert_allclose(turned['boxes'], expected, atol=1e-6)
  # The same windows, and the same images are mirrored, with and without.
  cropped = run(flip=False)['image']
  both = np.asarray(_plain(jax.random.key(1), batch)['image'])
  np.testing.assert_allclose(both[~mirrored], cropped[~mirrored], atol=1e-3)
  np.testing.assert_allclose(
    both[mirrored], cropped[mirrored, :, ::-1], atol=1e-3
  )


def test_rows_that_fill_up_a_batch_do_no_harm():
  batch = {
    'image': _ramps(),
    'boxes': np.zeros((ROWS, PLACES, 4), np.float32),
    'label': np.full((ROWS, PLACES), -1, np.int32),
    'size': np.zeros((ROWS, 2), np.int32),
  }
  batch['label'][::2] = 0
  new = _plain(jax.random.key(0), batch)
  assert all(np.all(np.isfinite(value)) for value in new.values())


def test_what_cannot_be_augmented_is_refused():
  batch = {
    'image': jnp.zeros((2, 8, 8, 3)),
    'boxes': jnp.zeros((2, 1, 4)),
    'label': jnp.zeros((2, 1), int),
  }
  key = jax.random.key(0)

  def refused(match, key=key, distort=1.0, **changed):
    function = functools.partial(augment_boxes, distort=distort)
    with pytest.raises(UserError, match=match):
      jax.eval_shape(function, key, {**batch, **changed})

  refused('between 0', distort=-1.0)
  refused('between 0', distort=3.0)
  refused(r'\(2, 8, 9, 3\)', image=jnp.zeros((2, 8, 9, 3)))
  refused(r'\(2, 8\)', image=jnp.zeros((2, 8)))
  refused(r'\(2, 2, 4\)', boxes=jnp.zeros((2, 2, 4)))
  refused('one for each image', key=jax.random.split(key, 3))
