"""Arguments that are swapped, or of another kind: one error that names them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.jobs import one_line
from support.models import three_rows

import fastsnn_jax as fs

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
DATA = {'image': IMAGES, 'label': np.arange(6) % 3}
ANN = fs.Network(
  three_rows(3),
  fs.QuantRelu(2),
  classes=('a', 'b', 'c'),
  mean=[0.5],
  std=np.array([0.25]),
)
SNN = fs.to_spiking(ANN)
FLAT = dataclasses.replace(
  ANN, layers=(*ANN.layers[:2], fs.Layer('head', fs.Dense(3), ('body',)))
)


@functools.cache
def tree(network=ANN):
  return network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


def pair():
  return {'signed': (SNN, tree())}


CALLS = {
  'classify, swapped': (lambda: fs.classify(tree(), ANN, IMAGES), 'network is'),
  'classify, images before variables': (
    lambda: fs.classify(ANN, IMAGES, tree()),
    'variables of network',
  ),
  'classify, no variables': (lambda: fs.classify(ANN, {}, IMAGES), 'variables'),
  'classify, None': (lambda: fs.classify(ANN, None, IMAGES), 'variables'),
  'classify, parameters alone': (
    lambda: fs.classify(ANN, tree()['params'], IMAGES),
    'variables',
  ),
  'classify, of another network': (
    lambda: fs.classify(ANN, {'params': {'other': {}}}, IMAGES),
    'other',
  ),
  'classify, of another size': (
    lambda: fs.classify(FLAT, tree(FLAT), IMAGES[:, :6]),
    r"layer 'head': Dense: a kernel of shape \(192, 3\)",
  ),
  'classify, a path': (lambda: fs.classify(ANN, tree(), 'a.png'), 'images'),
  'evaluate, swapped': (lambda: fs.evaluate(tree(), ANN, DATA), 'network is'),
  'evaluate, data first': (
    lambda: fs.evaluate(ANN, DATA, tree()),
    'variables of network',
  ),
  'evaluate, a name for a task': (
    lambda: fs.evaluate(ANN, tree(), DATA, task='classification'),
    'task=',
  ),
  'evaluate, unknown task': (
    lambda: fs.evaluate(
      dataclasses.replace(ANN, task='regression'), tree(), DATA
    ),
    "'regression'.*classification, detection, segmentation",
  ),
  'evaluate, no labels': (
    lambda: fs.evaluate(ANN, tree(), {'image': IMAGES}),
    "needs 'label'",
  ),
  'evaluate, labels one-hot': (
    lambda: fs.evaluate(ANN, tree(), {**DATA, 'label': np.eye(6)}),
    "needs 'label'",
  ),
  'evaluate, labels of text': (
    lambda: fs.evaluate(ANN, tree(), {**DATA, 'label': list('abcabc')}),
    "needs 'label'",
  ),
  'evaluate, pairs': (
    lambda: fs.evaluate(ANN, tree(), ((IMAGES, 1) for _ in 'ab')),
    "must be a dict with 'image'",
  ),
  'evaluate, batch 0': (
    lambda: fs.evaluate(ANN, tree(), DATA, batch=0),
    'batch=0',
  ),
  'evaluate, batch 1.5': (
    lambda: fs.evaluate(ANN, tree(), DATA, batch=1.5),
    'batch=1.5',
  ),
  'compare, swapped': (
    lambda: fs.compare(SNN, tree(), {'a': (ANN, tree())}, DATA),
    'ann is spiking',
  ),
  'compare, variables last': (
    lambda: fs.compare(ANN, pair(), tree(), DATA),
    'variables of ann',
  ),
  'compare, a network': (
    lambda: fs.compare(ANN, tree(), SNN, DATA),
    'spiking of type Network',
  ),
  'compare, without variables': (
    lambda: fs.compare(ANN, tree(), {'signed': SNN}, DATA),
    'spiking of type dict',
  ),
  'compare, the ann itself': (
    lambda: fs.compare(ANN, tree(), {'a': (ANN, tree())}, DATA),
    r"spiking\['a'\] must be a spiking twin",
  ),
  'to_spiking, a pair': (lambda: fs.to_spiking((ANN, tree())), 'network is'),
  'to_spiking, swapped': (lambda: fs.to_spiking('signed', ANN), 'network is'),
  'to_spiking, modes': (lambda: fs.to_spiking(ANN, ['signed']), 'mode='),
  'finetune, swapped': (
    lambda: fs.finetune(SNN, ANN, tree(), DATA),
    'in this order',
  ),
  'finetune, a dict': (
    lambda: fs.finetune(ANN, SNN, tree(), DATA, {'epochs': 1}),
    'tuning=',
  ),
  'finetune, a text as seed': (
    lambda: fs.finetune(ANN, SNN, tree(), DATA, seed='a'),
    'seed=',
  ),
  'a tuning of text': (lambda: fs.Tuning(epochs='1'), "epochs='1'"),
  'a tuning of no rate': (
    lambda: fs.Tuning(learning_rate=float('nan')),
    'learning_rate=nan',
  ),
  'a row that is a synapse': (
    lambda: fs.Network([fs.Conv(3)], fs.Relu()),
    'layers: a Conv',
  ),
  'a neuron that is a class': (
    lambda: fs.Network(ANN.layers, fs.QuantRelu),
    'neuron=',
  ),
}


@pytest.mark.parametrize('name', CALLS)
def test_what_does_not_fit_is_one_error_that_names_it(name):
  call, message = CALLS[name]
  with pytest.raises(fs.UserError, match=message) as caught:
    call()
  one_line(caught)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'classes': 10.0}, 'classes=10.0'),
    ({'classes': None}, 'classes=None'),
    ({'classes': 'cat'}, "classes='cat'"),
    ({'classes': {'a', 'b'}}, 'classes='),
    ({'classes': ['a', 'b', 'a']}, "'a' is there 2 times"),
    ({'bits': [2]}, 'bits='),
    ({'clases': 3}, "'clases'"),
    ({'mean': 0.5, 'std': 0.5}, 'mean=0.5'),
    ({'mean': (0.5,)}, 'std='),
    ({'mean': (0.5,), 'std': (0.0,)}, 'std='),
    ({'mean': (float('nan'),), 'std': (1.0,)}, 'mean='),
  ],
)
def test_a_build_of_other_settings_is_refused(settings, message):
  with pytest.raises(fs.UserError, match=message):
    fs.build('small_resnet8', **settings)


def test_numbers_and_names_of_numpy_are_taken():
  plain = fs.build('small_resnet8', bits=2, classes=10)
  assert fs.build('small_resnet8', np.int64(2), np.int64(10)) == plain
  names = fs.build('small_resnet8', classes=np.array(['a', 'b'])).classes
  assert names == ('a', 'b')
  assert hash(ANN) == hash(dataclasses.replace(ANN))


@pytest.mark.parametrize('form', ['generator', 'loader', 'own batches'])
def test_batches_of_a_loader_are_examples(form):
  class Loader:
    def __iter__(self):
      for rows in (slice(0, 4), slice(4, 6)):
        yield {name: x[rows] for name, x in DATA.items()}

  data = {
    'generator': iter(Loader()),
    'loader': Loader(),
    'own batches': fs.Dataset('a', DATA, DATA, (), (), ()).train.batches(4),
  }[form]
  expected = fs.evaluate(ANN, tree(), DATA)
  assert fs.evaluate(ANN, tree(), data) == expected
