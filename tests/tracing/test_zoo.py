"""Tables traced as functions spike as the tables do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastsnn_jax as fs


@pytest.mark.once
@pytest.mark.parametrize(
  ('model', 'shape'),
  [
    ('small_resnet8', (8, 8, 1)),
    pytest.param('cifar_resnet20', (8, 8, 3), marks=pytest.mark.slow),
    ('small_yolo', (32, 32, 3)),
    pytest.param('small_deeplab', (17, 17, 3), marks=pytest.mark.slow),
  ],
)
def test_a_table_as_a_function_gives_its_spikes(model, shape):
  network = fs.build(model, bits=2, classes=4)
  with jax.enable_x64():
    images = jax.random.normal(jax.random.key(1), (2, *shape), jnp.float64)
    variables = network.init(jax.random.key(0), images)
    variables = jax.tree.map(jnp.float64, variables)

    def function(variables, images):
      return network.apply(variables, images)[0]

    traced, own = fs.from_function(function, variables, images, classes=4)
    assert len(traced.firing) == len(network.firing)
    for mode, settings in (('signed', {}), ('settled', {'settle': 12})):
      convert = functools.partial(fs.to_spiking, mode=mode, **settings)
      table, mine = convert(network), convert(traced)
      pairs = (
        (table, variables, mine, own),
        (
          *fs.fold(table, variables),
          *fs.fold(mine, own),
        ),
      )
      for table, weights, mine, params in pairs:
        output, spikes = jax.jit(table.apply)(weights, images)
        answer, found = mine.apply(params, images)
        np.testing.assert_allclose(answer, output, atol=1e-9)
        for row, site in zip(network.firing, traced.firing, strict=True):
          np.testing.assert_allclose(
            found[site.name], spikes[row.name], atol=1e-9, err_msg=row.name
          )
