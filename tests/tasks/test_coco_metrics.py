"""COCO's numbers: by hand, by a loop over detections, and beside VOC's."""

import contextlib
import io
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.coco import write

import fastsnn_jax as fs
from fastsnn_jax.data import squares
from fastsnn_jax.data.readers.coco import read_boxes
from fastsnn_jax.tasks.detection.average_precision import voc
from fastsnn_jax.tasks.detection.coco_metrics import NAMES, coco

HALF = 51 / 101  # of the recalls 0, 0.01, …, 1 are at most a half


def case(objects, found, side=200, **columns):
  """One image: [(corners in pixels, class)], the same and scores."""
  truth = {
    'boxes': np.array([[box for box, _ in objects]]) / side,
    'label': np.array([[kind for _, kind in objects]]),
    'size': np.array([[side, side]]),
    **{key: np.array([value]) for key, value in columns.items()},
  }
  predictions = {
    'boxes': np.array([[box for box, _, _ in found]]) / side,
    'scores': np.array([[score for *_, score in found]]),
    'classes': np.array([[kind for _, kind, _ in found]]),
  }
  return predictions, truth


def check(found, **expected):
  for name, value in expected.items():
    wanted = pytest.approx(value, nan_ok=True, rel=1e-12)
    assert found[name] == wanted, name


# Both medium: 1,600 of 1,024 to 9,216 pixels.
FIRST, SECOND = (10, 10, 50, 50), (100, 100, 140, 140)
# IoU 31 / 49 = 0.63: over the thresholds 0.5, 0.55, 0.6 of ten.
NEAR = (109, 100, 149, 140)


def test_by_hand():
  objects = [(FIRST, 0), (SECOND, 0), (FIRST, -1)]
  found = [(FIRST, 0, 0.9), (NEAR, 0, 0.8), (SECOND, -1, 1.0)]
  numbers = coco(*case(objects, found))
  assert tuple(numbers) == NAMES
  ap, ar = (3 + 7 * HALF) / 10, (3 + 7 * 0.5) / 10
  nan = math.nan
  check(
    numbers,
    **{'AP': ap, 'AP50': 1, 'AP75': HALF},
    **{'AP_small': nan, 'AP_medium': ap, 'AP_large': nan},
    **{'AR_1': 0.5, 'AR_10': ar, 'AR_100': ar},
    **{'AR_small': nan, 'AR_medium': ar, 'AR_large': nan},
  )


def test_a_miss_above_a_hit_and_the_mean_over_classes():
  far = (150, 150, 190, 190)
  objects = [(FIRST, 0), (SECOND, 4)]
  found = [(far, 0, 0.9), (FIRST, 0, 0.8), (SECOND, 4, 0.1), (far, 2, 0.3)]
  # Class 0 has precision 1/2 at every recall; class 2 has no objects.
  check(coco(*case(objects, found)), AP=0.75, AP50=0.75, AR_1=0.5, AR_10=1)


def test_area_is_the_object_s_and_in_pixels():
  objects, found = [(FIRST, 0)], [(FIRST, 0, 0.5)]
  for area, size in ((1000, 'small'), (5000, 'medium'), (9999, 'large')):
    numbers = coco(*case(objects, found, area=[area]))
    known = {
      name for name in NAMES[3:6] + NAMES[9:] if not math.isnan(numbers[name])
    }
    assert known == {f'AP_{size}', f'AR_{size}'}
    check(numbers, AP=1)
  predictions, truth = case(objects, found)
  truth['size'] = np.array([[100, 400]])  # 20 x 80 pixels
  check(coco(predictions, truth), AP_medium=1)
  truth['size'] = np.array([[100, 100]])
  check(coco(predictions, truth), AP_small=1)


@pytest.mark.parametrize('mark', ['crowd', 'difficult'])
def test_what_lies_in_a_crowd_does_not_count(mark):
  crowd = (90, 90, 190, 190)
  objects = [(FIRST, 0), (crowd, 0)]
  found = [(SECOND, 0, 0.9), (NEAR, 0, 0.8), (FIRST, 0, 0.7)]
  check(coco(*case(objects, found, **{mark: [False, True]})), AP=1, AR_10=1)
  # As an object it is missed, by two detections too small for it.
  check(coco(*case(objects, found)), AP50=HALF / 3)


def test_arrays_of_jax_and_nothing_at_all(capfd):
  predictions, truth = case([(FIRST, 0)], [(FIRST, 0, 0.5)])
  predictions, truth = (
    {key: jnp.asarray(value) for key, value in part.items()}
    for part in (predictions, truth)
  )
  check(coco(predictions, truth), AP=1)
  none = {**predictions, 'classes': jnp.array([[-1]])}
  check(coco(none, truth), AP=0, AR_100=0, AP_large=math.nan)
  empty = {**truth, 'label': jnp.array([[-1]])}
  assert all(math.isnan(value) for value in coco(predictions, empty).values())
  assert capfd.readouterr().out == ''


def drawn(seed, apart, images=6, places=9, grid=2, classes=2):
  """Objects on a grid, apart or not, and detections near them.

  Sides are 60 to 95 of a cell's 100 pixels, or up to twice as much.
  """
  rng = np.random.default_rng(seed)
  objects = grid * grid
  stretch = 1.0 if apart else 2.0
  corner = np.stack(np.meshgrid(*[np.arange(grid)] * 2), -1).reshape(-1, 2)
  low = corner + rng.uniform(0, 0.05, (images, objects, 2))
  sides = stretch * rng.uniform(0.6, 0.95, (images, objects, 2))
  boxes = np.concatenate([low, low + sides], -1)
  which = rng.integers(0, objects, (images, places))
  shift = rng.uniform(-0.15, 0.15, (images, places, 4))
  label = rng.integers(-1, classes, (images, objects))
  kinds = np.take_along_axis(label, which, 1)
  other = rng.integers(-1, classes, kinds.shape)
  kinds = np.where(rng.random(kinds.shape) < 0.2, other, kinds)
  near = np.take_along_axis(boxes, which[..., None], 1) + shift
  predictions = {
    'boxes': near / (2 * grid),
    'scores': rng.permutation(images * places).reshape(kinds.shape) / 100,
    'classes': kinds,
  }
  truth = {
    'boxes': boxes / (2 * grid),
    'label': label,
    'size': np.full((images, 2), 200 * grid),
  }
  return predictions, truth


def overlap(a, b):
  both = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
  both *= max(min(a[3], b[3]) - max(a[1], b[1]), 0)
  area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
  return both / (sum(area) - both)


def oracle(predictions, truth, threshold):
  """(AP at 101 recalls, recall), means over classes, by loops."""
  precisions, recalls = [], []
  for c in np.unique(truth['label'][truth['label'] >= 0]):
    total = int((truth['label'] == c).sum())
    rows = [
      (-predictions['scores'][i, k], i, k)
      for i, k in np.argwhere(predictions['classes'] == c)
    ]
    taken, hits = set(), []
    for _, i, k in sorted(rows):
      free = [
        (overlap(predictions['boxes'][i, k], truth['boxes'][i, g]), g)
        for g in np.flatnonzero(truth['label'][i] == c)
        if (i, g) not in taken
      ]
      best, g = max(free, default=(-1, None))
      hits.append(best >= threshold)
      if best >= threshold:
        taken.add((i, g))
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    recall = found / total
    precisions.append(
      np.mean(
        [
          np.max(precision, initial=0, where=recall >= r)
          for r in np.linspace(0, 1, 101)
        ]
      )
    )
    recalls.append(len(taken) / total)
  return np.mean(precisions), np.mean(recalls)


@given(seed=st.integers(0, 2**16), apart=st.booleans())
def test_by_a_loop_over_detections(seed, apart):
  predictions, truth = drawn(seed, apart)
  numbers = coco(predictions, truth)
  every = [
    oracle(predictions, truth, threshold)
    for threshold in np.linspace(0.5, 0.95, 10)
  ]
  precision, recall = np.mean(every, 0)
  check(numbers, AP50=every[0][0], AP75=every[5][0])
  check(numbers, AP=precision, AR_100=recall)


@given(seed=st.integers(0, 2**16))
def test_ap50_is_the_area_but_for_the_101_recalls(seed):
  # With objects apart a detection has one to aim at, and both rules agree. The
  # envelope p falls, so that sums over 101 recalls are at most p(0) off from
  # 100 times its integral, and the mean over them at most 1 / 100.
  predictions, truth = drawn(seed, apart=True)
  area = voc(predictions, truth, 2)['mean_area']
  assert abs(coco(predictions, truth)['AP50'] - area) <= 0.01


def test_truth_as_pycocotools_reads_it_from_the_file(tmp_path):
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  rng = np.random.default_rng(4)
  names = [f'p{i}' for i in range(12)]
  objects, results = {}, []
  for i, name in enumerate(names, start=5):  # ids as `write` gives them
    rows = []
    for _ in range(6):
      x, y, w, h = box = rng.uniform([0, 0, 3, 3], [8, 4, 12, 6]).tolist()
      kind = rng.choice([3, 7]).item()
      row = {'category_id': kind, 'bbox': box, 'area': 0.8 * w * h}
      rows.append({**row, 'id': 1000 * i + len(rows), 'iscrowd': int(x > 7)})
      moved = [x + rng.uniform(-1, 1), y + rng.uniform(-1, 1), w, h]
      found = {'image_id': i, 'category_id': kind, 'score': rng.random()}
      results.append({**found, 'bbox': moved})
    objects[name] = rows
  write(tmp_path, 'train2017', objects)
  path = write(tmp_path, 'val2017', objects)
  with contextlib.redirect_stdout(io.StringIO()):
    whole = COCO(str(path))
    judge = COCOeval(whole, whole.loadRes(results), 'bbox')
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
      step()
  truth = squares.box_arrays(read_boxes(tmp_path).test, 4)
  rows = [[x for x in results if x['image_id'] == i] for i in range(5, 17)]
  boxes = np.array([[x['bbox'] for x in row] for row in rows])
  boxes[..., 2:] += boxes[..., :2]
  kinds = np.array([[x['category_id'] for x in row] for row in rows])
  predictions = {
    'boxes': boxes / [20, 10, 20, 10],
    'scores': np.array([[x['score'] for x in row] for row in rows]),
    'classes': np.searchsorted([3, 7], kinds),
  }
  expected = np.where(judge.stats < 0, np.nan, judge.stats)
  assert 0.1 < expected[0] < 0.9
  numbers = list(coco(predictions, truth).values())
  np.testing.assert_allclose(numbers, expected, rtol=1e-9)


def test_without_pycocotools(monkeypatch):
  for name in ('pycocotools', 'pycocotools.coco', 'pycocotools.cocoeval'):
    monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(fs.UserError, match=r'fastsnn_jax\[detection\]'):
    coco(*case([(FIRST, 0)], [(FIRST, 0, 0.5)]))
