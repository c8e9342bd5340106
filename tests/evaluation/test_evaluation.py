"""Evaluation against a plain recomputation in NumPy, image by image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training import devices

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.data import as_split
from fastsnn_jax.evaluation import operations as counting
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.synapses import Residual
from fastsnn_jax.nn.weights import Apot, EightBit

CLASSES = 4
MODES = ('unsigned', 'signed', 'settled', 'until quiet')


def tiny(bits=2):
  """A block with an identity shortcut, for images of 4 x 4."""
  layers = (
    fs.Layer('stem', Conv(6, weights=EightBit())),
    fs.Layer('part1', Conv(6, weights=Apot(bits)), ('stem',)),
    fs.Layer('part2', Residual(Conv(6, weights=Apot(bits))), ('part1', 'stem')),
    fs.Layer('out', Dense(CLASSES, norm=False), ('part2',)),
  )
  names = tuple(map(str, range(CLASSES)))
  return fs.Network(
    layers,
    fs.QuantRelu(bits, 2.0),
    bits=bits,
    classes=names,
    mean=(0.5,),
    std=(0.25,),
  )


ANN = tiny()


@functools.cache
def variables():
  return ANN.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def spiking(mode, late=8):
  """ANN's twin; 'settled' runs 8 steps more."""
  if mode == 'until quiet':
    return fs.to_spiking(ANN, 'settled')
  settle = {'settle': late} if mode == 'settled' else {}
  return fs.to_spiking(ANN, mode, **settle)


def drawn(images, seed=0):
  random = np.random.default_rng(seed)
  return {
    'image': random.integers(0, 256, (images, 4, 4, 1)).astype(np.uint8),
    'label': random.integers(0, CLASSES, images).astype(np.int32),
  }


def shown(image):
  return (np.float32(image) / 255 - np.float32(0.5)) / np.float32(0.25)


@functools.cache
def applied(network):
  return jax.jit(network.apply)


def test_batches_hold_every_row_once_and_mask_the_filling():
  data = drawn(10)
  found = list(as_split(data).batches(4))
  assert [len(batch['image']) for batch in found] == [4, 4, 4]
  mask = np.concatenate([batch['mask'] for batch in found])
  np.testing.assert_array_equal(mask, [1] * 10 + [0] * 2)
  for key in data:
    rows = np.concatenate([batch[key] for batch in found])
    np.testing.assert_array_equal(rows[mask == 1], data[key])


@pytest.mark.parametrize('batch', [4, 16])
def test_evaluate_counts_each_image_once(batch):
  data = drawn(10)
  output, _ = applied(ANN)(variables(), shown(data['image']))
  correct = np.argmax(output, -1) == data['label']
  assert 0 < correct.mean() < 1  # else the test could not tell
  got = fs.evaluate(ANN, variables(), data, batch=batch)
  assert got == {'accuracy': correct.mean()}


def test_evaluate_takes_a_spiking_network_as_it_is():
  data = drawn(10)
  snn = fs.to_spiking(ANN, 'settled')
  output, _ = applied(snn)(variables(), shown(data['image']))
  want = (np.argmax(output, -1) == data['label']).mean()
  assert fs.evaluate(snn, variables(), data, batch=4)['accuracy'] == want


@functools.cache
def judged():
  """`compare` on 19 images in batches of eight, and the data."""
  data, calls = drawn(19), []
  twins = {mode: (spiking(mode), variables()) for mode in MODES}
  with devices(8):
    rows = fs.compare(
      ANN,
      variables(),
      twins,
      data,
      task=tasks.for_network(ANN),
      batch=3,
      advance=lambda: calls.append(None),
    )
  assert len(calls) == 3  # of eight, for the devices share out a batch evenly
  return rows, data


@functools.cache
def recomputed(mode):
  """The same from `network.apply` and NumPy, without a word of evaluation."""
  _, data = judged()
  network, x = spiking(mode), shown(data['image'])
  if waits := mode == 'until quiet':
    network = spiking('settled', late=20)
  target, targets = jax.device_get(applied(ANN)(variables(), x))
  output, activity = jax.device_get(applied(network)(variables(), x))
  top, total = network.neuron.steps, network.neuron.total_steps
  tree = jax.device_get(variables()['params'])
  kernel, bias = (
    tree['out']['synapse']['kernel'],
    tree['out']['synapse']['bias'],
  )
  last = activity['part2']
  over_time, agreement = [], []
  read = [*range(1, top + 1), total] if waits else range(1, total + 1)
  for step in read:
    rate = last[:, :step].sum(1) / min(step, top)
    logits = rate.reshape(len(rate), -1) @ kernel + bias
    over_time.append((logits.argmax(-1) == data['label']).mean())
    agreement.append((logits.argmax(-1) == target.argmax(-1)).mean())
  fans = counting.connections(ANN, variables(), (4, 4, 1))
  layers, spikes, synops, neurons, quiet = [], 0, 0.0, 0, np.zeros(len(x), int)
  for name in ('stem', 'part1', 'part2'):
    theta, a = float(tree[name]['theta']), activity[name]
    fired, rate = a != 0, a.sum(1) / top
    counts = np.rint(a.sum(1) / theta)
    levels = np.rint(targets[name] / theta * top)
    layers.append(
      {
        'name': name,
        'error': np.abs(rate - targets[name]).mean() / theta,
        'differing': (counts != levels).mean(),
        'firing_rate': fired.sum() / fired[:, 0].size,
      }
    )
    spikes += fired.sum()
    neurons += fired[0, 0].size
    busy = fired.reshape(len(x), total, -1).any(-1)
    for image, steps in enumerate(busy):
      quiet[image] = max(quiet[image], *(np.flatnonzero(steps) + 1), 0)
    for layer in ANN.layers:
      for source, fan in zip(layer.inputs, fans[layer.name], strict=True):
        if source == name:
          synops += (fired.sum(1) * np.asarray(fan)).sum()
  macs = counting.macs(ANN, variables(), (4, 4, 1))
  total = max(top, quiet.max()) if waits else total
  for layer in layers:
    layer['firing_rate'] /= total
  return {
    'images': len(x),
    'T': top,
    'steps': total,
    'accuracy': (output.argmax(-1) == data['label']).mean(),
    'ann_accuracy': (target.argmax(-1) == data['label']).mean(),
    'agreement': (output.argmax(-1) == target.argmax(-1)).mean(),
    'max_logit_difference': np.abs(output - target).max(),
    'mean_firing_rate': spikes / len(x) / neurons / total,
    'spikes_per_image': spikes / len(x),
    'synops_per_image': synops / len(x) + macs['stem'],
    'macs_per_image': sum(macs.values()),
    **(
      {
        'quiet_step': quiet.max(),
        'quiet_histogram': np.bincount(quiet, minlength=total + 1),
        'not_quiet': 0 if waits else (quiet == total).sum(),
      }
      if mode in ('settled', 'until quiet')
      else {}
    ),
    'over_time': over_time,
    'agreement_over_time': agreement,
    'layers': layers,
  }


@pytest.mark.once
@pytest.mark.parametrize('mode', MODES)
def test_compare_is_what_numpy_makes_of_the_spikes(mode):
  row, want = dict(judged()[0][mode]), dict(recomputed(mode))
  assert row.keys() == want.keys()
  for got, layer in zip(row.pop('layers'), want.pop('layers'), strict=True):
    assert got.pop('name') == layer.pop('name')
    assert got.keys() == layer.keys()
    for key, value in layer.items():
      np.testing.assert_allclose(
        got[key], value, rtol=1e-5, atol=1e-6, err_msg=key
      )
  for key, value in want.items():
    np.testing.assert_allclose(
      row[key], value, rtol=1e-5, atol=1e-5, err_msg=key
    )


@pytest.mark.once
def test_the_images_tell_the_modes_apart():
  rows, _ = judged()
  errors = {
    mode: sum(layer['error'] for layer in rows[mode]['layers'])
    for mode in MODES
  }
  assert errors['unsigned'] > errors['signed'] > errors['settled']
  # The first layer's input is constant: it is exact in every mode.
  for mode in MODES:
    assert rows[mode]['layers'][0]['differing'] == 0


@pytest.mark.once
def test_settled_is_lossless_and_says_when_it_is_quiet():
  row = judged()[0]['settled']
  assert row['agreement'] == 1
  assert row['accuracy'] == row['ann_accuracy']
  assert row['max_logit_difference'] < 1e-5
  assert all(layer['differing'] == 0 for layer in row['layers'])
  assert sum(row['quiet_histogram']) == 19
  assert row['quiet_step'] <= row['steps'] == row['T'] + 8


def test_until_quiet_runs_as_many_steps_as_there_are_spikes():
  row, bounded = judged()[0]['until quiet'], judged()[0]['settled']
  assert row['agreement'] == 1
  assert row['T'] < row['steps'] == row['quiet_step'] == bounded['quiet_step']
  assert row['not_quiet'] == 0
  assert len(row['over_time']) == row['T'] + 1
  for name in ('accuracy', 'spikes_per_image', 'synops_per_image'):
    assert row[name] == bounded[name]


def test_what_still_fires_in_the_last_step_is_counted():
  longer = judged()[0]['settled']
  last = longer['quiet_step']
  twins = {'few': (spiking('settled', last - longer['T']), variables())}
  row = fs.compare(ANN, variables(), twins, drawn(19), batch=8)['few']
  assert row['steps'] == last
  assert row['not_quiet'] == longer['quiet_histogram'][last] > 0
  assert longer['not_quiet'] == 0


def test_a_silent_network_is_quiet_from_the_start():
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.full_like(x, 1e9) if path[-1].key == 'theta' else x,
    variables()['params'],
  )
  silent = {**variables(), 'params': params}
  twins = {'2': (spiking('settled', late=2), silent)}
  twins['until quiet'] = spiking('until quiet'), silent
  rows = fs.compare(ANN, silent, twins, drawn(3), batch=3)
  for row, steps in zip(rows.values(), (5, 3), strict=True):
    assert row['spikes_per_image'] == row['mean_firing_rate'] == 0
    assert row['quiet_step'] == row['not_quiet'] == 0
    assert row['quiet_histogram'] == [3, *[0] * steps]
    assert row['steps'] == steps
  macs = counting.macs(ANN, silent, (4, 4, 1))
  assert row['synops_per_image'] == macs['stem']  # the first layer's, once


def test_classify_takes_batches_and_single_images_of_bytes_or_floats():
  images = drawn(5)['image']
  output, _ = applied(ANN)(variables(), shown(images))
  want = np.argmax(output, -1)
  got = fs.classify(ANN, variables(), images)
  np.testing.assert_array_equal(got, want)
  floats = fs.classify(ANN, variables(), images.astype(np.float32))
  np.testing.assert_array_equal(floats, want)
  single = fs.classify(ANN, variables(), images[2])
  assert np.ndim(single) == 0
  assert single == want[2]
  assert ANN.classes[single] == str(want[2])


def test_classify_runs_a_spiking_network():
  images = drawn(5)['image']
  snn = fs.to_spiking(ANN, 'settled')
  np.testing.assert_array_equal(
    fs.classify(snn, variables(), images), fs.classify(ANN, variables(), images)
  )


@pytest.mark.parametrize('value', [-999, -1, 256, np.nan, np.inf])
def test_classify_refuses_what_is_no_pixel(value):
  images = drawn(2)['image'].astype(np.float32)
  images[1, 0, 0, 0] = value
  with pytest.raises(fs.UserError, match='must have pixels, of 0 to 255'):
    fs.classify(ANN, variables(), images)
  with pytest.raises(fs.UserError, match='must have pixels, of 0 to 255'):
    fs.classify(ANN, variables(), images[1])
  with pytest.raises(fs.UserError, match=r'must be \[B, H, W, C\]'):
    fs.classify(ANN, variables(), images[0, ..., 0])


def test_a_task_is_named_in_compare():
  with pytest.raises(TypeError):
    fs.compare(ANN, variables(), {}, drawn(3), tasks.for_network(ANN))


def test_any_label_may_name_a_spiking_network():
  twins = {
    name: (fs.to_spiking(ANN), variables()) for name in ('ann', 'images')
  }
  rows = fs.compare(ANN, variables(), twins, drawn(3))
  assert rows['ann'] == rows['images']
  assert rows['ann']['images'] == 3


@pytest.mark.once
@dataclasses.dataclass(frozen=True)
class TwoAnswers(fs.Task):
  """A task of one's own, whose predictions are a dict."""

  metric = 'share'

  def predict(self, outputs):
    top, rest = jax.lax.top_k(outputs, 2)[1].T
    return {'best': top, 'pair': jnp.stack([top, rest], 1)}

  def measure(self, predictions, batch):
    right = (predictions['pair'] == batch['label'][:, None]).any(1)
    return {
      'right': (right * batch['mask']).sum(),
      'count': batch['mask'].sum(),
    }

  def loss(self, outputs, batch):
    sums = self.measure(self.predict(outputs), batch)
    return 0.0, {'loss': jnp.float32(0), **sums}

  def summarize(self, sums, kept=None):
    return {'share': float(sums['right'] / sums['count'])}


def test_a_registered_task_is_judged_and_compared(monkeypatch):
  monkeypatch.setattr(tasks, '_TASKS', dict(tasks._TASKS))
  fs.register_task('two answers', TwoAnswers)
  ann, data = dataclasses.replace(ANN, task='two answers'), drawn(10)
  output, _ = applied(ANN)(variables(), shown(data['image']))
  pairs = np.argsort(-np.asarray(output), -1)[:, :2]
  want = (pairs == data['label'][:, None]).any(1).mean()
  assert fs.evaluate(ann, variables(), data) == {'share': want}
  snn = fs.to_spiking(ann, 'unsigned')
  other, _ = applied(snn)(variables(), shown(data['image']))
  same = np.argsort(-np.asarray(other), -1)[:, :2] == pairs
  row = fs.compare(ann, variables(), {'snn': (snn, variables())}, data)['snn']
  assert row['ann_share'] == want
  assert row['agreement'] == same.all(1).mean() < 1
  with pytest.raises(fs.UserError, match=r'two answers; use fs\.evaluate'):
    fs.classify(ann, variables(), data['image'])
  with pytest.raises(fs.UserError, match='smoothing: of no use'):
    tasks.for_network(ann, smoothing=0.1)
  with pytest.raises(fs.UserError, match='no subclass'):
    fs.register_task('wrong', TwoAnswers(4))
  with pytest.raises(fs.UserError, match="task='unknown'"):
    tasks.for_network(dataclasses.replace(ANN, task='unknown'))
