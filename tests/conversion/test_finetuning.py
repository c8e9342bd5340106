"""Fine-tuning: the gradient (reference behaviour C5.1), and who may move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.jobs import one_line

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.conversion import carried, steps
from fastsnn_jax.conversion.tuning import Tuning
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.synapses import Residual
from fastsnn_jax.nn.tables.table import IMAGE, own_variables
from fastsnn_jax.nn.weights import Apot, EightBit

pytestmark = pytest.mark.once

CLASSES = 4


def tiny():
  """A convolution and a block with a projection, for images of 4 x 4."""
  layers = (
    fs.Layer('stem', Conv(4, weights=EightBit())),
    fs.Layer('part1', Conv(6, weights=Apot(2), stride=2), ('stem',)),
    fs.Layer(
      'part2',
      Residual(
        Conv(6, weights=Apot(2)),
        Conv(6, weights=Apot(2), kernel=1, stride=2, padding=0),
      ),
      ('part1', 'stem'),
    ),
    fs.Layer('out', Dense(CLASSES, norm=False), ('part2',)),
  )
  names = tuple(map(str, range(CLASSES)))
  return fs.Network(
    layers,
    fs.QuantRelu(2, 2.0),
    bits=2,
    classes=names,
    mean=(0.5,),
    std=(0.25,),
  )


ANN = tiny()
SNN = fs.to_spiking(ANN)
STEM, PART1, PART2 = ANN.firing
TUNED = (PART1, PART2)
layers_of = pytest.mark.parametrize('layer', TUNED, ids=lambda x: x.name)
modes_of = pytest.mark.parametrize('batch_norm', ['train', 'eval'])


@functools.cache
def variables():
  """Initial ones, with running statistics that are no trivial ones."""
  drawn = ANN.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  random = np.random.default_rng(0)
  stats = jax.tree.map(
    lambda x: x + jnp.asarray(random.uniform(0, 0.3, x.shape), x.dtype),
    drawn['batch_stats'],
  )
  return {**drawn, 'batch_stats': stats}


@functools.cache
def moved():
  """Variables of a spiking network that was tuned before: not the ANN's."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key == 'theta' else x * 1.05 + 0.01,
    variables(),
  )


def pictures(count=8, seed=1):
  random = np.random.default_rng(seed)
  return {
    'image': random.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8),
    'label': random.integers(0, CLASSES, count).astype(np.int32),
  }


@functools.cache
def forward():
  """(images, the ANN's activations, the tuned spiking network's)."""
  images = jnp.float32(pictures()['image']) / 255 * 4 - 2
  _, targets = jax.jit(ANN.apply)(variables(), images)
  _, spikes = jax.jit(SNN.apply)(moved(), images)
  return images, targets, {IMAGE: images, **spikes}


@functools.cache
def loss_and_gradient(layer, batch_norm):
  _, targets, spikes = forward()
  function = jax.jit(
    jax.value_and_grad(
      functools.partial(
        steps.layer_loss,
        ann=ANN,
        snn=SNN,
        layer=layer,
        batch_norm=batch_norm,
      ),
      has_aux=True,
    )
  )
  moving = steps.movable(moved()['params'], layer)
  return function(moving, moved(), spikes, targets[layer.name])


@layers_of
@modes_of
def test_the_loss_is_the_squared_error_of_the_rate(layer, batch_norm):
  _, targets, spikes = forward()
  (loss, _), _ = loss_and_gradient(layer, batch_norm)
  rate = np.asarray(spikes[layer.name]).sum(1) / 3
  want = np.square(rate - np.asarray(targets[layer.name])).mean()
  assert want > 0
  np.testing.assert_allclose(loss, want, rtol=1e-5)


@layers_of
@modes_of
def test_the_gradient_is_the_twins_vjp_of_the_rates_error(layer, batch_norm):
  _, targets, spikes = forward()
  _, grads = loss_and_gradient(layer, batch_norm)
  rate = np.asarray(spikes[layer.name]).sum(1) / 3
  target = np.asarray(targets[layer.name])
  cotangent = jnp.asarray(2 * (rate - target) / rate.size)
  means = [jnp.asarray(np.asarray(spikes[n]).mean(1)) for n in layer.inputs]
  mine = own_variables(moved(), layer.name)

  def twin(params):
    unit = ANN.unit(layer)
    if batch_norm == 'eval':
      return unit.apply({**mine, 'params': params}, *means)
    return unit.apply(
      {**mine, 'params': params}, *means, train=True, mutable=['batch_stats']
    )[0]

  @jax.jit
  def pulled(params):
    return jax.vjp(twin, params)[1](cotangent)[0]

  want = dict(pulled(mine['params']))
  assert 'theta' in want
  assert 'theta' not in grads
  del want['theta']
  assert jax.tree.structure(grads) == jax.tree.structure(want)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
    grads,
    want,
  )


@layers_of
def test_train_moves_the_statistics_of_the_mean_inputs_eval_does_not(layer):
  _, _, spikes = forward()
  old = moved()['batch_stats'][layer.name]
  (_, kept), _ = loss_and_gradient(layer, 'eval')
  jax.tree.map(np.testing.assert_array_equal, kept, old)
  (_, new), _ = loss_and_gradient(layer, 'train')
  assert jax.tree.structure(new) == jax.tree.structure(old)
  if layer is PART1:
    # The layer's own convolution of the mean input, before batch norm.
    mean = jnp.asarray(np.asarray(spikes['stem']).mean(1))
    bare = dataclasses.replace(layer.synapse, norm=False)
    params = moved()['params']['part1']['synapse']
    plain = {k: params[k] for k in ('kernel', 'weight_alpha')}
    z = bare.apply({'params': {**plain, 'bias': jnp.zeros(6)}}, mean)
    norm = old['synapse']['norm']
    want = 0.9 * norm['mean'] + 0.1 * z.mean((0, 1, 2))
    np.testing.assert_allclose(
      new['synapse']['norm']['mean'], want, rtol=1e-5, atol=1e-6
    )


def stepped(layers, tuning):
  step = jax.jit(
    functools.partial(
      steps.tune_step, ann=ANN, snn=SNN, tuning=tuning, layers=layers
    )
  )
  moving = {
    layer.name: steps.movable(moved()['params'], layer) for layer in layers
  }
  state = tuning.optimizer().init(moving)
  return step(moved(), state, variables(), forward()[0])


@functools.cache
def tuned_once(names, batch_norm='train'):
  layers = tuple(layer for layer in TUNED if layer.name in names)
  return stepped(layers, Tuning(learning_rate=0.1, batch_norm=batch_norm))


def differing(ours, theirs):
  """Names of the leaves that are not equal bit for bit."""
  return {
    '/'.join(part.key for part in path)
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(ours),
      jax.tree.leaves(theirs),
      strict=True,
    )
    if not np.array_equal(a, b)
  }


@modes_of
def test_a_step_moves_one_layer_and_never_theta(batch_norm):
  tuned, _, losses = tuned_once(('part1',), batch_norm)
  found = differing(tuned, moved())
  assert list(losses) == ['part1']
  want = {
    f'params/part1/synapse/{name}'
    for name in ('kernel', 'weight_alpha', 'norm/scale', 'norm/bias')
  }
  if batch_norm == 'train':
    want |= {f'batch_stats/part1/synapse/norm/{x}' for x in ('mean', 'var')}
  assert found == want


def test_parallel_gives_each_layer_its_own_gradient():
  both, _, losses = tuned_once(('part1', 'part2'))
  for layer in TUNED:
    alone, _, loss = tuned_once((layer.name,))
    np.testing.assert_allclose(losses[layer.name], loss[layer.name], rtol=1e-6)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
      own_variables(both, layer.name),
      own_variables(alone, layer.name),
    )
  untouched = ('stem', 'out')
  for name in untouched:
    assert not differing(
      own_variables(both, name), own_variables(moved(), name)
    )


# --- the whole job ----------------------------------------------------------


def run(data, task=None, **settings):
  tuning = Tuning(**{'batch': 16, 'crop': 0, 'flip': False, **settings})
  seen = []
  tuned, records = fs.finetune(
    ANN,
    SNN,
    variables(),
    data,
    tuning,
    task=task,
    on_layer=seen.append,
    batch=25,
  )
  assert seen == records
  return tuned, records


@functools.cache
def finetuned(schedule, **settings):
  return run(pictures(50), accept='always', schedule=schedule, **settings)


def test_sequential_tunes_one_layer_after_another_behind_the_first():
  tuned, records = finetuned('sequential', epochs=2, learning_rate=0.1)
  assert [(r['layer'], r['epoch']) for r in records] == [
    ('part1', 0),
    ('part1', 1),
    ('part2', 0),
    ('part2', 1),
  ]
  assert all(r['accepted'] and r['schedule'] == 'sequential' for r in records)
  assert not any('accuracy' in r for r in records)  # no one asked
  found = differing(tuned, variables())
  assert {name.split('/')[1] for name in found} == {'part1', 'part2'}
  assert not any('theta' in name for name in found)


def test_a_layers_turn_comes_behind_the_tuned_ones():
  _, records = finetuned('sequential', epochs=2, learning_rate=0.1)
  _, together = finetuned('parallel', epochs=2, learning_rate=0.1)
  assert [(r['layer'], r['epoch']) for r in together] == [
    ('all', 0),
    ('all', 1),
  ]
  first, _, second, _ = records
  # Parallel begins with every layer behind untuned ones.
  assert first['loss_before'] + second['loss_before'] != pytest.approx(
    together[0]['loss_before'], rel=1e-3
  )


def test_steps_lead_back_to_the_ann():
  """With float weights and 15 steps, where an error is not one of lumps."""
  layers = tuple(
    dataclasses.replace(
      layer, synapse=Conv(6, stride=2) if layer is PART1 else layer.synapse
    )
    for layer in ANN.layers[:2]
  )
  readout = dataclasses.replace(ANN.layers[-1], inputs=('part1',))
  ann = dataclasses.replace(
    ANN, layers=(*layers, readout), neuron=fs.QuantRelu(4, 2.0), bits=4
  )
  images = forward()[0]
  frozen = ann.init(jax.random.key(0), images)
  tuned = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.5 if path[-1].key == 'bias' else x, frozen
  )
  layer = ann.firing[1]
  tuning = Tuning(learning_rate=0.5, batch_norm='eval', weight_decay=0.0)
  step = jax.jit(
    functools.partial(
      steps.tune_step,
      ann=ann,
      snn=fs.to_spiking(ann),
      tuning=tuning,
      layers=(layer,),
    )
  )
  moving = {'part1': steps.movable(tuned['params'], layer)}
  state, losses = tuning.optimizer().init(moving), []
  for _ in range(60):
    tuned, state, loss = step(tuned, state, frozen, images)
    losses.append(float(loss['part1']))
  assert losses[-1] < 0.5 * losses[0]


BETTER = {'accept': 'better', 'epochs': 4, 'learning_rate': 0.1}


def test_better_returns_what_there_was_where_nothing_helped():
  data = pictures(50)
  # Labels that the network has all right: no update can raise the score.
  data['label'] = fs.classify(SNN, variables(), data['image'])
  tuned, records = run(data, **BETTER)
  assert len(records) == 8
  assert not any(r['accepted'] for r in records)
  assert any(r['accuracy'] < 1 for r in records)
  assert not differing(tuned, variables())


def test_better_keeps_an_update_only_where_the_score_rises():
  data = pictures(50)
  tuned, records = run(data, **BETTER)
  best = fs.evaluate(SNN, variables(), data, batch=25)['accuracy']
  for record in records:
    assert record['accepted'] == (record['accuracy'] > best)
    best = max(best, record['accuracy'])
  assert fs.evaluate(SNN, tuned, data, batch=25)['accuracy'] == best
  accepted = {r['layer'] for r in records if r['accepted']}
  assert accepted, 'no update helped: the test shows nothing'
  found = differing(tuned, variables())
  assert {name.split('/')[1] for name in found} == accepted


def test_the_variables_given_are_not_donated():
  finetuned('sequential', epochs=2, learning_rate=0.1)
  assert not any(x.is_deleted() for x in jax.tree.leaves(variables()))


def test_too_few_images_are_refused():
  with pytest.raises(fs.UserError, match='3 images') as caught:
    fs.finetune(ANN, SNN, variables(), pictures(3), Tuning(batch=4))
  one_line(caught)


@pytest.mark.parametrize('name', ['schedule', 'batch_norm', 'accept'])
def test_a_word_that_is_none_of_the_choices_is_refused(name):
  with pytest.raises(fs.UserError, match=f"{name}='sideways'"):
    Tuning(**{name: 'sideways'})


def test_images_without_labels_are_tuned_with_where_nothing_is_scored():
  images = {'image': pictures(16)['image']}
  settings = {'schedule': 'parallel', 'learning_rate': 0.1}
  tuned, _ = run(images, accept='always', **settings)
  labelled, _ = run(pictures(16), accept='always', **settings)
  assert not differing(tuned, labelled)
  with pytest.raises(fs.UserError, match="accept='always'"):
    run(images, accept='better')


@pytest.mark.last_bit
def test_a_task_of_ones_own_presents_the_images_that_are_tuned_with():
  class Darker(type(tasks.for_network(ANN))):
    def present(self, images):
      return super().present(images // 2)

  data = pictures(16)
  dark = {**data, 'image': data['image'] // 2}
  settings = {'accept': 'always', 'schedule': 'parallel', 'learning_rate': 0.1}
  task = Darker(classes=CLASSES, mean=ANN.mean, std=ANN.std)
  tuned, _ = run(data, task=task, **settings)
  wanted, _ = run(dark, **settings)
  assert not differing(tuned, wanted)


@pytest.mark.parametrize(
  'settings',
  [
    BETTER,
    {**BETTER, 'epochs': 2, 'accept': 'always', 'crop': 1, 'flip': True},
  ],
  ids=lambda settings: settings['accept'],
)
def test_a_row_alone_is_tuned_as_behind_the_whole_network(
  monkeypatch, settings
):
  tuned, records = run(pictures(50), **settings)
  monkeypatch.setattr(carried, 'BYTES', 0)
  wanted, others = run(pictures(50), **settings)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    tuned,
    wanted,
  )
  for record, other in zip(records, others, strict=True):
    assert record['accepted'] == other['accepted']
    for name in ('loss_before', 'loss_after'):
      assert record[name] == pytest.approx(other[name], rel=1e-5)
  assert differing(tuned, variables())
