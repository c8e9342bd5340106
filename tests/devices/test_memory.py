"""The memory that docs/scale.md states is what the compiled programs take."""

import pytest
from support.training import devices

from benchmarks import memory

IMAGE, BATCH = (8, 8, 1), 32


@pytest.fixture(scope='module')
def network():
  return memory.built('small_resnet8', IMAGE)


@pytest.fixture(autouse=True)
def one_device():
  with devices(1):
    yield


def check(measured, low, high):
  needed, times = measured
  assert needed > 0
  assert low <= times <= high


@pytest.mark.slow
def test_training_takes_the_neurons_of_all_images_five_times(network):
  check(memory.training(network, IMAGE, BATCH), 3.5, 6.5)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['signed', 'settled'])
def test_a_spiking_network_takes_its_widest_layer(network, mode):
  check(memory.spiking(network, IMAGE, BATCH, mode), 2.5, 6.5)


@pytest.mark.slow
@pytest.mark.parametrize(('mode', 'high'), [('signed', 2.5), ('settled', 1.3)])
def test_comparing_keeps_all_layers(network, mode, high):
  check(memory.comparing(network, IMAGE, BATCH, mode), high / 3, high)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('schedule', 'high'), [('parallel', 4.2), ('sequential', 1.6)]
)
def test_fine_tuning_keeps_what_its_layers_see(network, schedule, high):
  check(memory.tuning(network, IMAGE, BATCH, schedule), high / 3, high)
