"""The recipes of the families, and the configs that name them."""

import pathlib

import pytest

import fastsnn_jax as fs
from fastsnn_jax import architectures
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment import recipes
from fastsnn_jax.nn.weights import Apot

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
OFFICIAL = [
  name for name in fs.models() if name.startswith(('cifar_', 'imagenet_'))
]
DETECTORS = 'yolov2_tiny', 'yolov2_resnet34'
SEGMENTERS = 'deeplabv1_vgg9', 'deeplabv3_resnet34'


@pytest.fixture(autouse=True)
def _models(monkeypatch):
  """A config may register a model; then only here."""
  known = architectures._MODELS.copy()
  monkeypatch.setattr(architectures, '_MODELS', known)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=str)
def test_every_config_names_a_model_and_its_own_command(path):
  config = schema.load(path)
  for stage in config.stages:
    assert fs.build(config.model, stage.bits).bits == stage.bits
  assert set(config.convert.bits) <= {stage.bits for stage in config.stages}
  text = path.read_text()
  assert text.startswith('"""'), 'a config opens with its command'
  assert f'train.py --config configs/{path.name}' in text


def test_every_row_of_the_official_tables_has_a_config():
  found = {schema.load(path).model for path in CONFIGS.glob('*.py')}
  assert found >= {
    *(f'cifar_{name}' for name in ('alexnet', 'vgg11', 'resnet18')),
    *(f'cifar_resnet{depth}' for depth in (20, 44, 56)),
    *(f'imagenet_{name}' for name in ('alexnet', 'vgg16')),
  }
  for data in ('voc', 'coco'):
    for model in (*DETECTORS, *SEGMENTERS):
      config = schema.load(CONFIGS / f'{data}_{model}.py')
      assert (config.model, config.data.name) == (model, data)


@pytest.mark.parametrize('model', OFFICIAL)
def test_the_reference_selects_on_the_test_images_and_decays_all(model):
  config = recipes.reference(model)
  assert (config.model, config.select, config.decay) == (model, 'test', 'all')
  assert config.momentum == 0.9
  assert {stage.schedule for stage in config.stages} == {'step'}
  assert config.convert.mode == ('signed',)


def test_the_tables_of_classification_4_1():
  rows = [
    (stage.bits, stage.epochs, stage.learning_rate, stage.weight_decay)
    for stage in recipes.reference('cifar_alexnet').stages
  ]
  assert rows == [
    (32, 300, 0.1, 5e-4),
    (4, 300, 0.04, 1e-4),
    (3, 300, 0.04, 1e-4),
    (2, 300, 0.04, 3e-5),
  ]
  for stage in recipes.reference('cifar_resnet56').stages:
    assert (stage.epochs, stage.learning_rate) == (300, 0.1)
    assert (stage.weight_decay, stage.milestones) == (1e-4, (0.5, 0.75))


@pytest.mark.parametrize(
  ('model', 'decay', 'batch_norm', 'epochs', 'accept'),
  [
    ('cifar_alexnet', 5e-4, 'eval', 1, 'always'),
    ('cifar_vgg11', 5e-4, 'eval', 1, 'always'),
    ('cifar_resnet56', 1e-4, 'train', 8, 'better'),
    ('cifar_resnet18', 1e-4, 'train', 1, 'always'),
    ('imagenet_alexnet', 1e-4, 'train', 8, 'better'),
  ],
)
def test_the_table_of_classification_5_2(
  model, decay, batch_norm, epochs, accept
):
  convert = recipes.reference(model).convert
  assert convert.tune == ('sequential',)
  assert (convert.tune_weight_decay, convert.batch_norm) == (decay, batch_norm)
  assert (convert.tune_epochs, convert.accept) == (epochs, accept)


@pytest.mark.parametrize(
  ('model', 'gradient', 'theta'),
  [
    ('cifar_alexnet', 'detached', 8.0),
    ('cifar_vgg11', 'detached', 8.0),
    ('cifar_resnet20', 'full', 6.0),
    ('cifar_resnet18', None, 6.0),
    ('imagenet_vgg16', None, 6.0),
  ],
)
def test_the_weight_gradient_and_the_initial_theta_are_the_tables(
  model, gradient, theta
):
  network = fs.build(model, 2)
  assert network.neuron.initial_theta == theta
  found = {
    scheme.gradient
    for layer in network.layers
    for scheme in _schemes(layer.synapse)
    if isinstance(scheme, Apot)
  }
  assert found == ({gradient} if gradient else set())


def _schemes(synapse):
  for value in vars(synapse).values():
    yield value
    for part in value if isinstance(value, tuple) else (value,):
      if hasattr(part, '__dataclass_fields__'):
        yield from _schemes(part)


def test_the_recommended_recipe_differs_where_it_says():
  theirs, ours = (
    make('cifar_alexnet') for make in (recipes.reference, recipes.recommended)
  )
  assert (ours.stages, ours.data) == (theirs.stages, theirs.data)
  assert ours.select == 'held-out'
  assert set(ours.convert.mode) == {'unsigned', 'signed', 'settled'}
  assert ours.convert.accept == 'better'
  assert ours.convert.batch_norm == theirs.convert.batch_norm
  assert recipes.recommended('small_resnet8').model == 'small_resnet8'


def test_a_model_that_the_reference_has_not():
  with pytest.raises(fs.UserError, match=r'small_resnet8.*cifar_alexnet'):
    recipes.reference('small_resnet8')


@pytest.mark.parametrize('model', DETECTORS)
def test_the_recipe_of_detection(model):
  config = recipes.reference(model)
  assert [stage.bits for stage in config.stages] == [32, 4, 3, 2]
  for stage in config.stages:
    assert (stage.epochs, stage.learning_rate) == (250, 1e-3)
    assert stage.weight_decay == 5e-4
    assert [250 * share for share in stage.milestones] == [150, 200]
  assert (config.warmup, config.warmup_power, config.ema) == (2, 4, 0.9999)
  assert (config.data.batch, config.data.size) == (16, 416)
  assert config.data.sizes == (320, 352, 384, 416, 448, 480, 512, 544, 576, 608)
  assert config.convert.schedules == ()
  assert config.convert.mode == ('signed',)
  assert recipes.recommended(model).convert.schedules


@pytest.mark.parametrize('model', SEGMENTERS)
def test_the_recipe_of_segmentation(model):
  config = recipes.reference(model)
  for stage in config.stages:
    assert (stage.epochs, stage.learning_rate) == (50, 0.007)
    assert (stage.schedule, stage.weight_decay) == ('poly', 1e-4)
  assert (config.data.batch, config.data.size) == (32, 513)
  assert config.momentum == 0.9
  assert config.ema == 0
