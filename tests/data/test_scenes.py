"""Drawn scenes: the same everywhere, boxes and masks that fit."""

import functools
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsnn_jax.data.readers import digits, scenes
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import train
from fastsnn_jax.experiment.config import Experiment

FEW = {'train': 60, 'validation': 20, 'test': 20}
PARTS = tuple(FEW)
# Of the first scenes of each size; a change makes another data set.
HASHES = {
  32: 'd34c6431426fa540',
  96: 'ff8733a2f24a289a',
  160: 'a8ba4d99f804d842',
}


@functools.cache
def both():
  return scenes.detection(**FEW), scenes.segmentation(**FEW)


@functools.cache
def digits_to_draw():
  train = digits.load().train
  return train['image'][..., 0], train['label']


def words(seed):
  return np.random.PCG64(seed).random_raw(scenes.WORDS)


@pytest.mark.parametrize('size', [32, 96, 160])
def test_scenes_are_the_same_for_good(size):
  found, masks = (
    make(size, 3, 1, 1) for make in (scenes.detection, scenes.segmentation)
  )
  digest = hashlib.sha256()
  for part in PARTS:
    boxes, pixels = getattr(found, part), getattr(masks, part)
    np.testing.assert_array_equal(boxes['image'], pixels['image'])
    whole = np.round(boxes['boxes'] * size).astype('<i4')
    for array in (boxes['image'], whole, pixels['label']):
      digest.update(array.tobytes())
  assert digest.hexdigest()[:16] == HASHES[size]


@pytest.mark.parametrize('part', PARTS)
def test_shapes_types_and_ranges(part):
  found, masks = (getattr(x, part) for x in both())
  count = FEW[part]
  assert found.arrays.keys() == {'image', 'boxes', 'label'}
  assert masks.arrays.keys() == {'image', 'label'}
  assert found['image'].shape == (count, 96, 96, 3)
  assert found['boxes'].shape == (count, 5, 4)
  assert found['label'].shape == (count, 5)
  assert masks['label'].shape == (count, 96, 96)
  assert found['image'].dtype == masks['label'].dtype == np.uint8
  assert found['boxes'].dtype == np.float32
  assert found['label'].dtype == np.int32
  assert set(np.unique(found['label'])) <= set(range(-1, 10))
  assert set(np.unique(masks['label'])) <= {*range(11), scenes.IGNORED}
  there = found['label'] >= 0
  assert there[:, 0].all()  # every scene has a digit
  assert (np.diff(there.astype(int)) <= 0).all()  # and gaps come last
  boxes = found['boxes']
  assert not boxes[~there].any()
  assert (boxes >= 0).all()
  assert (boxes <= 1).all()
  assert (boxes[there][:, 2:] > boxes[there][:, :2]).all()


def test_what_a_set_says_of_itself():
  found, masks = both()
  assert found.name == masks.name == 'scenes'
  assert found.classes == tuple('0123456789')
  assert masks.classes == ('background', *found.classes)
  share = found.train['image'].reshape(-1, 3) / 255
  np.testing.assert_allclose(found.mean, share.mean(0), atol=1e-4)
  np.testing.assert_allclose(found.std, share.std(0), atol=1e-4)
  assert (found.mean, found.std) == (masks.mean, masks.std)
  numbers = np.bincount((found.train['label'] >= 0).sum(1), minlength=6)
  assert numbers[0] == 0
  assert (numbers[1:] > 0).all()


def test_the_count_does_not_change_a_scene():
  few = scenes.detection(**{**FEW, 'train': 2, 'test': 1})
  for key, value in few.train.arrays.items():
    np.testing.assert_array_equal(value, both()[0].train[key][:2])
  assert (few.test['image'] != few.train['image'][:1]).mean() > 0.9


def test_boxes_are_tight_around_digits_that_stand_alone():
  found, masks = (x.train for x in both())
  alone = np.flatnonzero((found['label'] >= 0).sum(1) == 1)
  assert len(alone) > 5
  for i in alone:
    inked = masks['label'][i] != 0
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    np.testing.assert_allclose(found['boxes'][i, 0] * 96, box, atol=1e-4)


def test_the_last_digit_hides_the_others():
  found, masks = (x.train for x in both())
  for boxes, label, pixels in zip(
    found['boxes'], found['label'], masks['label'], strict=True
  ):
    last = (label >= 0).sum() - 1
    x1, y1, x2, y2 = np.round(boxes[last] * 96).astype(int)
    inside = pixels[y1:y2, x1:x2] == label[last] + 1
    assert inside.mean() > 0.1
    assert set(np.unique(pixels)) - {0, 255} <= set(label[label >= 0] + 1)


@given(st.integers(0, 2**32), st.sampled_from([32, 64, 96, 224]))
def test_half_of_each_digit_is_in_sight(seed, size):
  _, things = scenes.draw(words(seed), *digits_to_draw(), size)
  assert 1 <= len(things) <= scenes.MOST
  stack = np.zeros((len(things), size, size), bool)
  for ink, thing in zip(stack, things, strict=True):
    ink[thing.window] = thing.cover > 0
    assert ink.sum() == np.count_nonzero(thing.cover)  # none fell off
    for edge in (0, -1):
      assert thing.cover[edge].any()
      assert thing.cover[:, edge].any()
    assert thing.cover.min() >= 0
    assert thing.cover.max() <= 256
  for i, ink in enumerate(stack):
    seen = ink & ~stack[i + 1 :].any(0)
    assert 2 * seen.sum() >= ink.sum()


@given(st.integers(0, 2**32))
def test_digits_stand_out_from_the_ground(seed):
  """Where a digit is opaque and in front, it has one colour, unlike others."""
  image, things = scenes.draw(words(seed), *digits_to_draw(), 96)
  opaque = image[things[-1].window][things[-1].cover == 256].astype(int)
  assert np.ptp(opaque, 0).max(initial=0) <= 1
  ground = np.ones(image.shape[:2], bool)
  for thing in things:
    ground[thing.window] &= thing.cover == 0
  if len(opaque):
    assert np.abs(opaque[0] - image[ground].mean(0)).sum() > 60


def test_no_digit_is_in_two_splits():
  embedded = digits.load()
  seen = {part: scenes.digits_of(part) for part in PARTS}
  assert not set(seen['train']) & set(seen['validation'])
  assert len(seen['train']) + len(seen['validation']) == 1437
  assert len(seen['test']) == 360
  held = embedded.train['label'][seen['validation']]
  assert np.ptp(np.bincount(held)) <= 1  # a tenth of every class
  for part in PARTS:
    source = embedded.test if part == 'test' else embedded.train
    seen[part] = {source['image'][i].tobytes() for i in seen[part]}
  assert not seen['train'] & seen['validation']
  assert not seen['test'] & (seen['train'] | seen['validation'])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'size': 100}, 'size is 100; .* multiple of 32'),
    ({'size': 0}, 'size is 0'),
  ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    scenes.segmentation(**changes)


def test_training_is_judged_on_the_validation_scenes():
  found = both()[0]
  fitting, held_out = train.held_out(
    Experiment('small_yolo', select='last'), found
  )
  assert fitting is found.train
  assert held_out is found.validation
