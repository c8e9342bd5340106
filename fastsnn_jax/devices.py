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


def start() -> None:
  """Joins the other processes of a launch on several hosts, if it is one.

  Where `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are
  set they are used; SLURM with several tasks and TPU pods are recognised by
  JAX. To be called before any other use of JAX.

  Raises:
    UserError: the other processes could not be reached.
  """
  environment = os.environ
  address = environment.get('JAX_COORDINATOR_ADDRESS')
  several = int(
    environment.get('SLURM_NTASKS') or 1
  ) > 1 or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')
  if not address and not several:
    return
  settings = {}
  if address:
    settings = {
      'coordinator_address': address,
      'num_processes': _number('JAX_NUM_PROCESSES'),
      'process_id': _number('JAX_PROCESS_ID'),
    }
  try:
    jax.distributed.initialize(**settings)
  except (RuntimeError, ValueError) as error:
    line = str(error).splitlines()[0]
    raise UserError(
      f'the processes of this launch cannot be joined ({line}); check '
      'JAX_COORDINATOR_ADDRESS, or unset it to run alone'
    ) from error


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


def rows(on: Mesh) -> NamedSharding:
  """Sharded by the first dimension."""
  return NamedSharding(on, PartitionSpec(AXIS))


def everywhere(tree, on: Mesh):
  """The tree, copied to every device; each process has the same values."""
  return jax.tree.map(functools.partial(_copy, on=on), tree)


def _copy(x, on):
  sharding = NamedSharding(on, PartitionSpec())
  if jax.process_count() == 1:
    # A copy, also where x lies there already: its buffers may be donated.
    return jax.device_put(x, sharding, may_alias=False)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _copy(jax.random.key_data(x), on)
    return jax.random.wrap_key_data(data)
  x = np.array(x)
  return jax.make_array_from_process_local_data(sharding, x, x.shape)


def by_row(batch, on: Mesh):
  """A batch on the host, this process's part of it, shared out by row."""
  if jax.process_count() == 1:
    return jax.device_put(batch, rows(on))
  return jax.tree.map(
    functools.partial(jax.make_array_from_process_local_data, rows(on)), batch
  )


def whole(tree):
  """Arrays that are shared out by row, on the host of every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def keep_by_row(tree, on: Mesh | None):
  """Under `jit`: each device goes on with its rows."""
  if on is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, rows(on))


def check_batch(name: str, size: int, on: Mesh) -> None:
  """Raises a UserError where a batch cannot be shared out evenly."""
  if size % on.size:
    raise UserError(
      f'{name}={size}, for {on.size} devices; each takes the same share, so '
      f'choose a multiple of {on.size}'
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
