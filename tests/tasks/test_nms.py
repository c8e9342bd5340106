"""Scores and class-wise suppression: golden, and against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import golden

from fastsnn_jax.architectures.yolo import COCO_ANCHORS, VOC_ANCHORS
from fastsnn_jax.tasks.detection.boxes import candidates, suppress


@functools.cache
def data():
  return golden.load('det_decode_nms.npz')


def found_in(outputs, overlap, limit=None):
  """Every box, and those that stay, of the first image."""
  anchors = VOC_ANCHORS if outputs.shape[-1] == 125 else COCO_ANCHORS

  @jax.jit
  def run(outputs):
    every = candidates(outputs, anchors)
    keep = functools.partial(
      suppress, threshold=0.001, overlap=overlap, limit=limit
    )
    return every, jax.vmap(keep)(every)

  return jax.tree.map(lambda x: np.asarray(x[0]), run(outputs))


def check(kept, boxes, scores, classes, atol=1e-6):
  """The reference gives boxes in the order of cells, we by falling score."""
  index = kept['index']
  count = np.sum(index >= 0)
  assert count == len(scores)
  assert np.all(np.diff(kept['scores']) <= 0)
  order = np.argsort(index[:count])
  np.testing.assert_allclose(kept['boxes'][order], boxes, atol=atol)
  np.testing.assert_allclose(kept['scores'][order], scores, atol=atol)
  np.testing.assert_array_equal(kept['classes'][order], classes)
  assert not kept['scores'][count:].any()
  assert not kept['boxes'][count:].any()
  assert np.all(kept['classes'][count:] == -1)


@pytest.mark.parametrize('i', range(5))
def test_what_stays_is_what_the_reference_keeps(i):
  outputs = data()[f'c{i}/pred'].transpose(0, 2, 3, 1)
  _, kept = found_in(outputs, float(data()[f'c{i}/nms_thresh']))
  check(kept, *(data()[f'c{i}/{name}'] for name in ('bboxes', 'scores', 'cls')))


@pytest.mark.parametrize('case', ['tiny_b2', 'tiny_b4', 'r34_b2', 'r34_b3'])
@pytest.mark.parametrize('tag', ['ann', 'snn_signed', 'snn_unsigned'])
def test_detections_of_whole_networks(case, tag):
  """From the recorded logits, so that no network has to run."""
  whole = golden.load(f'det_{case}.npz')
  outputs = whole[f'{tag}/logits'].transpose(0, 2, 3, 1)
  _, kept = found_in(outputs, 0.5 if 'tiny' in case else 0.6)
  check(
    kept, *(whole[f'{tag}/det_{n}'] for n in ('bboxes', 'scores', 'cls')), 1e-5
  )


@pytest.mark.parametrize('i', range(3))
def test_one_class_alone(i):
  found = {
    'boxes': data()[f'nms{i}/dets'],
    'scores': data()[f'nms{i}/scores'],
    'classes': np.zeros(60, int),
  }
  overlap = float(data()[f'nms{i}/thresh'])
  index = jax.jit(functools.partial(suppress, threshold=0.0, overlap=overlap))(
    found
  )['index']
  np.testing.assert_array_equal(index[index >= 0], data()[f'nms{i}/keep'])


# --- NumPy ------------------------------------------------------------------


def oracle(boxes, scores, classes, threshold, overlap):
  """Indices that stay, best first; a box at a time, in float64."""
  boxes = boxes.astype(float)
  kept = []
  for i in np.argsort(-scores, kind='stable'):
    if scores[i] < threshold:
      continue
    for j in kept:
      if classes[i] != classes[j]:
        continue
      low = np.maximum(boxes[i, :2], boxes[j, :2])
      high = np.minimum(boxes[i, 2:], boxes[j, 2:])
      both = np.prod(np.maximum(high - low, 1e-10))
      areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
      if both / (sum(areas) - both) > overlap:
        break
    else:
      kept.append(int(i))
  return kept


@functools.partial(jax.jit, static_argnames='limit')
def stay(boxes, scores, classes, limit=None):
  found = {'boxes': boxes, 'scores': scores, 'classes': classes}
  return suppress(found, threshold=0.25, overlap=0.45, limit=limit)


@given(seed=st.integers(0, 2**16), classes=st.integers(1, 3))
def test_suppression_by_numpy(seed, classes):
  rng = np.random.default_rng(seed)
  # On a coarse grid, so that equal boxes and equal scores occur.
  low = rng.integers(0, 6, (40, 2)) / 16
  boxes = np.concatenate([low, low + rng.integers(1, 6, (40, 2)) / 16], 1)
  boxes = boxes.astype(np.float32)
  scores = (rng.integers(0, 17, 40) / 16).astype(np.float32)
  kinds = rng.integers(0, classes, 40)
  expected = oracle(boxes, scores, kinds, 0.25, 0.45)
  index = np.asarray(stay(boxes, scores, kinds)['index'])
  assert index[index >= 0].tolist() == expected
  fewer = stay(boxes, scores, kinds, limit=4)
  assert fewer['boxes'].shape == (4, 4)
  mine = np.asarray(fewer['index'])
  assert mine[mine >= 0].tolist() == expected[:4]


def test_nothing_found_and_more_places_than_boxes():
  kept = stay(jnp.zeros((3, 4)), jnp.zeros(3), jnp.zeros(3, int), limit=9)
  assert kept['index'].tolist() == [-1, -1, -1]
  assert kept['classes'].tolist() == [-1, -1, -1]
  assert not kept['boxes'].any()
