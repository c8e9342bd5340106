"""The task of segmentation: loss, confusion matrix, agreement, class maps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import golden
from support.training import devices

import fastsnn_jax as fs
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.segmentation import task as segmentation
from fastsnn_jax.tasks.segmentation.task import Segmentation
from fastsnn_jax.training.optimizer import learning_rate

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, rows=3, side=5, classes=4):
  random = np.random.default_rng(seed)
  label = random.integers(0, classes + 1, (rows, side, side))
  label[label == classes] = 255
  return {
    'label': label.astype(np.uint8),
    'mask': np.ones(rows, np.float32),
  }, random.integers(0, classes, (rows, side, side)).astype(np.uint8)


def test_the_loss_is_the_official_one_and_so_is_its_gradient():
  data = golden.load('seg_misc.npz')
  logits = np.moveaxis(data['ce/logits'], 1, -1)
  batch = {'label': data['ce/mask'], 'mask': np.ones(len(logits))}

  def loss(logits):
    return Segmentation(logits.shape[-1]).loss(logits, batch)

  (found, sums), grad = jax.value_and_grad(loss, has_aux=True)(logits)
  np.testing.assert_allclose(found, data['ce/loss'], rtol=1e-6)
  assert sums['count'] == np.sum(data['ce/mask'] != 255)
  wanted = np.moveaxis(data['ce/grad'], 1, -1)
  np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_balanced_classes_weigh_in_the_loss(power):
  random = np.random.default_rng(3)
  batch, _ = drawn(3, rows=2, side=9)
  batch['label'][batch['label'] == 3] = 1  # a class that nobody has
  weights = segmentation.balanced(batch['label'], 4, power)
  logits = random.normal(size=(2, 9, 9, 4)).astype(np.float32)
  found, sums = Segmentation(4, weights=weights).loss(logits, batch)
  known = batch['label'] < 4
  label = batch['label'][known]
  share = np.bincount(label, minlength=4) / len(label)
  each = np.log(np.exp(logits).sum(-1)[known])
  each -= np.take_along_axis(logits[known], label[:, None], -1)[:, 0]
  weight = share[label] ** -power
  np.testing.assert_allclose(
    found, np.sum(weight * each) / np.sum(weight), rtol=1e-3
  )
  assert weights[3] == 0
  assert float(sums['pixels']) == len(label)
  assert float(sums['count']) == pytest.approx(len(label), rel=1e-3)
  correct = np.sum(np.argmax(logits[known], -1) == label)
  assert Segmentation(4).summarize(sums)['pixel_accuracy'] == pytest.approx(
    correct / len(label)
  )
  share_of_loss = np.bincount(label, np.array(weights)[label])
  if power == 1:  # each class as much as any other
    np.testing.assert_allclose(share_of_loss, len(label) / 3, rtol=1e-3)


def test_the_metric_is_the_official_one():
  data = golden.load('seg_misc.npz')
  classes = len(data['miou/IoUs'])
  batch = {'label': data['miou/target'], 'mask': np.ones(4)}
  sums = Segmentation(classes).measure(data['miou/pred'], batch)
  found = Segmentation(4).summarize(sums)
  np.testing.assert_allclose(
    segmentation.intersection_over_union(np.float64(sums['confusion'])),
    data['miou/IoUs'],
    rtol=1e-9,
  )
  assert found['mIoU'] == pytest.approx(float(data['miou/mIoU']), abs=5e-5)


def test_the_poly_schedule_is_the_official_one():
  data = golden.load('seg_misc.npz')
  stage = fs.Stage(32, epochs=5, learning_rate=0.007, schedule='poly')
  config = fs.Experiment('small_deeplab')
  rate = jax.vmap(learning_rate(config, stage, 7))(jnp.arange(35))
  np.testing.assert_allclose(rate, data['poly/lr'], rtol=1e-5)
  stage = dataclasses.replace(stage, epochs=50)
  long = learning_rate(config, stage, 330)
  for step, value in ((330, 0.0068739), (8250, 0.0037512), (16499, 1.12e-6)):
    assert float(long(step)) == pytest.approx(value, rel=1e-3)


def test_a_class_that_never_occurs_counts_as_nothing_in_the_reference():
  confusion = np.array([[10, 5, 0], [0, 5, 0], [0, 0, 0]])
  found = Segmentation(4).summarize({'confusion': confusion})
  assert found['mIoU'] == pytest.approx((2 / 3 + 1 / 2) / 3)
  assert found['mIoU_present'] == pytest.approx((2 / 3 + 1 / 2) / 2)
  assert found['pixel_accuracy'] == 0.75
  assert (
    Segmentation(4).details({'confusion': confusion})['by_class'][2] is None
  )


@given(seed=SEEDS, real=st.integers(1, 3))
def test_the_confusion_matrix_by_numpy(seed, real):
  batch, predictions = drawn(seed)
  batch['mask'][real:] = 0
  wanted = np.zeros((4, 4), int)
  for row in range(real):
    for truth, found in zip(
      batch['label'][row].ravel(), predictions[row].ravel(), strict=True
    ):
      if truth != 255:
        wanted[truth, found] += 1
  found = Segmentation(4).measure(predictions, batch)['confusion']
  np.testing.assert_array_equal(found, wanted)


@given(seed=SEEDS)
def test_agreement_is_the_share_of_the_pixels_of_the_image(seed):
  batch, predictions = drawn(seed)
  _, others = drawn(seed + 1)
  random = np.random.default_rng(seed)
  batch['size'] = random.integers(1, 6, (3, 2))
  batch['mask'][2] = 0
  wanted = np.zeros(2)
  for row in range(2):
    width, height = batch['size'][row]
    same = (predictions == others)[row, :height, :width]
    wanted += same.sum(), same.size
  assert Segmentation(4).agree(predictions, others, batch) == tuple(wanted)


@pytest.fixture(scope='module')
def segmenter():
  network = fs.build(
    'small_deeplab', 2, tuple('abcd'), mean=(0.5,) * 3, std=(0.25,) * 3
  )
  return network, network.init(jax.random.key(0), jnp.ones((1, 17, 17, 3)))


@pytest.mark.once
def test_segment_pads_and_cuts_back(segmenter):
  network, variables = segmenter
  image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
  found = fs.segment(network, variables, image)
  assert found.shape == (12, 15)
  assert found.dtype == np.uint8
  padded = np.full((1, 13, 17, 3), 127.5, np.float32)
  padded[0, :12, :15] = image
  output, _ = network.apply(variables, (padded / 255 - 0.5) / 0.25)
  whole = Segmentation(4, stride=4).predict(output)
  np.testing.assert_array_equal(found, whole[0, :12, :15])
  several = fs.segment(network, variables, [image, image[:9, :9]])
  assert [x.shape for x in several] == [(12, 15), (9, 9)]
  np.testing.assert_array_equal(several[0], found)
  with pytest.raises(UserError, match=r'\[B, H, W, C\]'):
    fs.segment(network, variables, image[0])
  for grey_or_clear in (image[..., :1], np.dstack([image, image[..., 0]])):
    with pytest.raises(UserError, match='takes 3 channels'):
      fs.segment(network, variables, grey_or_clear)
  with pytest.raises(UserError, match=r'fs\.segment'):
    fs.classify(network, variables, image)


@pytest.mark.once
def test_segment_answers_what_was_judged_where_the_square_holds_it(segmenter):
  network, variables = segmenter
  judged = dataclasses.replace(network, size=21)
  random = np.random.default_rng(0)
  for sides, square in (((12, 15), 21), ((21, 9), 21), ((22, 9), None)):
    image = random.integers(0, 256, (*sides, 3), np.uint8)
    found = fs.segment(judged, variables, image)
    if square is None:  # larger: as without a size
      wanted = fs.segment(network, variables, image)
    else:
      padded = np.full((1, square, square, 3), 127.5, np.float32)
      padded[0, : sides[0], : sides[1]] = image
      wanted = fs.segment(network, variables, padded)[0]
    np.testing.assert_array_equal(found, wanted[: sides[0], : sides[1]])


@pytest.mark.once
def test_parts_and_devices_give_the_same_confusion_matrix(segmenter):
  network, variables = segmenter
  random = np.random.default_rng(1)
  labels, _ = drawn(2, rows=11, side=17)
  data = {
    'image': random.integers(0, 256, (11, 17, 17, 3), np.uint8),
    'label': labels['label'],
  }
  confusions = []

  class Watched(Segmentation):
    def summarize(self, sums, kept=None):
      confusions.append(sums['confusion'])
      return super().summarize(sums, kept)

  task = Watched.of(network)
  fs.evaluate(network, variables, data, task=task, batch=11)
  with devices(8):
    fs.evaluate(network, variables, data, task=task, batch=8)
  assert confusions[0].sum() == np.sum(labels['label'] != 255)
  np.testing.assert_array_equal(*confusions)
  images, truth = data['image'], data['label']
  answers = fs.segment(network, variables, images)
  counted = np.zeros((4, 4))
  np.add.at(counted, (truth[truth < 4], answers[truth < 4]), 1)
  np.testing.assert_array_equal(confusions[0], counted)
