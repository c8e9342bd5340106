"""How good a network is on a split."""

import functools

import jax

from fastsnn_jax import distributed, tasks
from fastsnn_jax.data import as_split
from fastsnn_jax.evaluation.batches import accumulate, applied, kept_rows
from fastsnn_jax.nn.network import Network, check_network
from fastsnn_jax.tasks import Task


def evaluate(
  network: Network, variables, data, *, task: Task | None = None, batch=100
) -> dict[str, float]:
  """The task's metrics of a network: {'accuracy': …}.

  All devices of all processes share out each batch.

  Args:
    network, variables: float, quantised or spiking.
    data: a `Split`, or what `data.as_split` takes: a dict of arrays with
      'image', uint8 or 0..255, and the task's labels, or examples.
    task: the network's own if not given.
    batch: images per call; fewer take less memory.

  >>> import jax, jax.numpy as jnp, numpy as np
  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_resnet8', bits=2, mean=(0.5,), std=(0.25,))
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1))
  >>> answers = fs.classify(network, variables, images)
  >>> data = {'image': images, 'label': [*answers[:3], (answers[3] + 1) % 10]}
  >>> fs.evaluate(network, variables, data)
  {'accuracy': 0.75}
  """
  check_network(network, variables)
  task = tasks.check(task) or tasks.for_network(network)
  variables = distributed.everywhere(variables, alias=True)
  judge = functools.partial(_measure, variables, network=network, task=task)
  total = accumulate(judge, as_split(data), batch, task)
  return task.summarize(total['sums'], total.get('rows'))


@functools.partial(jax.jit, static_argnames=('network', 'task'))
def _measure(variables, batch, *, network, task):
  output, _ = applied(network, variables, task.present(batch['image']))
  predictions = task.predict(output)
  return {
    'sums': task.measure(predictions, batch),
    'rows': kept_rows(task, batch, found=task.rows(predictions)),
  }
