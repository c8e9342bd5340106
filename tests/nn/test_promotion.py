"""Networks under JAX's strict settings: no rank, no dtype promoted unasked.

Both are checked while a function is traced, so nothing is compiled here.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import pytest

import fastsnn_jax as fs
from fastsnn_jax import tasks
from fastsnn_jax.training.gradients import gradients

pytestmark = pytest.mark.once

SIDES = {'small_resnet8': 8, 'small_yolo': 32, 'small_deeplab': 33}
MODES = ('float', 'quantised', 'unsigned', 'signed', 'settled')


@contextlib.contextmanager
def strict():
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    yield


def network(model, mode):
  bits = 32 if mode == 'float' else 2
  colours = {'mean': (0.5,) * 3, 'std': (0.2,) * 3}
  net = fs.build(model, bits, ['a', 'b', 'c'], **colours)
  return net if mode in ('float', 'quantised') else fs.to_spiking(net, mode)


def batch(model, dtype):
  side, shape = SIDES[model], jax.ShapeDtypeStruct
  labels = {'small_resnet8': (2,), 'small_yolo': (2, 3)}
  return {
    'image': shape((2, side, side, 3), dtype),
    'label': shape(labels.get(model, (2, side, side)), 'int32'),
    'boxes': shape((2, 3, 4), 'float32'),
    'mask': shape((2,), 'float32'),
  }


CASES = [('small_resnet8', mode, 'bfloat16') for mode in MODES]
CASES += [(model, 'quantised', 'float32') for model in SIDES]
CASES += [(model, 'settled', 'bfloat16') for model in SIDES]


@pytest.mark.parametrize(('model', 'mode', 'dtype'), dict.fromkeys(CASES))
def test_networks_run_under_both(model, mode, dtype):
  net = network(model, mode)
  task, given = tasks.for_network(net), batch(model, 'float32')
  with strict():
    variables = jax.eval_shape(net.init, jax.random.key(0), given['image'])

    def run(variables, images):
      output, activations = net.apply(variables, images)
      if net.spiking:
        net.output_over_time(variables, activations)
      return task.predict(output)

    def loss(params, variables, batch):
      variables = {**variables, 'params': params}
      images = batch['image'].astype(dtype)
      return task.loss(net.apply(variables, images)[0], batch)[0]

    jax.eval_shape(run, variables, batch(model, dtype)['image'])
    jax.eval_shape(jax.grad(loss), variables['params'], variables, given)
    if not net.spiking:
      step = functools.partial(gradients, network=net, task=task, dtype=dtype)
      jax.eval_shape(functools.partial(step, accumulate=2), variables, given)


SYNAPSES = {
  'bias': fs.Conv(4, norm=False, weights=fs.EightBit()),
  'identity': fs.Residual(fs.Conv(3)),
  'joined': fs.Concat((None, fs.Conv(2))),
  'pooled': fs.Chain((fs.AveragePool(2), fs.Conv(4, groups=1), fs.Dense(2))),
}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', SYNAPSES)
def test_synapses_run_under_both(name, dtype):
  rows = (
    fs.Layer('stem', fs.Conv(3)),
    fs.Layer(
      'mid',
      SYNAPSES[name],
      ('stem', 'image') if name in ('identity', 'joined') else 'stem',
    ),
    fs.Layer('head', fs.Dense(2, norm=False, weights=fs.Apot(3)), 'mid'),
  )
  ann = fs.Network(rows, fs.QuantRelu(2))
  images = jax.ShapeDtypeStruct((2, 4, 4, 3), dtype)
  with strict():
    variables = jax.eval_shape(ann.init, jax.random.key(0), images)
    for net in (ann, fs.to_spiking(ann, 'settled')):
      output, _ = jax.eval_shape(net.apply, variables, images)
      assert output.dtype == jnp.float32
