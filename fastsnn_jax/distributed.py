"""Which devices there are, and what lies where: weights everywhere, rows apart.

One mesh axis, 'data', runs over all devices of all processes. Under `jit` the
compiler then works on each device's rows and adds the communication that the
program needs: none in evaluation, reductions of gradients and batch statistics
in training.
"""

import functools
import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fastsnn_jax.errors import UserError

AXIS = 'data'


# What helps where the processes of a launch do not find one another.
_ADVICE = {
  'variables': 'check JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and '
  'JAX_PROCESS_ID, or unset them to run alone',
  'slurm': 'start the tasks with srun, or set SLURM_NTASKS=1 to run alone',
  'mpi': 'JAX knows the mpirun of Open MPI 4; otherwise give each process '
  'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID',
  'tpu': 'give the same command to all workers of the pod at once, each with '
  "pip install '.[tpu]'; JAX_COORDINATOR_PORT=8476 chooses a port that the "
  'firewall leaves open',
  'tpu host': "pip install '.[tpu]', and let the host reach its metadata "
  'server, which names the other hosts; TPU_SKIP_MDS_QUERY=1 says that there '
  'are none',
}


def start() -> None:
  """Joins the other processes of a launch on several hosts, if it is one.

  Where `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are
  set they are used; SLURM and Open MPI with several tasks and TPUs are
  recognised, and JAX knows how to join there. To be called before any other
  use of JAX.

  Raises:
    UserError: the other processes could not be reached.
  """
  launch = _launch()
  if launch is None or jax.distributed.is_initialized():
    return
  settings = {}
  if launch == 'variables':
    settings = {
      'coordinator_address': os.environ['JAX_COORDINATOR_ADDRESS'],
      'num_processes': _number('JAX_NUM_PROCESSES'),
      'process_id': _number('JAX_PROCESS_ID'),
    }
  try:
    jax.distributed.initialize(**settings)
  except (RuntimeError, ValueError, OSError, ImportError) as error:
    line = (str(error) or type(error).__name__).splitlines()[0]
    if launch == 'tpu host' and 'coordinator_address should be' in line:
      return  # asked, JAX knows of no others
    raise UserError(
      f'the processes of this launch cannot be joined ({line}); '
      f'{_ADVICE[launch]}'
    ) from error


def _launch() -> str | None:
  """What started this process among others, a key of `_ADVICE`, or None."""
  environment = os.environ
  if environment.get('JAX_COORDINATOR_ADDRESS'):
    return 'variables'
  for name, launch in (
    ('SLURM_NTASKS', 'slurm'),
    ('OMPI_COMM_WORLD_SIZE', 'mpi'),
    ('MEGASCALE_NUM_SLICES', 'tpu'),
  ):
    if int(environment.get(name) or 1) > 1:
      return launch
  # Kubernetes names the hosts of a slice here. A single one may be called
  # 'local', which is no address to join at.
  hosts = environment.get('TPU_PROCESS_ADDRESSES') or environment.get(
    'TPU_WORKER_HOSTNAMES'
  )
  if hosts:
    return 'tpu' if ',' in hosts else None
  # Elsewhere only the metadata server knows, which JAX then asks. 'tpu' it
  # puts among the platforms by itself where it sees chips and libtpu; where it
  # sees no chips it sets this variable.
  platforms = (jax.config.jax_platforms or '').split(',')
  if 'tpu' in platforms and not environment.get('TPU_SKIP_MDS_QUERY'):
    return 'tpu host'
  return None


def _number(name):
  text = os.environ.get(name)
  if text is None:
    return None  # JAX finds it out, or says what is missing
  if not text.isdigit():
    raise UserError(f'{name}={text!r}, but it must be a whole number')
  return int(text)


@functools.cache
def mesh() -> Mesh:
  """All devices of all processes, on one axis."""
  return jax.make_mesh(
    (jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,)
  )


def rows() -> NamedSharding:
  """Sharded by the first dimension."""
  return NamedSharding(mesh(), PartitionSpec(AXIS))


def even(size: int) -> int:
  """The batch size, or the next one that the devices can share out."""
  return -(-size // mesh().size) * mesh().size


def everywhere(tree, *, alias: bool = False):
  """The tree on every device; each process has the same values.

  Args:
    tree: of arrays.
    alias: an array that lies there already may be the same one; otherwise it
      is a copy, whose buffers can be donated.
  """
  return jax.tree.map(functools.partial(_copy, alias=alias), tree)


def _copy(x, alias):
  sharding = NamedSharding(mesh(), PartitionSpec())
  if jax.process_count() == 1:
    if not alias and isinstance(x, jax.Array):
      x = jax.numpy.copy(x)  # else the first of several devices shares x
    return jax.device_put(x, sharding, may_alias=alias)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _copy(jax.random.key_data(x), alias)
    return jax.random.wrap_key_data(data)
  x = np.array(x)
  return jax.make_array_from_process_local_data(sharding, x, x.shape)


def by_row(batch):
  """A batch on the host, this process's part of it, shared out by row."""
  if jax.process_count() == 1:
    return jax.device_put(batch, rows())
  return jax.tree.map(
    functools.partial(jax.make_array_from_process_local_data, rows()), batch
  )


def whole(tree):
  """Arrays that are shared out by row, on the host of every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def keep_by_row(tree):
  """Under `jit`: each device goes on with its rows."""
  return jax.lax.with_sharding_constraint(tree, rows())


def check_batch(name: str, size: int, parts: int = 1) -> None:
  """Raises a UserError where a batch cannot be shared out evenly.

  Args:
    name: of the setting.
    size: of the batch.
    parts: in which each device computes its share, one after another.
  """
  if size % (parts := parts * mesh().size):
    raise UserError(
      f'{name}={size}, for {mesh().size} devices in {parts} parts, which all '
      f'have one size; choose a multiple of {parts}'
    )


def first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def agree(value: int) -> int:
  """The first process's value, for all: so they take the same turn."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def check_shared(directory, found: int) -> None:
  """Raises a UserError where not all processes find the same there."""
  if any_of(agree(found) != found):
    raise UserError(
      f'{directory} does not hold the same for all {jax.process_count()} '
      'processes; give a --workdir on a file system that they share'
    )


def any_of(value: int) -> int:
  """The largest value of any process."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))
