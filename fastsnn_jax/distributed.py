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

# Variables with the number of processes that a launch has.
_COUNTS = {'SLURM_NTASKS': 'slurm', 'OMPI_COMM_WORLD_SIZE': 'mpi'}
_COUNTS |= {'MEGASCALE_NUM_SLICES': 'tpu'}
# What helps where the processes of a launch cannot reach one another.
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

  `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are used
  where they are set; SLURM, Open MPI and TPUs are recognised, and JAX knows how
  to join there. Call it before any other use of JAX.
  UserError if the other processes cannot be reached.
  """
  launch = _launch()
  if launch is None or jax.distributed.is_initialized():
    return
  settings = _variables() if launch == 'variables' else {}
  try:
    jax.distributed.initialize(**settings)
  except (RuntimeError, LookupError, ValueError, OSError, ImportError) as error:
    if launch == 'tpu host' and isinstance(error, ValueError):
      return  # JAX recognised no launch: this host is the only one
    line = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError(
      f'the processes of this launch cannot be joined ({line}); '
      f'{_ADVICE[launch]}'
    ) from error


def _launch() -> str | None:
  """What started this process beside others, a key of `_ADVICE`, or None."""
  value = os.environ.get
  if value('JAX_COORDINATOR_ADDRESS'):
    return 'variables'
  for name, launch in _COUNTS.items():
    if (_whole(name) or 1) > 1:
      return launch
  # Kubernetes names the hosts of a slice here. A single one may be called
  # 'local', which is no address to join at.
  if hosts := value('TPU_PROCESS_ADDRESSES') or value('TPU_WORKER_HOSTNAMES'):
    return 'tpu' if ',' in hosts else None
  # Elsewhere only the metadata server knows, which JAX then asks. JAX puts
  # 'tpu' among the platforms where it sees chips and libtpu, and sets this
  # variable where it sees no chips.
  platforms = (jax.config.jax_platforms or '').split(',')
  alone = 'tpu' not in platforms or value('TPU_SKIP_MDS_QUERY')
  return None if alone else 'tpu host'


def _variables():
  settings = {'coordinator_address': os.environ['JAX_COORDINATOR_ADDRESS']}
  for name in ('num_processes', 'process_id'):
    settings[name] = _whole(f'JAX_{name.upper()}')  # None: JAX finds it out
  count, number = settings['num_processes'], settings['process_id']
  if None not in (count, number) and number >= count:
    raise UserError(
      f'JAX_PROCESS_ID={number}, of JAX_NUM_PROCESSES={count}: numbers start '
      'at 0 and stay below the number of processes'
    )
  return settings


def _whole(name):
  """A number of the environment; None where it is not set."""
  text = os.environ.get(name)
  if text and not (text.isascii() and text.isdigit() and len(text) < 10):
    raise UserError(
      f'{name}={text!r}: it must be a whole number; set it as the launcher '
      'does, or unset it to run alone'
    )
  return int(text) if text else None


@functools.cache
def mesh() -> Mesh:
  """All devices of all processes, on one axis."""
  count = jax.device_count()
  return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,))


def rows() -> NamedSharding:
  """Sharded by the first dimension."""
  return NamedSharding(mesh(), PartitionSpec(AXIS))


def even(size: int) -> int:
  """The batch size, or the next one that the devices can share out."""
  return -(-size // mesh().size) * mesh().size


def everywhere(tree, *, alias: bool = False):
  """The arrays of a tree on every device; each process has the same values.

  They are copies, whose buffers can be donated; with `alias`, an array that
  lies there already may be the same one.
  """
  sharding = NamedSharding(mesh(), PartitionSpec())
  if jax.process_count() == 1:
    if not alias:  # else the first of several devices shares what is given
      tree = jax.tree.map(
        lambda x: jax.numpy.copy(x) if isinstance(x, jax.Array) else x, tree
      )
    return jax.device_put(tree, sharding, may_alias=alias)

  def put(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put(jax.random.key_data(x)))
    x = np.array(x)
    return jax.make_array_from_process_local_data(sharding, x, x.shape)

  return jax.tree.map(put, tree)


def by_row(batch):
  """A batch on the host, this process's part of it, shared out by row."""
  if jax.process_count() == 1:
    return jax.device_put(batch, rows())
  return jax.tree.map(
    functools.partial(jax.make_array_from_process_local_data, rows()), batch
  )


def keep_by_row(tree):
  """Under `jit`: each device goes on with its rows."""
  return jax.lax.with_sharding_constraint(tree, rows())


def on_mesh_of(images, tree):
  """Arrays as they are, or everywhere on the images' mesh of explicit axes.

  There JAX adds gradients up over devices only where it knows the mesh of what
  they are of. Arrays on that mesh stay as they are.
  """
  mesh = jax.typeof(images).sharding.mesh
  if AxisType.Explicit not in mesh.axis_types:
    return tree
  whole = NamedSharding(mesh, PartitionSpec())

  def put(x):
    if jax.typeof(x).sharding.mesh.empty:
      return jax.sharding.reshard(x, whole)
    return x

  return jax.tree.map(put, tree)


def each_alone(function):
  """Under `jit`: `function(everywhere, by_row)`, on each device's rows alone.

  All that it gives has a row for each of `by_row`. So a loop that asks all its
  rows whether it goes on asks those of one device, without communication.
  """
  everywhere, by_row = PartitionSpec(), PartitionSpec(AXIS)
  specs = {'in_specs': (everywhere, by_row), 'out_specs': by_row}
  return jax.shard_map(function, mesh=mesh(), **specs)


def whole(tree):
  """Arrays that are shared out by row, on the host of every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def check_batch(name: str, size: int, parts: int = 1) -> None:
  """Raises a UserError where a batch cannot be shared out evenly.

  `name` is that of the setting; each device computes its share of the batch in
  `parts`, one after another.
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
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def any_of(value: int) -> int:
  """The largest value of any process."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def check_shared(directory, state: int) -> None:
  """Raises a UserError where `state` of a directory differs by process."""
  if any_of(agree(state) != state):
    raise UserError(
      f'{directory} does not hold the same for all {jax.process_count()} '
      'processes; give a --workdir on a file system that they share'
    )
