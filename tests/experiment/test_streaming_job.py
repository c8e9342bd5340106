"""The main job on photographs that stream from disk: train, be cut, convert."""

import contextlib
import io
import json
import os
import re
import signal

import numpy as np
import PIL.Image
import pytest
from support.jobs import assert_equal_bits, check_kills
from support.models import TINY_RESNET, registered, tiny_resnet
from support.pictures import encode, smooth, write_tfds

import fastsnn_jax as fs
from fastsnn_jax.checkpoint import store as checkpoint
from fastsnn_jax.data import Stream
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage
from fastsnn_jax.experiment.convert import _tuning_images
from fastsnn_jax.experiment.workdir import open_data
from fastsnn_jax.training.log import Log

pytestmark = pytest.mark.once

DAMAGED, TEST = (5, 50), 20


@pytest.fixture(scope='module', autouse=True)
def registered_tiny_resnet():
  with registered('tiny_resnet', tiny_resnet):
    yield


def photograph(number):
  """Of varying sizes and kinds, as ImageNet's are; two are damaged."""
  random = np.random.default_rng(number)
  height, width = random.integers(20, 90, 2)
  image = PIL.Image.fromarray(smooth(height, width, seed=number))
  if number in DAMAGED:
    return encode(image, 'JPEG')[:100]
  if number % 10 == 1:
    return encode(image.convert('L'), 'JPEG')
  if number % 10 == 2:
    return encode(image.convert('CMYK'), 'JPEG')
  if number % 10 == 3:
    return encode(image.resize((3, 2)), 'JPEG')
  if number % 10 == 4:
    return encode(image, 'PNG')
  return encode(image, 'JPEG')


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  """A TFDS data set of 120 photographs."""
  folder = tmp_path_factory.mktemp('photographs')
  rows = [(photograph(number), number % 3) for number in range(120)]
  write_tfds(
    folder,
    {'train': rows[TEST:], 'validation': rows[:TEST]},
    name='imagenet2012',
    shape=(None, None, 3),
  )
  return folder


def job(folder, model, size, batch, epochs=1, **changes):
  return Experiment(
    model=model,
    data=Data(
      'imagenet2012',
      str(folder),
      batch=batch,
      eval_batch=batch,
      held_out=0.2,
      jitter=0.4,
      stream=True,
      size=size,
    ),
    stages=(Stage(2, epochs=epochs, learning_rate=0.01),),
    convert=Conversion(bits=(2,), mode='settled', tune='none', explain=False),
    **changes,
  )


def small(folder, **changes):
  return job(folder, 'tiny_resnet', 16, 16, epochs=2, **changes)


@pytest.fixture(scope='module')
def unbroken(photographs, tmp_path_factory):
  """The workdir of a run, its results and what it said."""
  workdir, said = tmp_path_factory.mktemp('unbroken'), io.StringIO()
  with contextlib.redirect_stderr(said):
    results = fs.train(small(photographs), workdir)
  return workdir, results, said.getvalue()


def test_training_says_how_it_goes(unbroken):
  workdir, results, said = unbroken
  assert 0 <= results['ann2'] <= 1
  rows = Log(workdir).rows()
  assert [row['step'] for row in rows] == [5, 10]
  for row in rows:
    assert np.isfinite(row['train_loss'])
    assert 0 <= row['input_wait'] <= 1
    assert row['images_per_second'] > 0
  assert {'compile_seconds', 'start_seconds'} <= rows[0].keys()
  assert not {'compile_seconds', 'start_seconds'} & rows[1].keys()
  # Of the two damaged ones, one is among the last twenty, which are judged.
  lines = [x for x in said.splitlines() if 'cannot be decoded' in x]
  assert len(lines) == 2
  assert any(x.startswith('test: 1 of 20 pictures cannot') for x in lines)
  others = r'ann2(, validation)?: 1 of \d+ pictures cannot be decoded and count'
  assert any(re.match(others, x) for x in lines)


@pytest.mark.parametrize('step', [2, 4, 8])
def test_a_run_cut_in_mid_epoch_goes_on_to_the_same_bits(
  photographs, unbroken, tmp_path, monkeypatch, step
):
  config = small(photographs, save_steps=3)
  real = Stream.batches

  def batches(self, size, *, shuffle=None, **options):
    for number, batch in enumerate(
      real(self, size, shuffle=shuffle, **options)
    ):
      if shuffle is not None and number == step:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  with monkeypatch.context() as patched:
    patched.setattr(Stream, 'batches', batches)
    # It looks at each step whether it was asked to end.
    patched.setattr('fastsnn_jax.training.loop.LOOK_SECONDS', 0)
    with pytest.raises(SystemExit) as caught:
      fs.train(config, tmp_path)
  assert caught.value.code == 143
  saves = (tmp_path / 'unfinished' / 'ann2').glob('[0-9]*')
  assert max(int(path.name) for path in saves) == step + 1
  again = fs.train(config, tmp_path)
  workdir, results, _ = unbroken
  assert again == results
  ours, theirs = (
    checkpoint.load(path / 'ann2')[0] for path in (tmp_path, workdir)
  )
  assert_equal_bits(ours, theirs)
  for mine, other in zip(
    Log(tmp_path).rows(), Log(workdir).rows(), strict=True
  ):
    for name in ('step', 'train_loss', 'train_accuracy', 'val_accuracy'):
      assert mine[name] == other[name]


def test_the_trained_network_is_converted(unbroken, capsys):
  workdir, results, _ = unbroken
  check_converted(fs.convert(workdir), workdir, results)
  said = capsys.readouterr().err
  assert said.count('test: 1 of 20 pictures cannot be decoded') == 1
  assert 'fine-tuning' not in said


@pytest.mark.parametrize('asked', [None, 70])
def test_a_stream_is_tuned_with_what_fits_or_is_asked_for(
  photographs, monkeypatch, capsys, asked
):
  monkeypatch.setattr(
    'fastsnn_jax.experiment.convert.TUNE_BYTES', 60 * 16 * 16 * 3
  )
  config = small(photographs)
  source = open_data(config).train
  tuned = Conversion(bits=(2,), tune_images=asked)
  images = _tuning_images(source, config, tuned)
  said = capsys.readouterr().err.splitlines()
  wanted, total = asked or 60, len(source)
  if asked is None:
    line = f'fine-tuning takes 60 of {total} training images, 0 GB; --tune'
    assert said.pop(0).startswith(line)
  damaged = wanted - len(images)
  assert damaged in (0, 1)  # of the one among all of them
  assert len(said) == damaged
  assert images.shape == (16, 16, 3)
  assert images['image'].dtype == np.uint8
  # The same pictures as an evaluation shows, in its order.
  part, _ = source.split(1 - wanted / total, config.seed)
  batches = list(part.batches(7))
  for name, values in images.arrays.items():
    want = np.concatenate([x[name][x['mask'] > 0] for x in batches])
    np.testing.assert_array_equal(values, want)


@pytest.mark.slow
@pytest.mark.parametrize(('workers', 'epochs'), [(0, 24), (2, 6)])
def test_a_stream_that_is_killed_ends_as_one_that_is_not(
  photographs, tmp_path, workers, epochs
):
  config = f"""{TINY_RESNET}
config = fs.Experiment(
  model='tiny_resnet',
  data=fs.Data(
    'imagenet2012', {str(photographs)!r}, batch=16, eval_batch=16,
    stream=True, size=16, workers={workers},
  ),
  stages=(fs.Stage(2, epochs={epochs}, learning_rate=0.01),),
  save_steps=3,
)
"""
  check_kills(tmp_path, config, ('ann2',))


def check_converted(found, workdir, results):
  (row,) = found['rows']
  assert (row['mode'], row['tuned'], row['T']) == ('settled', 'none', 3)
  # One of the test split's pictures is damaged: it counts nowhere.
  assert found['images'] == row['images'] == TEST - 1
  assert row['ann_accuracy'] == results['ann2']
  assert abs(row['accuracy'] - results['ann2']) <= 1.01 / (TEST - 1)
  assert row['agreement'] >= 1 - 1.01 / (TEST - 1)
  assert sum(row['quiet_histogram']) == TEST - 1
  written = json.loads((workdir / 'report' / 'results.json').read_text())
  assert written['rows'][0]['accuracy'] == row['accuracy']
  network, variables = fs.load(workdir / 'snn2')
  side = 224 if network.model == 'imagenet_alexnet' else 16
  (answer,) = fs.classify(network, variables, smooth(side, side)[None])
  assert 0 <= answer < 3


@pytest.mark.slow
def test_imagenets_alexnet_trains_and_is_converted(photographs, tmp_path):
  config = job(photographs, 'imagenet_alexnet', 224, 40)
  results = fs.train(config, tmp_path)
  assert [row['step'] for row in Log(tmp_path).rows()] == [2]
  check_converted(fs.convert(tmp_path), tmp_path, results)
