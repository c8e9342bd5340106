"""Emulated devices, the shared folder, and hypothesis's profiles."""

import itertools
import os

_flags = os.environ.get('XLA_FLAGS', '')
if 'PYTEST_XDIST_WORKER' in os.environ:
  # Each worker has a core to itself; a pool of threads per worker would not.
  _flags += ' --xla_cpu_multi_thread_eigen=false'
if '--xla_backend_optimization_level' not in _flags:
  # Tests compile more than they run, and much of that is LLVM's optimisation.
  _flags += ' --xla_backend_optimization_level=1'
os.environ['XLA_FLAGS'] = (
  f'{_flags} --xla_force_host_platform_device_count=8'.strip()
)
os.environ['JAX_PLATFORMS'] = 'cpu'

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from support.shared import find_shared  # noqa: E402
from support.training import devices  # noqa: E402

jax.devices()  # reads the flags, once; the programs that tests start
os.environ['XLA_FLAGS'] = _flags.strip()  # run on one device

hypothesis.settings.register_profile('here', deadline=None, max_examples=25)
hypothesis.settings.register_profile(
  'ci', deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile('ci' if os.environ.get('CI') else 'here')


@pytest.fixture(scope='session')
def shared():
  """`shared('golden', 'quant_acts.npz')` is a path, or skips the test."""
  return find_shared


@pytest.fixture(scope='module', autouse=True)
def _mesh(request):
  """One device, which compiles fastest; tests/devices/ has all eight."""
  if 'devices' in request.path.parts:
    yield
  else:
    with devices(1):
      yield


_modules = itertools.count(1)


@pytest.fixture(scope='module', autouse=True)
def _programs():
  """Drops compiled programs now and then.

  Each maps memory of its own. In a run of thousands of tests a worker came to
  six gigabytes, and one of them crashed.
  """
  yield
  if not next(_modules) % 20:
    jax.clear_caches()
