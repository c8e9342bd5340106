"""Tasks by name: what a problem asks of data and of a network's output."""

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import check_network
from fastsnn_jax.tasks.classification.task import Classification
from fastsnn_jax.tasks.detection.task import Detection
from fastsnn_jax.tasks.segmentation.task import Segmentation
from fastsnn_jax.tasks.task import Task

__all__ = ['Task', 'check', 'expect', 'for_network', 'named', 'register']

_TASKS: dict[str, type[Task]] = {
  'classification': Classification,
  'detection': Detection,
  'segmentation': Segmentation,
}


def register(name: str, task: type[Task]) -> None:
  """Makes a task of one's own, a frozen dataclass, known by a name.

  `Network.task`, and `register_model(…, task=name)`, then take the name.

  >>> register('classification', Classification)
  """
  if not (isinstance(task, type) and issubclass(task, Task)):
    raise UserError(f'{name}: {task!r} is no subclass of fastsnn_jax.Task')
  _TASKS[name] = task


def named(name: str) -> type[Task]:
  """The class of a task.

  Raises:
    UserError: no task has this name.
  """
  if name not in _TASKS:
    raise UserError(
      f'task={name!r}: there is none of this name; there are '
      f'{", ".join(_TASKS)}, and fs.register_task adds one'
    )
  return _TASKS[name]


def for_network(network, **options) -> Task:
  """The task that a network's `task` names, with `options` for its fields.

  These are smoothing for classification; coco, limit, conflict and rounded for
  detection; weights for segmentation.

  >>> import fastsnn_jax as fs
  >>> for_network(fs.build('small_resnet8')).metric
  'accuracy'
  """
  return named(network.task).of(network, **options)


def check(task) -> Task | None:
  """A task or None, as `task=` takes it; UserError for anything else."""
  if task is not None and not isinstance(task, Task):
    raise UserError(
      f'task={task!r}, but it must be a Task, as tasks.for_network(network) '
      'gives it; leave it out for the one that the network names'
    )
  return task


def expect(network, variables, verb: str) -> Task:
  """The task of a network, if `verb` is what answers it.

  Raises:
    UserError: another public function does, or they are no network and its
      variables.
  """
  check_network(network)
  task = for_network(network)
  if task.verb != verb:
    raise UserError(
      f'{verb}: the network is for {network.task}; use fs.{task.verb}'
    )
  check_network(network, variables)
  return task
