"""Boxes, targets and the loss of detectors: golden, and against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import golden

import fastsnn_jax as fs
from fastsnn_jax.architectures.yolo import COCO_ANCHORS, VOC_ANCHORS
from fastsnn_jax.tasks.detection import boxes as geometry
from fastsnn_jax.tasks.detection.loss import loss, terms
from fastsnn_jax.tasks.detection.targets import assign
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch

NAMES = ('objectness_loss', 'class_loss', 'box_loss', 'iou_loss')
IN_BETWEEN = ((1.0, 1.0), (1.2, 1.1), (3.0, 2.0))  # two of them alike
ONE = {'anchors': VOC_ANCHORS, 'stride': 32}


@functools.cache
def losses():
  return golden.load('det_loss.npz')


def case(i, dtype=np.float32):
  """(outputs NHWC, batch, settings) of a golden case."""
  data = losses()
  labels, count = data[f'c{i}/labels'], data[f'c{i}/nlabels']
  absent = np.arange(labels.shape[1]) >= count[:, None]
  batch = {
    'boxes': labels[..., :4].astype(dtype),
    'label': np.where(absent, -1, labels[..., 4]).astype(np.int32),
    'mask': np.ones(len(labels), dtype),
  }
  outputs = data[f'c{i}/pred'].transpose(0, 2, 3, 1).astype(dtype)
  anchors = VOC_ANCHORS if outputs.shape[-1] == 125 else COCO_ANCHORS
  np.testing.assert_allclose(anchors, data[f'c{i}/anchors'], rtol=1e-6)
  return outputs, batch, {'anchors': anchors, 'stride': 32}


# --- NumPy ------------------------------------------------------------------


def oracle_targets(boxes, label, grid, anchors, stride, conflict):
  """Reference behaviour D3.2 for one image, an object at a time."""
  height, width = grid
  rows = np.zeros((height, width, len(anchors), 11))
  for (x1, y1, x2, y2), c in zip(boxes.astype(float), label, strict=True):
    bw, bh = (x2 - x1) * width * stride, (y2 - y1) * height * stride
    cx, cy = (x1 + x2) / 2 * width, (y1 + y2) / 2 * height
    if c < 0 or bw < 1 or bh < 1:
      continue
    if not (0 <= cx < width and 0 <= cy < height):
      continue
    w, h = bw / stride, bh / stride
    similar = []
    for pw, ph in anchors:
      both = min(w, pw) * min(h, ph)
      similar.append(both / (w * h + pw * ph - both + 1e-20))
    best, cell = int(np.argmax(similar)), rows[int(cy), int(cx)]
    pw, ph = anchors[best]
    weight = 2 - (x2 - x1) * (y2 - y1)
    cell[best] = [1, c, cx - int(cx), cy - int(cy), np.log(w / pw),
                  np.log(h / ph), weight, x1, y1, x2, y2]  # fmt: skip
    for other, value in enumerate(similar):
      if other != best and value > 0.5:
        if conflict == 'positive' and cell[other, 0] == 1:
          continue
        cell[other, [0, 6]] = -1
  return rows.reshape(-1, 11)


def oracle_loss(outputs, rows, anchors):
  """Reference behaviour D3.4, box by box; the four terms before the mean."""
  batch, height, width, channels = outputs.shape
  a, classes = len(anchors), channels // len(anchors) - 5
  sums = np.zeros(4)
  for b, y, x, k in np.ndindex(batch, height, width, a):
    out = outputs[b, y, x].astype(float)
    obj, c, tx, ty, tw, th, weight, *gt = rows[b, (y * width + x) * a + k]
    sure = 1 / (1 + np.exp(-out[k]))
    if obj == 0:
      sums[0] += sure**2
    if obj != 1:
      continue
    logits = out[a + k * classes : a + (k + 1) * classes]
    px, py, pw, ph = out[a + a * classes + 4 * k :][:4]
    s = 1 / (1 + np.exp(-np.array([px, py])))
    cx, cy = (s[0] + x) / width, (s[1] + y) / height
    w = anchors[k][0] * np.exp(pw) / width
    h = anchors[k][1] * np.exp(ph) / height
    x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    iw = min(x2, gt[2]) - max(x1, gt[0])
    ih = min(y2, gt[3]) - max(y1, gt[1])
    both = iw * ih if iw > 0 and ih > 0 else 0
    union = w * h + (gt[2] - gt[0]) * (gt[3] - gt[1]) - both
    u = both / (union + 1e-14)
    sums[0] += 5 * (sure - u) ** 2
    sums[1] += np.log(np.exp(logits).sum()) - logits[int(c)]
    bce = -tx * np.log(s[0]) - (1 - tx) * np.log(1 - s[0])
    bce += -ty * np.log(s[1]) - (1 - ty) * np.log(1 - s[1])
    sums[2] += weight * (bce + (pw - tw) ** 2 + (ph - th) ** 2)
    sums[3] += (1 - u) ** 2 / 2
  return sums


def as_rows(target):
  head = (target.objectness[..., None], target.label[..., None])
  return np.concatenate(
    [*head, target.offsets, target.weight[..., None], target.boxes], -1
  )


# --- golden -----------------------------------------------------------------


@pytest.mark.parametrize('i', range(3))
def test_targets_are_the_reference_s(i):
  data = losses()
  with jax.enable_x64(True):
    outputs, batch, settings = case(i, np.float64)
    grid = outputs.shape[1:3]
    run = jax.jit(functools.partial(assign, grid=grid, **settings))
    found = as_rows(run(batch['boxes'], batch['label']))
  expected = np.zeros(data[f'c{i}/gt_shape'])
  index = tuple(data[f'c{i}/gt_nonzero_idx'].T)
  expected[index] = data[f'c{i}/gt_nonzero_rows']
  np.testing.assert_allclose(found, expected, atol=1e-7)  # float32 in the file


@pytest.mark.parametrize('i', range(3))
def test_loss_and_gradient_are_the_reference_s(i):
  data, (outputs, batch, settings) = losses(), case(i)

  def mean_loss(outputs):
    return loss(outputs, batch, **settings)

  run = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
  (total, sums), gradient = run(outputs)
  theirs = [data[f'c{i}/{n}_loss'] for n in ('conf', 'cls', 'bbox', 'iou')]
  ours = [sums[name] / len(outputs) for name in NAMES]
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  np.testing.assert_allclose(total, sum(theirs), rtol=1e-5)
  assert sums['count'] == len(outputs)
  gradient = np.asarray(gradient).transpose(0, 3, 1, 2)
  if f'c{i}/grad_pred' in data:
    expected = data[f'c{i}/grad_pred']
  else:
    norm = np.linalg.norm(gradient.astype(float))
    np.testing.assert_allclose(norm, data[f'c{i}/grad_norm'], rtol=1e-5)
    gradient = gradient.ravel()[data[f'c{i}/grad_idx']]
    expected = data[f'c{i}/grad_samples']
  atol = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=atol)


def test_iou_is_the_reference_s():
  data = losses()
  found = geometry.iou(data['iou/a'], data['iou/b'])
  np.testing.assert_allclose(found, data['iou/score'], atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(
  'dtype', [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)]
)
def test_one_training_step_is_the_reference_s(dtype):
  data = golden.load('det_train_tiny_b3.npz')
  state = {
    k: v if v.dtype == np.int64 else v.astype(dtype)
    for k, v in golden.state(data).items()
  }
  labels = data['labels']
  with jax.enable_x64(dtype == np.float64):
    variables = load_torch(state, 'yolov2_tiny', 3)
    network = fs.build('yolov2_tiny', 3, 20)
    images = golden.images(data).transpose(0, 2, 3, 1).astype(dtype)
    batch = {
      'boxes': labels[..., :4].astype(dtype),
      'label': labels[..., 4].astype(np.int32),
      'mask': np.ones(len(labels), dtype),
    }

    @jax.jit
    def step(params):
      def mean_loss(params):
        tree = {**variables, 'params': params}
        output, _, statistics = network.apply(tree, images, train=True)
        total, sums = loss(
          output, batch, anchors=network.anchors, stride=network.stride
        )
        return total, (sums, statistics)

      return jax.grad(mean_loss, has_aux=True)(params)

    gradient, (sums, statistics) = step(variables['params'])
    ours = [sums[name] / len(images) for name in NAMES]
    np.testing.assert_allclose(ours, data['losses'], rtol=1e-5)
    # The names of a gradient's leaves are those of the parameters.
    tree = {'params': gradient, 'batch_stats': statistics}
    named = save_torch(tree, 'yolov2_tiny', 3)
  # One deciding ulp in float32 moves single activations by a level.
  rtol = 1e-4 if dtype == np.float64 else 2e-2
  seen = 0
  for key in map(str, data['grad_keys']):
    if key.endswith('.0.bias'):  # in front of a norm: zero up to rounding
      continue
    found, expected = named[key], data.get(f'grad/{key}')
    if expected is None:
      found = found.ravel()[data[f'idx/{key}']]
      expected = data[f'grad_samples/{key}']
    worst = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    assert worst < rtol, key
    seen += 1
  assert seen == 42 - 8
  for key in named:
    # The running means here do not have the bias that theirs have.
    if key.endswith('running_var') and f'after/{key}' in data:
      after = data[f'after/{key}']
      np.testing.assert_allclose(named[key], after, rtol=1e-5, err_msg=key)


# --- properties -------------------------------------------------------------


@st.composite
def images(draw):
  """(boxes [G, 4], label [G]) with shared cells, tiny and absent objects.

  Sums of powers of two: on a cell's edge rounding would decide.
  """
  boxes, label = [], []
  for _ in range(draw(st.integers(1, 6))):
    x, y = (draw(st.sampled_from([0, 0.25, 0.3125, 0.6875, 1])) for _ in 'xy')
    w, h = (
      draw(st.sampled_from([2**-10, 0.25, 0.28125, 0.625, 1.25])) for _ in 'wh'
    )
    boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    label.append(draw(st.integers(-1, 2)))
  return np.array(boxes, np.float32), np.array(label, np.int32)


@functools.partial(jax.jit, static_argnames='conflict')
def assigned(boxes, label, conflict):
  return assign(
    boxes, label, grid=(3, 4), anchors=IN_BETWEEN, stride=16, conflict=conflict
  )


@pytest.mark.once
@given(image=images(), conflict=st.sampled_from(['last', 'positive']))
def test_targets_by_numpy(image, conflict):
  absent = 6 - len(image[1])  # one shape, one program
  boxes = np.pad(image[0], ((0, absent), (0, 0)))
  label = np.pad(image[1], (0, absent), constant_values=-1)
  found = as_rows(assigned(boxes[None], label[None], conflict))[0]
  expected = oracle_targets(boxes, label, (3, 4), IN_BETWEEN, 16, conflict)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_later_object_may_leave_an_earlier_one_s_anchor_alone():
  def box(w, h):  # in a cell of 32 pixels of a 96 pixel image
    return [0.5 - w / 6, 0.5 - h / 6, 0.5 + w / 6, 0.5 + h / 6]

  boxes = np.array([[box(1.0, 1.0), box(1.2, 1.1)]], np.float32)
  run = functools.partial(
    assign, grid=(3, 3), anchors=IN_BETWEEN, stride=32, label=np.array([[0, 1]])
  )
  cell = slice(4 * 3, 5 * 3)
  assert run(boxes).objectness[0, cell].tolist() == [-1, 1, 0]
  kept = run(boxes, conflict='positive')
  assert kept.objectness[0, cell].tolist() == [1, 1, 0]
  with pytest.raises(fs.UserError, match="conflict='first'"):
    run(boxes, conflict='first')


@pytest.mark.once
@given(seed=st.integers(0, 2**16), image=images())
def test_loss_by_numpy(seed, image):
  absent = 6 - len(image[1])
  boxes = np.pad(image[0], ((0, absent), (0, 0)))[None]
  label = np.pad(image[1], (0, absent), constant_values=-1)[None]
  outputs = np.random.default_rng(seed).normal(size=(1, 3, 4, 24)).astype('f')
  found = small_terms(outputs, boxes, label)
  rows = oracle_targets(boxes[0], label[0], (3, 4), IN_BETWEEN, 16, 'last')
  expected = oracle_loss(outputs, rows[None], IN_BETWEEN)
  for name, value in zip(NAMES, expected, strict=True):
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@jax.jit
def small_terms(outputs, boxes, label):
  batch = {'boxes': boxes, 'label': label, 'mask': jnp.ones(len(boxes))}
  return terms(outputs, batch, anchors=IN_BETWEEN, stride=16)


def centred():
  """One object in the middle of cell (6, 6), of the second anchor's shape."""
  centre = np.array([6.5, 6.5]) / 13
  half = np.array(VOC_ANCHORS[1]) / 26
  boxes = np.concatenate([centre - half, centre + half])[None, None]
  return {
    'boxes': boxes.astype('f'),
    'label': np.array([[3]]),
    'mask': np.ones(1),
  }


def test_the_spec_s_golden_value():
  _, sums = loss(jnp.zeros((1, 13, 13, 125)), centred(), **ONE)
  found = [float(sums[name]) for name in NAMES]
  np.testing.assert_allclose(found, [212.25, 2.995732, 2.667541, 0], atol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize('row', [0, 6])  # an empty cell, and the object's
def test_the_gradient_is_finite_where_a_size_overflows(row):
  outputs = np.zeros((1, 13, 13, 125), 'f')
  outputs[0, row, 6, 105:] = 100
  gradient = jax.grad(lambda x: loss(x, centred(), **ONE)[0])(outputs)
  assert jnp.all(jnp.isfinite(gradient))
  if row == 0:
    assert jnp.all(gradient[0, row, 6, 105:] == 0)


@pytest.mark.once
def test_padded_rows_count_for_nothing():
  outputs, batch, settings = case(0)
  whole, sums = loss(
    outputs[:2], {k: v[:2] for k, v in batch.items()}, **settings
  )
  masked = {**batch, 'mask': np.array([1, 1, 0], 'f')}
  garbage = np.concatenate([outputs[:2], np.full_like(outputs[:1], 1e30)])
  again, others = loss(garbage, masked, **settings)
  np.testing.assert_allclose(again, whole, rtol=1e-6)
  assert others['count'] == sums['count'] == 2
  none = {**batch, 'mask': np.zeros(3, 'f')}
  assert loss(outputs, none, **settings)[0] == 0


def test_decoded_boxes_are_the_reference_s():
  data = golden.load('det_decode_nms.npz')
  for i in range(5):
    outputs = data[f'c{i}/pred'].transpose(0, 2, 3, 1)
    anchors = VOC_ANCHORS if outputs.shape[-1] == 125 else COCO_ANCHORS
    _, _, offsets = geometry.split(outputs, 5)
    found = geometry.decode(offsets, outputs.shape[1:3], anchors)
    pixels = found * data[f'c{i}/input_size']
    expected = data[f'c{i}/boxes_xyxy_px']
    np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-4)
