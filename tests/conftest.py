"""Eight emulated devices, the shared folder, and hypothesis's profiles."""

import os

# Before the first import of jax: the backend reads its flags once.
_flags = [os.environ.get('XLA_FLAGS', '')]
if 'xla_force_host_platform_device_count' not in _flags[0]:
  _flags.append('--xla_force_host_platform_device_count=8')
if 'PYTEST_XDIST_WORKER' in os.environ:
  # Each worker has a core to itself; a pool of threads per worker would not.
  _flags.append('--xla_cpu_multi_thread_eigen=false')
os.environ['XLA_FLAGS'] = ' '.join(filter(None, _flags))
os.environ['JAX_PLATFORMS'] = 'cpu'

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from support.shared import find_shared  # noqa: E402

hypothesis.settings.register_profile('here', deadline=None, max_examples=25)
hypothesis.settings.register_profile(
  'ci', deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile('ci' if os.environ.get('CI') else 'here')


@pytest.fixture(scope='session')
def shared():
  """`shared('golden', 'quant_acts.npz')` is a path, or skips the test."""
  return find_shared
