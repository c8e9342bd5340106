"""The task of detection: predictions, agreement and the metric."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsnn_jax as fs
from fastsnn_jax.tasks.detection import task as detection
from fastsnn_jax.tasks.detection.average_precision import voc
from fastsnn_jax.tasks.detection.task import Detection

ANCHORS = ((1.0, 1.0), (2.0, 1.5))


def outputs(seed, rows=3):
  shape = rows, 4, 4, 2 * 8
  return 2 * np.random.default_rng(seed).normal(size=shape).astype('f')


def batch(rows, real=None):
  return {'mask': (np.arange(rows) < (real or rows)).astype('f')}


def test_predictions_have_a_place_for_each_box_that_is_asked_for():
  predict = functools.partial(detection.predict, anchors=ANCHORS)
  few = jax.jit(functools.partial(predict, limit=5))(outputs(0))
  every = jax.jit(functools.partial(predict, limit=None))(outputs(0))
  assert few['boxes'].shape == (3, 5, 4)
  assert every['scores'].shape == (3, 32)
  for key, value in few.items():
    np.testing.assert_array_equal(value, every[key][:, :5])
  strict = predict(outputs(0), threshold=0.5)
  assert np.all((strict['scores'] == 0) | (strict['scores'] >= 0.5))


def oracle_same(a, b, shown):
  """One image: pairs are taken away one by one."""
  left = [
    [
      (p['classes'][i], p['boxes'][i])
      for i in np.flatnonzero(p['scores'] >= shown)
    ]
    for p in (a, b)
  ]
  for kind, box in left[0]:
    for i, (other, against) in enumerate(left[1]):
      low = np.maximum(box[:2], against[:2])
      high = np.minimum(box[2:], against[2:])
      both = np.prod(np.maximum(high - low, 0))
      union = np.prod(box[2:] - box[:2]) + np.prod(against[2:] - against[:2])
      if kind == other and both > 0.95 * (union - both):
        del left[1][i]
        break
    else:
      return False
  return not left[1]


@jax.jit
def predict(outputs):
  return detection.predict(outputs, anchors=ANCHORS, limit=12)


@given(seed=st.integers(0, 999), noise=st.sampled_from([0.0, 0.01, 0.03, 0.1]))
def test_agreement_by_numpy(seed, noise):
  first = outputs(seed)
  second = first + noise * outputs(seed + 1000)
  a, b = (jax.tree.map(np.asarray, predict(x)) for x in (first, second))
  expected = [
    oracle_same(*({k: v[i] for k, v in p.items()} for p in (a, b)), 0.25)
    for i in range(3)
  ]
  if noise == 0:
    assert all(expected)
  for real in (1, 3):
    found = Detection(3).agree(a, b, batch(3, real))
    assert found == (sum(expected[:real]), real)


def test_detections_of_little_score_need_not_agree():
  a = predict(outputs(0))
  a = {**a, 'scores': a['scores'] / 2}
  weak = a['scores'] < 0.25
  b = {**a, 'boxes': jnp.where(weak[..., None], 0, a['boxes'])}
  assert weak.any(1).all()
  assert Detection(3).agree(a, b, batch(3)) == (3, 3)
  loud = ({**x, 'scores': 2 * x['scores']} for x in (a, b))
  assert Detection(3).agree(*loud, batch(3)) == (0, 3)
  none = jax.tree.map(jnp.zeros_like, a)
  assert Detection(3).agree(none, none, batch(3)) == (3, 3)
  assert Detection(3).agree(a, none, batch(3)) == (0, 3)
  assert Detection(3).agree(none, a, batch(3)) == (0, 3)


def test_summary_of_rows_and_of_losses():
  found = predict(outputs(0))
  truth = {
    'boxes': np.asarray(found['boxes'][:, :2]),
    'label': np.asarray(found['classes'][:, :2]),
  }
  crowd = np.zeros((3, 2), bool)
  batch = {**truth, 'crowd': crowd, 'mask': np.ones(3), 'image': 0}
  kept = {'found': found, 'truth': Detection(3).truth(batch)}
  assert set(kept['truth']) == {'boxes', 'label', 'crowd'}
  summary = Detection(3).summarize({}, kept)
  expected = voc(found, truth, 3)
  assert summary == {
    'mAP50': expected['mean_area'],
    'mAP50_11point': expected['mean_11point'],
  }
  assert summary['mAP50'] > 0.5  # each object is among the best two
  sums = {'loss': 8.0, 'box_loss': 2.0, 'count': 4.0}
  losses = Detection(3).summarize(sums)
  assert losses == {'loss': 2.0, 'box_loss': 0.5}


@pytest.mark.once
def test_a_sharded_batch_is_predicted_without_communication():
  devices = jax.devices()
  assert len(devices) >= 8
  mesh = jax.sharding.Mesh(np.array(devices[:8]), 'data')
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  images = jax.device_put(outputs(1, rows=8), rows)
  run = predict.lower(images).compile()
  text = run.as_text()
  for operation in ('all-reduce', 'all-gather', 'all-to-all', 'permute('):
    assert operation not in text, operation
  alone = predict(outputs(1, rows=8))
  for key, value in run(images).items():
    np.testing.assert_array_equal(value, alone[key])


# --- fs.detect --------------------------------------------------------------


@pytest.fixture(scope='module')
def detector():
  """(network, variables) that finds a lot of nothing in particular."""
  network = fs.build(
    'small_yolo', 2, 3, mean=(0.5,) * 3, std=(0.25,) * 3, size=48
  )
  variables = network.init(jax.random.key(0), jnp.ones((1, 48, 48, 3)))
  bias = variables['params']['pred']['synapse']['bias']
  variables['params']['pred']['synapse']['bias'] = bias.at[:3].set(2.0)
  return network, variables


def picture(height=48, width=48):
  rng = np.random.default_rng(height * width)
  coarse = rng.integers(0, 256, (6, 6, 3))
  rows, columns = (np.arange(n) * 6 // n for n in (height, width))
  return coarse[rows][:, columns].astype(np.uint8)


@pytest.mark.once
def test_detect_is_the_network_s_prediction_in_pixels(detector):
  network, variables = detector
  image = picture()
  found = fs.detect(network, variables, image)
  output, _ = network.apply(
    variables, ((image[None] / 255 - 0.5) / 0.25).astype('f')
  )
  expected = detection.predict(
    output, anchors=network.anchors, threshold=0.25, limit=100
  )
  some = np.asarray(expected['classes'][0] >= 0)
  assert 0 < some.sum() == len(found.scores)
  np.testing.assert_allclose(
    found.boxes, 48 * expected['boxes'][0][some], rtol=1e-4, atol=1e-3
  )
  np.testing.assert_allclose(
    found.scores, expected['scores'][0][some], rtol=1e-4
  )
  np.testing.assert_array_equal(found.classes, expected['classes'][0][some])


@pytest.mark.once
def test_detect_takes_images_of_any_size_and_maps_the_boxes_back(detector):
  network, variables = detector
  image = picture()
  large = image.repeat(2, 0).repeat(3, 1)  # 96 x 144
  whole = fs.detect(network, variables, image, threshold=0.3)
  # A picture of flat patches looks the same squashed, but for their edges.
  mapped = fs.detect(network, variables, large, threshold=0.0, limit=27)
  assert (mapped.boxes[:, 2] <= 144).all()
  assert (mapped.boxes[:, 3] <= 96).all()
  assert mapped.boxes[:, 2].max() > 96
  pair = fs.detect(network, variables, [image, large], threshold=0.3)
  np.testing.assert_array_equal(pair[0].boxes, whole.boxes)
  batch = fs.detect(network, variables, np.stack([image, image]), threshold=0.3)
  for one in batch:
    np.testing.assert_allclose(one.boxes, whole.boxes, rtol=1e-4, atol=1e-3)
  other = fs.detect(network, variables, large, size=32, threshold=0.0)
  assert len(other.scores) <= 4 * 3
  floats = fs.detect(
    network, variables, image.astype('f'), threshold=0.3, limit=2
  )
  np.testing.assert_array_equal(floats.boxes, whole.boxes[:2])
  free = dataclasses.replace(network, size=0)
  assert len(fs.detect(free, variables, large, threshold=0.0).scores) > 27
  snn = fs.to_spiking(network, 'settled')
  again = fs.detect(snn, variables, image, threshold=0.3)
  np.testing.assert_allclose(again.boxes, whole.boxes, atol=1e-2)


@pytest.mark.once
def test_detect_refuses_what_it_cannot_take(detector):
  network, variables = detector
  with pytest.raises(fs.UserError, match=r'50 x 50 .* multiples of 16'):
    fs.detect(network, variables, picture(), size=50)
  with pytest.raises(fs.UserError, match=r'shape \(48, 48\)'):
    fs.detect(network, variables, picture()[..., 0])
  with pytest.raises(fs.UserError, match=r'for detection.*use fs\.detect'):
    fs.classify(network, variables, picture())
  with pytest.raises(fs.UserError, match=r'classification.*use fs\.classify'):
    fs.detect(fs.build('small_resnet8'), {}, picture())


# --- learning ---------------------------------------------------------------


@pytest.mark.slow
def test_a_detector_learns_a_square():
  """A hundred steps on one image: it is found, by the spiking network too."""
  network = fs.build('small_yolo', 2, 2)
  image = np.zeros((1, 64, 64, 1), 'f')
  image[:, 16:40, 8:32] = 1
  box = np.array([[[8 / 64, 16 / 64, 32 / 64, 40 / 64]]], 'f')
  data = {'boxes': box, 'label': np.array([[1]]), 'mask': np.ones(1, 'f')}
  variables = network.init(jax.random.key(0), image)
  settings = {'anchors': network.anchors, 'stride': network.stride}

  @jax.jit
  def step(variables, momentum):
    def mean_loss(params):
      tree = {**variables, 'params': params}
      output, _, statistics = network.apply(tree, image, train=True)
      return detection.loss(output, data, **settings)[0], statistics

    gradient, statistics = jax.grad(mean_loss, has_aux=True)(
      variables['params']
    )
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
    params = jax.tree.map(
      lambda p, m: p - 0.003 * m, variables['params'], momentum
    )
    return {'params': params, 'batch_stats': statistics}, momentum

  momentum = jax.tree.map(jnp.zeros_like, variables['params'])
  for _ in range(100):
    variables, momentum = step(variables, momentum)
  found = []
  for this in (network, fs.to_spiking(network, 'settled')):
    output, _ = jax.jit(this.apply)(variables, image)
    found.append(detection.predict(output, anchors=network.anchors))
    kept = {'found': found[-1], 'truth': Detection(3).truth(data)}
    assert Detection(2).summarize({}, kept)['mAP50'] == 1
  assert Detection(3).agree(*found, data) == (1, 1)
