"""Anchors that are fitted to the boxes of a data set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.anchors import fit


def boxes_of(shapes):
  """One image; widths and heights in shares, all from the corner."""
  shapes = np.array(shapes, np.float64)
  boxes = np.concatenate([np.zeros_like(shapes), shapes], -1)[None]
  return boxes, np.zeros(boxes.shape[:2], int)


def similar(shape, anchor):
  both = np.minimum(shape, anchor).prod()
  return both / (np.prod(shape) + np.prod(anchor) - both)


def test_groups_of_one_shape_are_found():
  boxes, label = boxes_of([(0.1, 0.2)] * 3 + [(0.5, 0.25)] * 2 + [(0.9, 0.9)])
  assert fit(boxes, label, 3, 10) == ((1.0, 2.0), (5.0, 2.5), (9.0, 9.0))
  label[0, 3:] = -1  # places without an object
  assert fit(boxes, label, 1, 10) == ((1.0, 2.0),)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4))
@settings(max_examples=50)
def test_each_anchor_is_the_mean_of_the_objects_it_is_most_like(seed, count):
  random = np.random.default_rng(seed)
  shapes = random.uniform(0.05, 1, (12, 2))
  boxes, label = boxes_of(shapes)
  anchors = fit(boxes, label, count, 1)
  assert len(anchors) == count
  areas = [w * h for w, h in anchors]
  assert areas == sorted(areas)
  groups = [[] for _ in anchors]
  margins = []
  for shape in shapes:
    scores = [similar(shape, anchor) for anchor in anchors]
    groups[int(np.argmax(scores))].append(shape)
    if count > 1:
      margins.append(np.diff(np.sort(scores)[-2:])[0])
  if margins and min(margins) < 0.01:
    return  # anchors are rounded: a near tie may fall the other way
  for anchor, group in zip(anchors, groups, strict=True):
    if group:
      np.testing.assert_allclose(anchor, np.mean(group, 0), atol=1e-3)


def test_more_anchors_than_objects_are_refused():
  boxes, label = boxes_of([(0.1, 0.2)])
  with pytest.raises(UserError, match=r'anchors=2, but .* 1 objects'):
    fit(boxes, label, 2, 10)
