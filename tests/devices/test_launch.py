"""Which launches are joined, by what a process finds in its environment."""

import jax
import pytest
from support.jobs import one_line

from fastsnn_jax import distributed as devices
from fastsnn_jax.errors import UserError

SEEN = (
  *('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'),
  *('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'MEGASCALE_NUM_SLICES'),
  *('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES', 'TPU_SKIP_MDS_QUERY'),
)
NOT_FOUND = ValueError('coordinator_address should be defined.')


@pytest.fixture
def started(monkeypatch):
  """`started(platforms, error, **environment)` is what JAX was asked."""

  def run(platforms=None, error=None, **environment):
    asked = []

    def initialize(**settings):
      asked.append(settings)
      if error is not None:
        raise error

    with monkeypatch.context() as patched:
      for name in SEEN:
        patched.delenv(name, raising=False)
      for name, value in environment.items():
        patched.setenv(name, value)
      patched.setattr(jax.distributed, 'initialize', initialize)
      before = jax.config.jax_platforms
      try:
        jax.config.update('jax_platforms', platforms)
        devices.start()
      finally:
        jax.config.update('jax_platforms', before)
    return asked

  return run


@pytest.mark.parametrize(
  ('platforms', 'environment'),
  [
    (None, {}),  # a laptop, or a host with GPUs
    (None, {'TPU_SKIP_MDS_QUERY': '1'}),  # where JAX saw no chips
    ('cpu', {'JAX_NUM_PROCESSES': '2'}),
    ('cuda', {'SLURM_NTASKS': '1'}),
    ('cuda', {'OMPI_COMM_WORLD_SIZE': '1'}),
    ('tpu,cpu', {'TPU_SKIP_MDS_QUERY': '1'}),
    ('tpu,cpu', {'TPU_WORKER_HOSTNAMES': 'localhost'}),
    ('tpu,cpu', {'TPU_PROCESS_ADDRESSES': 'local'}),
    ('tpu,cpu', {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '1'}),
    ('cpu', {}),  # on a TPU host, but not on its chips
  ],
)
def test_alone_jax_is_not_asked(started, platforms, environment):
  assert started(platforms, **environment) == []


@pytest.mark.parametrize(
  ('platforms', 'environment'),
  [
    ('cuda', {'SLURM_NTASKS': '2'}),
    ('cuda', {'OMPI_COMM_WORLD_SIZE': '4'}),
    ('tpu,cpu', {'TPU_WORKER_HOSTNAMES': 'a,b'}),
    ('tpu,cpu', {'TPU_PROCESS_ADDRESSES': 'a:8476,b:8476'}),
    (
      'tpu,cpu',  # two slices of a host each
      {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'},
    ),
    ('tpu,cpu', {}),  # a TPU VM: how many there are, metadata tell
    ('tpu', {}),
  ],
)
def test_a_launch_that_jax_knows_is_joined(started, platforms, environment):
  assert started(platforms, **environment) == [{}]


def test_a_launch_by_hand_says_who_is_who(started):
  found = started(
    JAX_COORDINATOR_ADDRESS='a:1', JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='1'
  )
  assert found == [
    {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1}
  ]
  with pytest.raises(UserError, match=r"JAX_PROCESS_ID='x'.*whole number"):
    started(JAX_COORDINATOR_ADDRESS='a:1', JAX_PROCESS_ID='x')


@pytest.mark.parametrize(
  'name', ['SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'MEGASCALE_NUM_SLICES']
)
@pytest.mark.parametrize('text', ['abc', '-2', '2.0', '²', ' ', '9' * 5000])
def test_a_number_that_is_none_is_named(started, name, text):
  with pytest.raises(UserError, match=f'{name}=.*whole number') as caught:
    started(**{name: text})
  one_line(caught)


@pytest.mark.parametrize(('count', 'number'), [('2', '2'), ('1', '5')])
def test_a_process_beyond_the_launch_is_refused(started, count, number):
  with pytest.raises(UserError, match='stay below the number of processes'):
    started(
      JAX_COORDINATOR_ADDRESS='a:1',
      JAX_NUM_PROCESSES=count,
      JAX_PROCESS_ID=number,
    )


def test_a_launch_that_lacks_a_variable_is_told(started):
  with pytest.raises(UserError, match='cannot be joined'):
    started('cuda', KeyError('SLURM_PROCID'), SLURM_NTASKS='2')


def test_a_tpu_host_of_which_nothing_is_known_is_alone(started):
  assert started('tpu', NOT_FOUND) == [{}]


@pytest.mark.parametrize(
  ('platforms', 'environment', 'advice'),
  [
    (None, {'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'unset them to run alone'),
    ('cuda', {'SLURM_NTASKS': '2'}, 'srun'),
    ('cuda', {'OMPI_COMM_WORLD_SIZE': '2'}, 'mpirun'),
    ('tpu,cpu', {'TPU_WORKER_HOSTNAMES': 'a,b'}, 'all workers of the pod'),
    (None, {'TPU_WORKER_HOSTNAMES': 'a,b'}, r"pip install '.\[tpu\]'"),
    ('tpu,cpu', {'MEGASCALE_NUM_SLICES': '2'}, 'JAX_COORDINATOR_PORT'),
    ('tpu,cpu', {}, 'TPU_SKIP_MDS_QUERY=1'),
  ],
)
@pytest.mark.parametrize(
  'error',
  [RuntimeError('DEADLINE\n it took 300 s'), OSError('no route'), NOT_FOUND],
)
def test_advice_fits_the_launch(started, platforms, environment, advice, error):
  if error is NOT_FOUND and not environment:
    return  # see above
  with pytest.raises(UserError, match=advice) as caught:
    started(platforms, error, **environment)
  message = str(caught.value)
  assert str(error).splitlines()[0] in message
  assert len(message.splitlines()) == 1
  by_hand = 'JAX_COORDINATOR_ADDRESS' in message
  assert by_hand == bool(
    {'JAX_COORDINATOR_ADDRESS', 'OMPI_COMM_WORLD_SIZE'} & set(environment)
  )
