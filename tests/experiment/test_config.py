"""The schema: what it refuses, and that it survives JSON and files."""

import dataclasses
import json
import math

import pytest
from support.jobs import one_line
from support.shared import ROOT

from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment.config import Conversion, Data, Experiment, Stage

UNUSUAL = Experiment(
  model='cifar_resnet20',
  data=Data('cifar10', '/data', 32, 50, crop=0, flip=False, held_out=0.25),
  stages=(Stage(32, 7, 0.3, 0.0, 'constant'), Stage(5, 1, schedule='cosine')),
  convert=Conversion(
    bits=(5,),
    mode=('settled',),
    settle=3,
    tune=('parallel', 'none'),
    tune_images=100,
    batch_norm='eval',
    accept='always',
  ),
  seed=3,
  momentum=0.0,
  decay='kernels',
  select='test',
  save_minutes=0.0,
)


@pytest.mark.parametrize('experiment', [Experiment(), UNUSUAL])
def test_an_experiment_survives_json(experiment):
  text = json.dumps(dataclasses.asdict(experiment))
  assert schema.from_dict(json.loads(text)) == experiment


def test_experiments_are_hashable_and_equal_by_value():
  assert hash(Experiment()) == hash(Experiment())
  assert dataclasses.replace(Experiment(), seed=1) != Experiment()


@pytest.mark.parametrize(
  ('make', 'names'),
  [
    (lambda: Data(batch=0), 'data.batch=0'),
    (lambda: Data(eval_batch=-1), 'data.eval_batch=-1'),
    (lambda: Data(crop=-1), 'data.crop=-1'),
    (lambda: Data(held_out=0.0), 'data.held_out=0.0'),
    (lambda: Data(held_out=1.0), 'data.held_out=1.0'),
    (lambda: Stage(1), 'stage.bits=1'),
    (lambda: Stage(6), 'stage.bits=6'),
    (lambda: Stage(2, epochs=0), 'stage.epochs=0'),
    (lambda: Stage(2, learning_rate=0.0), 'stage.learning_rate=0.0'),
    (lambda: Stage(2, learning_rate=math.nan), 'stage.learning_rate=nan'),
    (lambda: Stage(2, weight_decay=-1e-4), 'stage.weight_decay=-0.0001'),
    (lambda: Stage(2, learning_rate=math.inf), 'stage.learning_rate=inf'),
    (lambda: Stage(2, epochs=1.5), 'stage.epochs=1.5'),
    (lambda: Stage(2, schedule='cosin'), "stage.schedule='cosin'"),
    (lambda: Data(batch=64.5), 'data.batch=64.5'),
    (lambda: Data(flip=1), 'data.flip=1'),
    (lambda: Experiment(data='digits'), "experiment.data='digits'"),
    (lambda: Experiment(select='heldout'), "experiment.select='heldout'"),
    (lambda: Experiment(seed=-1), 'experiment.seed=-1'),
    (lambda: Conversion(mode='signd'), "conversion.mode=('signd',)"),
    (lambda: Conversion(settle=2.5), 'conversion.settle=2.5'),
    (lambda: Conversion(bits=(32,)), 'bits=32'),
    (lambda: Conversion(mode=()), 'conversion.mode=()'),
    (
      lambda: Conversion(mode='signed', keep='settled'),
      "conversion.keep='settled'",
    ),
    (lambda: Conversion(settle=0), 'conversion.settle=0'),
    (lambda: Conversion(settle='soon'), 'at most 4096 or auto'),
    (lambda: Conversion(tune_epochs=0), 'conversion.tune_epochs=0'),
    (lambda: Conversion(tune_images=0), 'conversion.tune_images=0'),
    (
      lambda: Conversion(tune_learning_rate=0.0),
      'conversion.tune_learning_rate=0.0',
    ),
    (
      lambda: Conversion(tune_weight_decay=-1.0),
      'conversion.tune_weight_decay=-1.0',
    ),
    (lambda: Experiment(stages=()), 'experiment.stages=()'),
    (lambda: Experiment(stages=(Stage(2), Stage(2))), 'different bits'),
    (lambda: Experiment(momentum=1.0), 'experiment.momentum=1.0'),
    (lambda: Experiment(save_minutes=-1.0), 'experiment.save_minutes=-1.0'),
    (lambda: Experiment(seed=2**32), 'at most 4294967295'),
    (lambda: Experiment(seed=10**20), 'experiment.seed=1000000000'),
    (lambda: Experiment(warmup=1e30), 'experiment.warmup=1e+30'),
    (lambda: Experiment(warmup_power=10**400), 'experiment.warmup_power=1000'),
    (lambda: Stage(2, epochs=10**9), 'stage.epochs=1000000000'),
    (lambda: Stage(2, learning_rate=1e39), 'stage.learning_rate=1e+39'),
    (lambda: Stage(2, weight_decay=10**400), 'stage.weight_decay=1000'),
    (lambda: Data(batch=10**12), 'data.batch=1000000000000'),
    (lambda: Data(eval_batch=2**31), 'data.eval_batch=2147483648'),
    (lambda: Data(size=10**6), 'data.size=1000000'),
    (lambda: Data(sizes=(416, 10**6)), 'data.sizes=(416, 1000000)'),
    (lambda: Data(workers=10**6), 'data.workers=1000000'),
    (lambda: Conversion(steps=200_000), 'conversion.steps=200000'),
    (lambda: Conversion(settle=10**9), 'conversion.settle=1000000000'),
    (lambda: Conversion(tune_epochs=10**9), 'conversion.tune_epochs=1000'),
    (lambda: Conversion(tune_batch=10**9), 'conversion.tune_batch=1000'),
    *(
      (lambda name=name: Data(name), f'data.name={name!r}')
      for name in (
        '',
        ' ',
        '/etc',
        '../x',
        'a/../b',
        'a//b',
        '~',
        'a\0',
        'a\nb',
      )
    ),
    *(
      (lambda path=path: Data(path=path), f'data.path={path!r}')
      for path in ('', '~nosuchuser/x', 'x' * 300, '/a/' + 'x' * 5000, 'a\0b')
    ),
    (lambda: Conversion(data_path='~nosuchuser'), 'conversion.data_path='),
    (lambda: Experiment(pretrained='x' * 300), 'experiment.pretrained='),
  ],
)
def test_a_value_out_of_range_is_named(make, names):
  with pytest.raises(UserError) as caught:
    make()
  assert names in str(caught.value)
  one_line(caught)


def test_schedules_leave_none_out():
  assert Conversion(tune=('none',)).schedules == ()
  assert Conversion(tune=('parallel', 'none')).schedules == ('parallel',)


def test_an_experiment_of_another_version_is_refused_in_one_line():
  tree = dataclasses.asdict(Experiment())
  missing = {k: v for k, v in tree.items() if k != 'data'}
  unknown = {**tree, 'wings': 2}
  for broken in (missing, unknown):
    with pytest.raises(UserError, match='does not fit this version') as caught:
      schema.from_dict(broken)
    one_line(caught)


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    (None, 'no such file; those that come with the package are bccd, camvid, '),
    ('config = 3', 'must set config = Experiment'),
    ('', 'must set config = Experiment'),
    ('config = (', 'it cannot be run'),
    (
      'class Mine:\n  def __init__(self): pass\nconfig = Mine(wings=2)',
      'it cannot be run (TypeError: Mine.__init__() got an unexpected',
    ),
    (
      'from fastsnn_jax.config import *\nconfig = Stage(2, epoch=3)',
      "Stage has no 'epoch'; did you mean 'epochs'?",
    ),
    ('import no_such_module_at_all', 'it cannot be run'),
    ('raise SystemExit', 'it cannot be run (SystemExit:)'),
    ('import sys\nsys.exit(0)', 'it cannot be run (SystemExit: 0)'),
    ('exit("a\\nb")', 'it cannot be run (SystemExit: a b)'),
    ('raise KeyError("two\\nlines")', 'it cannot be run (KeyError: '),
    ('\0\1\2', 'it cannot be run'),
    ('def f(): f()\nf()', 'it cannot be run (RecursionError'),
    (
      'from fastsnn_jax.config import Stage\nconfig = Stage(2, epochs=0)',
      'stage.epochs=0',
    ),
    (
      'from fastsnn_jax.config import Stage\nconfig = Stage(2, wings=2)',
      "Stage has no 'wings'; bits, epochs, learning_rate",
    ),
  ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, text, says):
  path = tmp_path / 'mine.py'
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=r'mine\.py') as caught:
    schema.load(path)
  assert says in str(caught.value)
  one_line(caught)


@pytest.mark.parametrize('name', ['', 'x' * 300, 'a\0b', '~nosuchuser/c.py'])
def test_a_name_that_no_file_can_have_is_no_config(name):
  with pytest.raises(UserError, match='no such file') as caught:
    schema.load(name)
  one_line(caught)


def test_names_of_data_sets_may_have_parts():
  for name in ('voc/2012', 'my set', 'mnist/a:3.0.1', 'é', 'x.y', 'a[0]'):
    assert Data(name).name == name


def test_a_config_of_ours_is_found_by_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ours = schema.load(ROOT / 'configs' / 'digits.py')
  assert schema.load('digits') == ours
  # A file of one's own goes first.
  (tmp_path / 'digits').write_text(
    'import fastsnn_jax as fs\nconfig = fs.Experiment(seed=7)'
  )
  assert schema.load('digits') == Experiment(seed=7)


def test_a_config_of_version_0_1_is_read(tmp_path):
  path = tmp_path / 'old.py'
  path.write_text(
    'from fastsnn_jax.config import Compute, Conversion, Data, Stage\n'
    'from fastsnn_jax.recipes import recommended, reference\n'
    'config = reference("cifar_resnet20", data=Data("digits"),\n'
    '  convert=Conversion(bits=2), compute=Compute(), stages=(Stage(2),))\n'
    'assert recommended("cifar_resnet20").select == "held-out"\n'
  )
  config = schema.load(path)
  assert (config.data, config.stages) == (Data('digits'), (Stage(2),))


def test_a_field_that_is_none_is_named_wherever_it_is_given():
  with pytest.raises(UserError, match=r"Experiment has no 'sed'; .* 'seed'"):
    Experiment(sed=3)
  with pytest.raises(UserError, match="Conversion has no 'tune_image'"):
    dataclasses.replace(Conversion(), tune_image=5)
