"""The main job on pictures with boxes: train, be cut, go on, convert."""

import dataclasses
import json
import os

import numpy as np
import PIL.Image
import pytest
from support.jobs import assert_a_cut_run_is_whole
from support.models import registered
from support.training import devices

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.architectures import yolo
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage
from fastsnn_jax.experiment.workdir import open_data
from fastsnn_jax.nn.tables.table import IMAGE
from fastsnn_jax.training import loop

pytestmark = pytest.mark.once

KINDS = 'disc', 'square'
ANCHORS = ((1.0, 1.0), (2.0, 2.0))


def table(bits, classes, anchors):
  del bits
  return [
    yolo._row('layer1', 8, IMAGE, stride=2),
    yolo._row('layer2', 16, 'layer1', stride=2),
    yolo._row('layer3', 16, 'layer2', stride=2),
    yolo._prediction(classes, anchors, 'layer3'),
  ]


@pytest.fixture(scope='module', autouse=True)
def tiny_yolo():
  static = {'task': 'detection', 'stride': 8, 'anchors': ANCHORS}
  with registered('tiny_yolo', table, size=32, **static):
    yield


def write_voc(directory, counts=(60, 10)):
  """Grey pictures with a red disc or a blue square, in VOC's layout."""
  random = np.random.default_rng(0)
  for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
    (directory / folder).mkdir(parents=True)
  number = 0
  for part, count in zip(('trainval', 'test'), counts, strict=True):
    names = []
    for _ in range(count):
      width, height = 48, 40
      image = np.full((height, width, 3), 127, np.uint8)
      side = int(random.integers(13, 19))
      x = int(random.integers(0, width - side))
      y = int(random.integers(0, height - side))
      kind = KINDS[number % 2]
      rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
      inside = np.hypot(rows, columns) < side / 2
      if kind == 'square':
        inside[:] = True
      colour = (255, 0, 0) if kind == 'disc' else (0, 0, 255)
      image[y : y + side, x : x + side][inside] = colour
      names.append(f'{number:04}')
      PIL.Image.fromarray(image).save(
        directory / 'JPEGImages' / f'{names[-1]}.jpg', quality=95
      )
      corners = zip(
        ('xmin', 'ymin', 'xmax', 'ymax'),
        (x + 1, y + 1, x + side + 1, y + side + 1),
        strict=True,
      )
      box = ''.join(f'<{name}>{value}</{name}>' for name, value in corners)
      (directory / 'Annotations' / f'{names[-1]}.xml').write_text(
        f'<annotation><object><name>{kind}</name><bndbox>{box}</bndbox>'
        '</object></annotation>'
      )
      number += 1
    (directory / 'ImageSets/Main' / f'{part}.txt').write_text('\n'.join(names))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
  directory = tmp_path_factory.mktemp('shapes')
  write_voc(directory)
  return directory


def job_of(path, **data):
  return Experiment(
    model='tiny_yolo',
    data=Data('shapes', str(path), batch=8, eval_batch=4, crop=0, **data),
    stages=(
      Stage(32, 16, learning_rate=0.01, schedule='cosine'),
      Stage(2, 6, learning_rate=0.005, schedule='cosine'),
    ),
    convert=Conversion(
      bits=(2,), tune='parallel', tune_images=16, coco=True, explain=False
    ),
    warmup=1.0,
    warmup_power=4.0,
    optimizer='adamw',
    select='last',
  )


@pytest.fixture(scope='module')
def job(shapes, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('job')
  config = job_of(shapes)
  return config, workdir, fs.train(config, workdir), fs.convert(workdir)


def test_a_detector_is_trained_converted_and_judged_as_all_networks(job):
  _, workdir, trained, results = job
  assert set(trained) == {'ann32', 'ann2'}
  assert results['metric'] == 'mAP50'
  assert results['task'] == 'detection'
  assert results['float_mAP50'] == trained['ann32'] > 0.5
  assert results['classes'] == list(KINDS)
  rows = {(row['mode'], row['tuned']): row for row in results['rows']}
  assert list(rows) == [
    ('unsigned', 'none'),
    ('signed', 'none'),
    ('settled', 'none'),
    ('signed', 'parallel'),
  ]
  for row in rows.values():
    assert row['ann_mAP50'] == trained['ann2']
    assert len(row['over_time']) == row['steps']
    assert row['over_time'][-1] == row['mAP50']
    assert np.mean(row['by_class']) == pytest.approx(row['mAP50'])
    assert row['coco']['AP50'] == pytest.approx(row['mAP50'], abs=0.1)
    assert len(row['ann_coco']) == 12
  settled = rows['settled', 'none']
  assert settled['agreement'] == 1
  assert settled['mAP50'] == trained['ann2']
  network, _ = fs.load(workdir / 'snn2')
  assert network.spiking
  assert network.anchors == ANCHORS
  assert network.size == 32


def test_the_report_shows_boxes_and_classes(job):
  _, workdir, _, _ = job
  report = workdir / 'report'
  assert (report / 'plots' / 'pictures-2-bits.png').is_file()
  assert (report / 'plots' / 'by_class.png').is_file()
  text = (report / 'report.md').read_text()
  assert '| mAP50 |' in text
  assert 'find the same objects' in text
  assert "COCO's numbers, in numbers" in text
  assert '| bits | network | disc | square |' in text
  assert json.loads((report / 'results.json').read_text())['metric'] == 'mAP50'


def test_a_shared_out_evaluation_has_the_same_average_precision(job):
  config, workdir, trained, _ = job
  network, variables = fs.load(workdir / 'ann2')
  dataset = open_data(config)
  spiking = {'signed': (fs.to_spiking(network), variables)}
  assert len(dataset.test) % 8

  def judged():
    found = fs.compare(network, variables, spiking, dataset.test, batch=4)
    return found['signed']

  with devices(8):
    eight = judged()
  one = judged()
  for name in ('mAP50', 'ann_mAP50', 'over_time', 'by_class', 'agreement'):
    assert one[name] == eight[name], name
  assert one['ann_mAP50'] == trained['ann2']


@pytest.mark.parametrize(
  'data',
  [
    pytest.param({'sizes': (32, 48)}, marks=pytest.mark.slow),
    {'stream': True, 'size': 32, 'anchors': 2},
  ],
  ids=['several sizes', 'streamed'],
)
def test_a_cut_run_goes_on_to_the_same_bits(
  shapes, tmp_path, monkeypatch, data
):
  config = dataclasses.replace(
    job_of(shapes, **data),
    stages=(Stage(32, 8, learning_rate=0.003),),
    ema=0.9,
  )
  compiled = []
  real = loop.make_step

  def counted(*args):
    step = real(*args)
    compiled.append(step.advance)
    return step

  monkeypatch.setattr(loop, 'make_step', counted)
  assert_a_cut_run_is_whole(config, tmp_path, monkeypatch)
  # One program for each side of the images, in a run that is not cut.
  assert compiled[0]._cache_size() == len(data.get('sizes', (32,)))


def test_settings_that_do_not_go_together_are_refused(shapes, tmp_path):
  config = job_of(shapes)
  with pytest.raises(UserError, match=r'smoothing=.*no use for this task'):
    fs.train(dataclasses.replace(config, smoothing=0.1), tmp_path / 'a')
  other = dataclasses.replace(config, model='small_resnet8')
  other = dataclasses.replace(other, data=Data('digits', size=8))
  with pytest.raises(UserError, match='leave both out'):
    fs.train(other, tmp_path / 'b')
  odd = dataclasses.replace(config, data=Data('shapes', str(shapes), size=36))
  with pytest.raises(UserError, match=r'data\.size=36: .* of 8; choose 32'):
    fs.train(odd, tmp_path / 'c')
  late = dataclasses.replace(config, data=Data('shapes', sizes=(32, 36)))
  with pytest.raises(UserError, match=r'data\.sizes=.*for 36'):
    fs.train(late, tmp_path / 'e')
  other = dataclasses.replace(other, data=Data('digits', anchors=5))
  with pytest.raises(UserError, match='no detector'):
    fs.train(other, tmp_path / 'f')
  gone = dataclasses.replace(config, data=Data('shapes', os.fspath('nowhere')))
  with pytest.raises(UserError, match='not a directory'):
    fs.train(gone, tmp_path / 'd')


def test_the_task_is_one_object_per_problem():
  network = fs.build('tiny_yolo', 2, KINDS, mean=(0.5,) * 3, std=(0.5,) * 3)
  spiking = fs.to_spiking(network)
  assert tasks.for_network(network) == tasks.for_network(spiking)
