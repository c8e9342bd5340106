"""Networks that come back, and metadata and values that are refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from support.jobs import one_line

import fastsnn_jax as fs
from fastsnn_jax.checkpoint import store

IMAGES = jnp.ones((1, 8, 8, 1))
ROWS = (
  fs.Layer('stem', fs.Conv(4, weights=fs.Apot(2))),
  fs.Layer('head', fs.Dense(3, norm=False), ('stem',)),
)
OWN = fs.Network(ROWS, fs.QuantRelu(2), classes=('a', 'b', 'c'))
DETECTOR = fs.build('small_yolo', 2, 3, mean=(0.5,) * 3, std=(0.2,) * 3)


def variables_of(network, images=IMAGES):
  shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  return jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)


def refused(directory, match, network=None):
  with pytest.raises(fs.UserError, match=match) as caught:
    fs.load(directory, network=network)
  assert str(directory) in one_line(caught)


def edited(directory, edit):
  path = next(directory.glob('*/meta/metadata'))
  meta = json.loads(path.read_text())
  edit(meta)
  path.write_text(json.dumps(meta))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('saved')
  fs.save(directory / 'own', OWN, variables_of(OWN))
  snn = fs.to_spiking(OWN, 'settled')
  fs.save(directory / 'snn', snn, variables_of(OWN))
  images = jnp.ones((1, 32, 32, 3))
  fs.save(directory / 'yolo', DETECTOR, variables_of(DETECTOR, images))
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  def copy(name):
    return shutil.copytree(saved / name, tmp_path / name)

  return copy


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    ('params/stem/synapse/kernel', np.nan),
    ('params/head/synapse/bias', np.inf),
    ('params/stem/theta', np.nan),
    ('params/stem/theta', 0.0),
    ('params/stem/theta', -1.0),
    ('params/stem/theta', np.inf),
    ('params/stem/synapse/weight_alpha', 0.0),
    ('params/stem/synapse/weight_alpha', np.nan),
    ('batch_stats/stem/synapse/norm/var', -0.5),
    ('batch_stats/stem/synapse/norm/mean', np.nan),
  ],
)
def test_values_that_no_layer_can_use_are_refused(tmp_path, path, value):
  flat = flatten_dict(variables_of(OWN), sep='/')
  flat[path] = np.array(flat[path])
  flat[path].flat[0] = value
  fs.save(tmp_path, OWN, unflatten_dict(flat, sep='/'))
  refused(tmp_path, path, OWN)


@pytest.mark.parametrize(
  'edit',
  [
    lambda flat: flat.pop('params/head/synapse/bias'),
    lambda flat: flat.update({'params/stem/more': np.ones(2, 'f')}),
    lambda flat: flat.update({'params/head/synapse/bias': np.ones(5, 'f')}),
    lambda flat: flat.update({'params/stem/theta': np.ones(5, 'f')}),
    lambda flat: flat.update({'params/stem/synapse/kernel': np.ones(3, 'f')}),
    lambda flat: flat.update({'params/head/synapse/bias': np.ones(3, int)}),
  ],
)
def test_leaves_that_do_not_fit_the_table_are_refused(tmp_path, edit):
  flat = flatten_dict(variables_of(OWN), sep='/')
  edit(flat)
  fs.save(tmp_path, OWN, unflatten_dict(flat, sep='/'))
  refused(tmp_path, 'params/(head|stem)/', OWN)


def test_images_of_any_size_and_channels_fit_and_halves_are_float32(tmp_path):
  for images in (jnp.ones((1, 12, 20, 2)), jnp.ones((1, 8, 8, 3))):
    half = jax.tree.map(jnp.bfloat16, variables_of(OWN, images))
    fs.save(tmp_path, OWN, half)
    _, found = fs.load(tmp_path, network=OWN)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype('float32')}
    jax.tree.map(np.testing.assert_array_equal, found, half)


def test_a_precision_of_ones_own_is_kept(tmp_path):
  network = dataclasses.replace(DETECTOR, precision='default')
  fs.save(tmp_path, network, variables_of(network, jnp.ones((1, 64, 64, 3))))
  assert fs.load(tmp_path)[0] == network


@pytest.mark.parametrize(
  'field', ['model', 'bits', 'classes', 'mean', 'std', 'T', 'neuron', 'anchors',
            'overlap', 'size'],
)  # fmt: skip
@pytest.mark.parametrize('how', ['lacks', 'misspells'])
def test_metadata_without_a_field_are_refused(copied, field, how):
  directory = copied('yolo')

  def edit(meta):
    value = meta.pop(field)
    if how == 'misspells':
      meta[field + 's'] = value

  edited(directory, edit)
  there = rf".*\(there is '{field}s'\)" if how == 'misspells' else ''
  refused(directory, f'its metadata lack {field!r}{there}')


@pytest.mark.parametrize(
  ('field', 'value'),
  [('model', 3), ('bits', '2'), ('bits', 2.5), ('bits', 7), ('classes', 'abc'),
   ('classes', [1, 2, 3]), ('mean', [0.5]), ('mean', ['a', 'b', 'c']),
   ('std', [0.2, 0.2, 0]), ('std', [0.2, float('nan'), 1]), ('neuron', 3),
   ('precision', 'x'), ('anchors', [[1]]), ('anchors', 'x'), ('overlap', 2),
   ('size', -1),
   ('classes', list('abcde')), ('classes', ['a']), ('model', 'none_such')],
)  # fmt: skip
def test_metadata_that_are_not_valid_are_refused(copied, field, value):
  directory = copied('yolo')
  edited(directory, lambda meta: meta.update({field: value}))
  words = 'shape' if field == 'classes' and isinstance(value, list) else field
  refused(directory, words if value != [1, 2, 3] else 'classes')


@pytest.mark.parametrize(
  ('edit', 'match'),
  [
    (lambda n: n.pop('settle'), "lack 'settle'"),
    (lambda n: n.update(singed=n.pop('signed')), 'signed'),
    (lambda n: n.update(steps=0), 'steps'),
    (lambda n: n.update(more=1), "'more', which is no setting"),
  ],
)
def test_a_neuron_that_is_not_valid_is_refused(copied, edit, match):
  directory = copied('snn')
  edited(directory, lambda meta: edit(meta['neuron']))
  refused(directory, match, OWN)


@pytest.mark.parametrize('mode', ['settled', 'signed', 'unsigned'])
def test_a_table_of_ones_own_gets_its_neuron_back(tmp_path, mode):
  snn = fs.to_spiking(OWN, mode)
  fs.save(tmp_path, snn, variables_of(OWN))
  for given in (OWN, snn):
    assert fs.load(tmp_path, network=given)[0] == snn
  for other in {'settled', 'signed', 'unsigned'} - {mode}:
    refused(tmp_path, 'it was saved with', fs.to_spiking(OWN, other))


def test_a_neuron_that_contradicts_is_refused(saved):
  assert fs.load(saved / 'own', network=OWN)[0] is OWN
  for neuron in (fs.QuantRelu(3), fs.Relu(), fs.IntegrateAndFire(3)):
    other = dataclasses.replace(OWN, neuron=neuron)
    refused(saved / 'own', r'saved with QuantRelu\(2\)', other)
  refused(saved / 'snn', 'saved with Int', fs.to_spiking(OWN, steps=4))


def test_older_metadata_know_the_spiking_neuron_only(copied):
  directory = copied('own')
  edited(directory, lambda meta: meta.pop('activation'))
  assert fs.load(directory, network=OWN)[0] is OWN
  refused(directory, 'does not spike', fs.to_spiking(OWN))


def test_swapped_arguments_and_unfinished_stages_are_told(tmp_path):
  for arguments in (
    (tmp_path, variables_of(OWN), OWN),
    (tmp_path, OWN, None),
    (tmp_path, OWN, {'kernel': 1}),
  ):
    with pytest.raises(fs.UserError, match='are needed'):
      fs.save(*arguments)
  assert not list(tmp_path.iterdir())
  with pytest.raises(fs.UserError, match='a Network is needed'):
    fs.load(tmp_path, network='small_resnet8')
  store.save(tmp_path, {'a': np.ones(1)}, {'identity': {}})
  refused(tmp_path, 'an unfinished stage')
