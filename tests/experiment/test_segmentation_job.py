"""The main job on pictures with masks: train, be cut, go on, convert."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.jobs import assert_a_cut_run_is_whole, one_line
from support.masks import palette
from support.models import registered
from support.pictures import encode

import fastsnn_jax as fs
from fastsnn_jax.architectures import deeplab, resnet
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage
from fastsnn_jax.experiment.workdir import open_data
from fastsnn_jax.nn.tables.table import IMAGE

pytestmark = pytest.mark.once

KINDS = 'ground', 'disc', 'square'


def table(bits, classes):
  del bits
  return [
    resnet.row('layer1', 8, IMAGE, stride=2),
    resnet.row('layer2', 16, 'layer1', stride=2),
    *deeplab._pyramid(8, 'layer2', (0, 2)),
    deeplab._prediction('head', classes, 'project'),
  ]


@pytest.fixture(scope='module', autouse=True)
def tiny_deeplab():
  static = {'task': 'segmentation', 'stride': 4, 'remainder': 1}
  with registered('tiny_deeplab', table, size=33, **static):
    yield


def write_masks(directory, counts=(40, 8, 8)):
  """Grey pictures with a red disc or a blue square, and their masks."""
  random = np.random.default_rng(0)
  for folder in ('SegmentationClass', 'JPEGImages', 'ImageSets/Segmentation'):
    (directory / folder).mkdir(parents=True)
  (directory / 'classes.txt').write_text('\n'.join(KINDS))
  number = 0
  for part, count in zip(('train', 'val', 'test'), counts, strict=True):
    names = []
    for _ in range(count):
      height, width, side = 30, 33, int(random.integers(12, 18))
      image = np.full((height, width, 3), 127, np.uint8)
      label = np.zeros((height, width), np.uint8)
      y, x = (int(random.integers(0, n - side)) for n in (height, width))
      rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
      kind = 1 + number % 2
      inside = np.hypot(rows, columns) < side / 2 if kind == 1 else rows == rows
      here = np.s_[y : y + side, x : x + side]
      image[here][inside] = (255, 0, 0) if kind == 1 else (0, 0, 255)
      label[here][inside] = kind
      label[0] = 255
      names.append(f'{number:04}')
      number += 1
      for folder, content, end in (
        ('JPEGImages', encode(image), 'png'),
        ('SegmentationClass', palette(label), 'png'),
      ):
        (directory / folder / f'{names[-1]}.{end}').write_bytes(content)
    listed = directory / 'ImageSets/Segmentation' / f'{part}.txt'
    listed.write_text('\n'.join(names))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
  directory = tmp_path_factory.mktemp('masks')
  write_masks(directory)
  return directory


def job_of(path, **data):
  return Experiment(
    model='tiny_deeplab',
    data=Data('masks', str(path), batch=8, eval_batch=4, **data),
    stages=(
      Stage(32, 10, learning_rate=0.02, schedule='poly'),
      Stage(2, 5, learning_rate=0.01, schedule='poly'),
    ),
    convert=Conversion(
      bits=(2,), tune=('parallel',), tune_images=16, explain=False
    ),
    optimizer='adamw',
    select='last',
  )


@pytest.fixture(scope='module')
def job(shapes, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('job')
  config = job_of(shapes, crop=0)
  return config, workdir, fs.train(config, workdir), fs.convert(workdir)


def test_a_segmenter_is_trained_converted_and_judged_as_all_networks(job):
  config, workdir, trained, results = job
  assert results['metric'] == 'mIoU'
  assert results['task'] == 'segmentation'
  assert results['float_mIoU'] == trained['ann32'] > 0.8
  assert [row['mode'] for row in results['rows']] == [
    'unsigned',
    'signed',
    'settled',
    'signed',
  ]
  for row in results['rows']:
    assert row['ann_mIoU'] == trained['ann2'] > 0.7
    quiet = row['mode'] == 'settled'  # one entry for all after T steps
    assert len(row['over_time']) == (row['T'] + 1 if quiet else row['steps'])
    assert np.mean(row['by_class']) == pytest.approx(row['mIoU'])
  settled = results['rows'][2]
  assert settled['agreement'] == pytest.approx(1, abs=1e-4)
  network, variables = fs.load(workdir / 'snn2')
  dataset = open_data(config)
  image = dataset.test['image'][0][:30]
  found = fs.segment(network, variables, image)
  truth = dataset.test['label'][0][:30]
  assert np.mean((found == truth)[truth != 255]) > 0.8


@pytest.mark.slow
def test_a_conversion_has_steps_and_batches_of_its_own(job, tmp_path):
  """As the official code runs its VGG-9, for more steps than levels."""
  _, workdir, _, results = job
  shutil.copytree(workdir / 'ann2', tmp_path / 'ann2')
  found = fs.convert(
    tmp_path, steps=5, eval_batch=1, tune_batch=3, keep='settled'
  )
  *others, settled, tuned = (row['steps'] for row in found['rows'])
  assert (*others, tuned) == (5, 5, 5)
  assert settled == max(found['rows'][2]['quiet_step'], 5)  # until quiet
  for row, before in zip(found['rows'], results['rows'], strict=True):
    assert row['T'] == 5
    assert row['ann_mIoU'] == before['ann_mIoU']  # whatever the batch
  network, _ = fs.load(tmp_path / 'snn2')
  assert (network.neuron.steps, network.neuron.max_count) == (5, 5)
  assert fs.load(workdir / 'ann2')[0].size == 33


def test_the_report_shows_maps_and_classes(job):
  _, workdir, _, _ = job
  report = workdir / 'report'
  assert (report / 'plots' / 'pictures-2-bits.png').is_file()
  assert (report / 'plots' / 'by_class.png').is_file()
  text = (report / 'report.md').read_text()
  assert '| mIoU |' in text
  assert 'share of pixels' in text
  assert json.loads((report / 'results.json').read_text())['metric'] == 'mIoU'


@pytest.mark.parametrize(
  'data',
  [
    pytest.param({'sizes': (25,)}, marks=pytest.mark.slow),
    {'stream': True},
  ],
  ids=['crops', 'streamed'],
)
def test_a_cut_run_goes_on_to_the_same_bits(
  shapes, tmp_path, monkeypatch, data
):
  config = job_of(shapes, **data)
  config = dataclasses.replace(config, stages=config.stages[:1])
  assert_a_cut_run_is_whole(config, tmp_path, monkeypatch)


def test_classes_are_balanced_where_masks_are_at_hand(shapes, tmp_path):
  config = job_of(shapes, crop=0)
  one = dataclasses.replace(config.stages[0], epochs=1)
  config = dataclasses.replace(config, stages=(one,), balance=1.0)
  fs.train(config, tmp_path / 'a')
  plain = dataclasses.replace(config, balance=0.0)
  fs.train(plain, tmp_path / 'b')
  losses = [
    json.loads((tmp_path / name / 'metrics.jsonl').read_text().splitlines()[-1])
    for name in 'ab'
  ]
  assert losses[0]['train_loss'] != losses[1]['train_loss']
  for model, stream in (('tiny_deeplab', True), ('small_resnet8', False)):
    data = dataclasses.replace(config.data, stream=stream)
    if model == 'small_resnet8':
      data = Data(batch=8)
    asked = dataclasses.replace(config, model=model, data=data)
    with pytest.raises(fs.UserError, match=r'balance=1.*leave it') as caught:
      fs.train(asked, tmp_path / model)
    one_line(caught)
