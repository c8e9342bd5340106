"""What raw images may be, one rule for every function that takes them."""

import functools
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.models import three_rows

import fastsnn_jax as fs
from fastsnn_jax.data import Stream
from fastsnn_jax.data.stream import as_it_is
from fastsnn_jax.tasks.pixels import Pixels

# More than 4,096 numbers, of which XLA on a CPU may lose a NaN.
IMAGES = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), np.uint8)
LABELS = np.arange(80) % 2


def network(task='classification'):
  head = None if task == 'classification' else fs.Conv(2, norm=False)
  known = {'classes': ('a', 'b'), 'mean': (0.5,), 'std': (0.25,), 'task': task}
  return fs.Network(three_rows(2, head), fs.QuantRelu(2), **known)


ANN = network()
SNN = fs.to_spiking(ANN)


@functools.cache
def variables():
  return ANN.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


def streamed(images):
  pairs = zip(images, LABELS, strict=True)
  examples = [{'image': x, 'label': y} for x, y in pairs]
  return Stream(examples, as_it_is)


def evaluate(images):
  return fs.evaluate(
    ANN, variables(), {'image': images, 'label': LABELS[: len(images)]}
  )


def compare(images):
  pair = {'signed': (SNN, variables())}
  data = {'image': images, 'label': LABELS[: len(images)]}
  return fs.compare(ANN, variables(), pair, data)['signed']['ann_accuracy']


def finetune(images):
  tuning = fs.Tuning('parallel', batch=80, accept='always', crop=0, flip=False)
  data = {'image': images}
  return fs.finetune(ANN, SNN, variables(), data, tuning)[1][0]['loss_before']


def segment(images):
  return fs.segment(network('segmentation'), variables(), images)


def detect(images):
  anchors = {'anchors': ((1.0, 1.0),), 'classes': ('a', 'b'), 'size': 8}
  detector = fs.build('small_yolo', mean=(0.5,), std=(0.25,), **anchors)
  return fs.detect(detector, variables(), images)


USERS = {
  'classify': lambda images: fs.classify(ANN, variables(), images),
  'classify a list': lambda x: fs.classify(ANN, variables(), list(x)),
  'segment': segment,
  'detect': detect,
  'evaluate': evaluate,
  'evaluate a stream': lambda images: fs.evaluate(
    ANN, variables(), streamed(images)
  ),
  'compare': compare,
  'finetune': finetune,
}
BAD = {
  'normalised': (IMAGES / 255 - 0.5) / 0.25,
  'one nan': np.where(np.arange(80)[:, None, None, None] == 70, np.nan, IMAGES),
  'infinite': np.where(IMAGES == 255, np.inf, IMAGES),
  'of 16 bits': IMAGES.astype(np.uint16) * 257,
  'int16, negative': IMAGES.astype(np.int16) - 1,
  'bfloat16': (IMAGES * 2.0).astype(ml_dtypes.bfloat16),
  'bool': IMAGES > 9,
  'complex': IMAGES * 1j,
}


@pytest.mark.parametrize('user', USERS)
@pytest.mark.parametrize('bad', ['normalised', 'one nan', 'of 16 bits'])
def test_values_that_are_no_pixels_are_refused_by_all(user, bad):
  with pytest.raises(fs.UserError, match=r'values from .*pixels, of 0 to 255'):
    USERS[user](BAD[bad])


@pytest.mark.parametrize('bad', BAD)
def test_each_kind_of_value_that_is_no_pixel_is_refused(bad):
  with pytest.raises(fs.UserError, match=r'pixels,? of 0 to 255'):
    Pixels()(BAD[bad])


@pytest.mark.parametrize(
  'user', ['classify', 'classify a list', 'evaluate', 'compare', 'finetune']
)
def test_shares_of_255_are_told_once_and_answered_rightly(user):
  with pytest.warns(UserWarning, match='shares of 255') as told:
    found = USERS[user](np.float32(IMAGES) / 255)
  assert len(told) == 1
  assert '\n' not in str(told[0].message)
  expected = USERS[user](IMAGES)
  if user == 'finetune':
    assert found == pytest.approx(expected, rel=1e-4)
  else:
    np.testing.assert_array_equal(found, expected)


def test_shares_become_pixels():
  with pytest.warns(UserWarning, match='shares of 255'):
    (found,) = Pixels()(np.float32(IMAGES) / 255)
  np.testing.assert_allclose(found, IMAGES, rtol=1e-6)


def test_the_warning_is_an_error_of_ours_where_warnings_are_errors():
  with pytest.raises(fs.UserError, match='shares of 255'):
    Pixels()(IMAGES / 255)


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.float16, np.float64])
def test_pixels_pass_as_they_are(dtype):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for images in (IMAGES, 0 * IMAGES):
      (found,) = Pixels()(images.astype(dtype))
      np.testing.assert_array_equal(found, images.astype(dtype))


def test_the_first_batch_that_is_not_black_decides_for_all():
  pixels = Pixels()
  pixels(0.0 * IMAGES)
  pixels(1.0 * IMAGES)
  (dark,) = pixels(IMAGES / 255)  # in a set of 0 to 255
  np.testing.assert_array_equal(dark, IMAGES / 255)
  pixels = Pixels()
  with pytest.warns(UserWarning, match='shares of 255'):
    pixels(IMAGES / 255)
  with pytest.raises(fs.UserError, match='behind others of which none is'):
    pixels(1.0 * IMAGES)


def test_bytes_are_not_looked_at():
  class Bytes(np.ndarray):
    def min(self, *args, **named):
      raise AssertionError

  Pixels()(IMAGES.view(Bytes))


def test_an_empty_batch_has_an_empty_answer():
  assert fs.classify(ANN, variables(), IMAGES[:0]).shape == (0,)
  assert fs.classify(SNN, variables(), IMAGES[:0] / 255).shape == (0,)
  assert fs.classify(ANN, variables(), []) == []
  maps = fs.segment(network('segmentation'), segmenter(), IMAGES[:0])
  assert (maps.shape, maps.dtype) == ((0, 8, 8), np.uint8)


@functools.cache
def segmenter():
  return network('segmentation').init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


@pytest.mark.parametrize('call', [evaluate, compare, finetune])
def test_no_images_to_judge_are_one_error(call):
  with pytest.raises(fs.UserError, match='0 images'):
    call(IMAGES[:0])
