"""VOC's average precision: golden, and against a loop over detections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import golden

from fastsnn_jax.tasks.detection import average_precision
from fastsnn_jax.tasks.detection.average_precision import voc


def padded(rows, image, count, fill):
  """Rows of a flat list by image: [images, places, ...]."""
  places = max(np.bincount(image, minlength=count).max(), 1)
  out = np.full((count, places, *rows.shape[1:]), fill, float)
  used = np.zeros(count, int)
  for row, i in zip(rows, image, strict=True):
    out[i, used[i]] = row
    used[i] += 1
  return out


def flat(name):
  """A golden case as (predictions, truth)."""
  data = golden.load('det_voc_ap.npz')
  truth = data['gt']
  images = truth[:, 0].max() + 1
  found = [data[f'{name}/det'] for name in ('dog', 'cat')]
  kinds = np.repeat([0, 1], [len(part) for part in found])
  found = np.concatenate(found)
  image = found[:, 0].astype(int)
  predictions = {
    'boxes': padded(found[:, 2:], image, images, 0),
    'scores': padded(found[:, 1], image, images, 0),
    'classes': padded(kinds, image, images, -1),
  }
  objects = {
    'boxes': padded(truth[:, 2:6], truth[:, 0], images, 0),
    'label': padded(truth[:, 1], truth[:, 0], images, -1),
    'difficult': padded(truth[:, 6], truth[:, 0], images, 0),
  }
  return data, predictions, objects


def test_both_metrics_and_the_curves_are_the_reference_s():
  data, predictions, truth = flat('dog')
  found = voc(predictions, truth, 2)
  for c, name in enumerate(('dog', 'cat')):
    recall, precision = found['curves'][c]
    np.testing.assert_allclose(recall, data[f'{name}/rec'], rtol=1e-12)
    np.testing.assert_allclose(precision, data[f'{name}/prec'], rtol=1e-12)
    assert found['area'][c] == pytest.approx(data[f'{name}/ap_area'], rel=1e-12)
    eleven = pytest.approx(data[f'{name}/ap_07'], rel=1e-12)
    assert found['11point'][c] == eleven
  assert found['mean_area'] == pytest.approx(np.mean(found['area']))


def oracle(predictions, truth, c, overlap):
  """(recall, precision) of a class, as VOC's devkit does it."""
  taken = np.zeros(truth['label'].shape, bool)
  difficult = truth['difficult'].astype(bool)
  total = np.sum((truth['label'] == c) & ~difficult)
  rows = [
    (-predictions['scores'][i, k], i, k)
    for i, k in np.argwhere(predictions['classes'] == c)
  ]
  hits = misses = 0
  curve = []
  for _, i, k in sorted(rows, key=lambda row: row[0]):  # stable
    x1, y1, x2, y2 = predictions['boxes'][i, k]
    best, at = -1.0, None
    for g in np.flatnonzero(truth['label'][i] == c):
      a1, b1, a2, b2 = truth['boxes'][i, g]
      both = max(min(x2, a2) - max(x1, a1), 0) * max(
        min(y2, b2) - max(y1, b1), 0
      )
      union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - both
      if both / union > best:
        best, at = both / union, g
    if best > overlap:
      if not difficult[i, at]:
        hits, misses = hits + (not taken[i, at]), misses + taken[i, at]
        taken[i, at] = True
    else:
      misses += 1
    curve.append((hits / max(total, 1), hits / max(hits + misses, 1)))
  return total, np.array(curve).reshape(-1, 2).T


def drawn(seed, images=7, places=9, objects=4):
  """Boxes on a coarse grid, so that ties and repeated hits occur."""
  rng = np.random.default_rng(seed)

  def boxes(*shape):
    low = rng.integers(0, 3, (*shape, 2))
    return np.concatenate([low, low + rng.integers(1, 4, (*shape, 2))], -1) / 8

  predictions = {
    'boxes': boxes(images, places),
    'scores': rng.integers(1, 6, (images, places)) / 8,
    'classes': rng.integers(-1, 3, (images, places)),
  }
  truth = {
    'boxes': boxes(images, objects),
    'label': rng.integers(-1, 3, (images, objects)),
    'difficult': rng.random((images, objects)) < 0.3,
  }
  return predictions, truth


@given(seed=st.integers(0, 2**16))
def test_by_a_loop_over_detections(seed):
  predictions, truth = drawn(seed)
  found = voc(predictions, truth, 4)
  for c in range(4):
    total, (recall, precision) = oracle(predictions, truth, c, 0.5)
    assert found['objects'][c] == total
    assert found['detections'][c] == len(recall)
    if not total:
      assert np.isnan(found['area'][c])
      assert np.isnan(found['11point'][c])
      continue
    np.testing.assert_allclose(found['curves'][c], (recall, precision))
    area, reached = 0.0, 0.0
    for r in np.unique(recall):
      area += (r - reached) * precision[recall >= r].max()
      reached = r
    assert found['area'][c] == pytest.approx(area)
    eleven = [
      max(precision[recall >= r], default=0) for r in np.arange(0, 1.1, 0.1)
    ]
    assert found['11point'][c] == pytest.approx(np.mean(eleven))
  known = [value for value in found['area'] if not np.isnan(value)]
  assert found['mean_area'] == pytest.approx(np.mean(known))


def test_images_are_taken_a_few_at_a_time(monkeypatch):
  predictions, truth = drawn(3)
  whole = voc(predictions, truth, 3)
  monkeypatch.setattr(average_precision, '_CHUNK', 2)
  again = voc(predictions, truth, 3)
  assert whole['area'] == again['area']


def test_nothing_found_and_nothing_to_find():
  predictions, truth = drawn(0)
  none = {**predictions, 'classes': np.full((7, 9), -1)}
  assert voc(none, truth, 3)['area'] == [0, 0, 0]
  assert voc(none, truth, 3)['mean_11point'] == 0
  empty = {'boxes': np.zeros((7, 0, 4)), 'label': np.zeros((7, 0))}
  found = voc(predictions, empty, 3)
  assert np.isnan(found['area']).all()
  assert found['mean_area'] == 0


def test_the_reference_s_rounding_makes_ties_and_moves_corners():
  size = np.array([[100, 50]])
  truth = {
    'boxes': np.array([[[0.1, 0.2, 0.3, 0.6]]], 'f'),
    'label': np.array([[0]]),
    'size': size,
  }
  # The better box has the higher score by less than the rounding.
  good = truth['boxes'][0, 0].astype(float)
  boxes = np.array([[good + 0.5, good]])
  predictions = {
    'boxes': boxes,
    'scores': np.array([[0.70012, 0.70031]]),
    'classes': np.zeros((1, 2), int),
  }
  assert voc(predictions, truth, 1)['area'] == [1.0]
  assert voc(predictions, truth, 1, rounded=True)['area'] == [0.5]
  # IoU just over a half, until the corners are rounded to a tenth of a pixel.
  thin = good - [0, 0, 0.0998, 0]
  predictions = {**predictions, 'boxes': np.array([[thin, thin]])}
  assert voc(predictions, truth, 1)['mean_area'] == 1
  assert voc(predictions, truth, 1, rounded=True)['mean_area'] == 0
