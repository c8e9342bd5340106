"""`fs.detect` and `fs.segment` of functions answer as of their tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs

CLASSES, ANCHORS = ('cat', 'dog'), ((1.0, 1.0), (2.0, 1.5))
SHARED = {'classes': CLASSES, 'mean': (0.5,) * 3, 'std': (0.25,) * 3}


def rows(head):
  return (
    fs.Layer('stem', fs.Conv(4, stride=4, norm=False)),
    fs.Layer('body', fs.Conv(4, norm=False), ('stem',)),
    fs.Layer('head', head, ('body',)),
  )


def both(task, shape, head, **fields):
  """The table and its function, with variables, and raw images."""
  fields = {'task': task, 'stride': 4, **SHARED, **fields}
  table = fs.Network(rows(head), fs.QuantRelu(2), **fields)
  variables = table.init(jax.random.key(0), jnp.ones((1, *shape)))
  params = jax.tree.map(lambda x: 3 * x, variables['params'])  # answers differ
  params['stem']['theta'] = params['body']['theta'] = jnp.float32(2)
  variables = {**variables, 'params': params}

  def function(params, images):
    return table.apply({**variables, 'params': params}, images)[0]

  traced, own = fs.from_function(
    function, params, jnp.ones((1, *shape)), **fields
  )
  images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
  return (table, variables), (traced, own), images


def settled(network, variables):
  return fs.to_spiking(network, 'settled', settle=8), variables


@pytest.mark.parametrize('change', [lambda *x: x, settled], ids=['ann', 'snn'])
def test_boxes(change):
  head = fs.Conv(2 * 7, kernel=1, norm=False)
  table, traced, images = both('detection', (16, 16, 3), head, anchors=ANCHORS)
  wanted = fs.detect(*change(*table), images)
  found = fs.detect(*change(*traced), images)
  for theirs, mine in zip(wanted, found, strict=True):
    assert len(mine.boxes)
    np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-4)
    np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-5)
    np.testing.assert_array_equal(mine.classes, theirs.classes)
  one = fs.detect(*change(*traced), images[0])
  np.testing.assert_allclose(one.boxes, found[0].boxes, atol=1e-4)


@pytest.mark.parametrize('change', [lambda *x: x, settled], ids=['ann', 'snn'])
def test_classes_of_pixels(change):
  head = fs.Conv(2, kernel=1, norm=False)
  table, traced, images = both('segmentation', (17, 17, 3), head, remainder=1)
  wanted = fs.segment(*change(*table), images)
  found = fs.segment(*change(*traced), images)
  np.testing.assert_array_equal(found, wanted)
  assert set(np.unique(found)) == {0, 1}


def test_another_task_is_refused():
  head = fs.Conv(2, kernel=1, norm=False)
  _, traced, images = both('segmentation', (17, 17, 3), head, remainder=1)
  with pytest.raises(fs.UserError, match='segment'):
    fs.detect(*traced, images)
