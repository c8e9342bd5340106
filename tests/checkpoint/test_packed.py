"""Folded networks on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastsnn_jax as fs
from fastsnn_jax.checkpoint import packed, store

KERNELS = hnp.arrays(
  st.sampled_from([np.int8, np.int16]),
  hnp.array_shapes(max_dims=4, max_side=5),
  elements=st.integers(-128, 127),
)


@given(KERNELS)
def test_what_is_packed_comes_back(kernel):
  tree = {'a': {'kernel': kernel, 'scale': np.ones(3, np.float32)}}
  back = packed.unpack(packed.pack(tree))
  assert back['a']['kernel'].dtype == kernel.dtype
  jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_damaged_kernels_are_refused():
  good = packed.pack(np.array([-1, 0, 1, 1, 0], np.int8))
  with pytest.raises(fs.UserError, match='needs 2'):
    packed.unpack({**good, 'codes': good['codes'][:1]})
  with pytest.raises(fs.UserError, match='number 3 of 3'):
    packed.unpack({**good, 'codes': np.array([255, 255], np.uint8)})


def test_a_folded_network_is_saved_in_two_bits_a_weight(tmp_path):
  network = fs.to_spiking(fs.build('small_resnet8', bits=2))
  images = jnp.ones((1, 8, 8, 1))
  variables = network.init(jax.random.key(0), images)
  folded, ready = fs.fold(network, variables)
  fs.save(tmp_path / 'net', folded, ready)
  again, back = fs.load(tmp_path / 'net')
  assert again == folded
  # A folded network has no statistics, and an empty tree is not on disk.
  ready = {name: tree for name, tree in ready.items() if tree}
  jax.tree.map(np.testing.assert_array_equal, back, ready)
  tree, _ = store.load(tmp_path / 'net')
  for name in ('layer1.0.part1', 'layer3.0.part1'):
    kernel = ready['params'][name]['synapse']['kernel']
    assert kernel.dtype == jnp.int8
    codes = tree['params'][name]['synapse']['kernel']['codes']
    assert codes.nbytes == kernel.size / 4
