"""Answers after every step, and what it saves to stop at the first sure one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fastsnn_jax import distributed, tasks
from fastsnn_jax.data import as_split
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation.batches import accumulate, spiked
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.nn.network import Network, check_network

# Probabilities are near 1 early: a network divides by few steps then.
MARGINS = (
  *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999),
  *(0.9997, 0.9999, 0.99997, 0.99999, 0.999997, 0.999999, 1.0),
)
LOSS = 0.001  # of the metric, that an exit may cost


def anytime(network: Network, variables, images):
  """The output of a spiking network after every step, from one pass.

  After step t <= T the read-out takes the mean over t steps, then over T.

  Args:
    network, variables: spiking, a table or a function.
    images: [B, …], normalised as for `network.apply`.

  Returns:
    [B, T + k, …], or a tree of such; with settle='auto' [B, T + 1, …], at last
    the answer once all is quiet.

  Raises:
    UserError: a network that does not spike.

  >>> import fastsnn_jax as fs
  >>> hidden = fs.Layer('hidden', fs.Dense(4))
  >>> head = fs.Layer('head', fs.Dense(3, norm=False), ('hidden',))
  >>> signed = fs.to_spiking(fs.Network((hidden, head), fs.QuantRelu(2)))
  >>> images = jax.random.normal(jax.random.key(0), (2, 5))
  >>> variables = signed.init(jax.random.key(1), images)
  >>> outputs = fs.anytime(signed, variables, images)
  >>> outputs.shape
  (2, 3, 3)
  >>> output, _ = jax.jit(signed.apply)(variables, images)
  >>> bool(jnp.allclose(outputs[:, -1], output, atol=1e-5))
  True
  """
  _check(network, variables)
  return _outputs(variables, jnp.asarray(images), network=network)


def _check(network, variables):
  check_network(network, variables)
  if not network.spiking:
    raise UserError(
      f'the neuron is {network.neuron}, but only a spiking network has an '
      'answer after every step; convert it by fs.to_spiking'
    )


@functools.partial(jax.jit, static_argnames='network')
def _outputs(variables, images, *, network):
  _, activations = network.apply(variables, images)
  return network.output_over_time(variables, activations, images)


def exit_curve(
  network: Network,
  variables,
  data,
  *,
  margins=MARGINS,
  task=None,
  batch: int = 100,
) -> dict[str, Any]:
  """How good a network is, and how long it runs, if sure images stop early.

  An image is done at the first step behind which the probability of its first
  class is above that of the second by more than the margin.

  Args:
    network, variables: spiking, with a task that has a margin: classification.
    data: a `Split`, or what `data.as_split` takes; held-out images, where the
      margin is to be chosen by them.
    margins: those to try, in [0, 1]; at 1 no image stops early.
    task: the network's own if not given.
    batch: images per call.

  Returns:
    {'margin': […], the task's metric: […], 'steps': […], mean steps run,
    'chosen': the least margin from which on at most 0.001 of the metric of all
    steps is lost, for `fs.classify(…, exit_margin=…)`}.

  Raises:
    UserError: a network that does not spike, a task without a margin, or
      margins that do not rise within [0, 1].

  >>> import numpy as np, fastsnn_jax as fs
  >>> hidden = fs.Layer('hidden', fs.Dense(4))
  >>> head = fs.Layer('head', fs.Dense(4, norm=False), ('hidden',))
  >>> ann = fs.Network(
  ...   (hidden, head), fs.QuantRelu(2), classes=tuple('abcd'), mean=(0.5,),
  ...   std=(0.25,)
  ... )
  >>> variables = ann.init(jax.random.key(0), jnp.ones((1, 3, 3, 1)))
  >>> random = np.random.default_rng(0)
  >>> images = random.integers(0, 256, (4, 3, 3, 1)).astype(np.uint8)
  >>> data = {'image': images, 'label': np.arange(4)}
  >>> signed = fs.to_spiking(ann)
  >>> curve = fs.exit_curve(signed, variables, data, margins=(0.0, 1.0))
  >>> curve['steps'][-1], curve['margin']
  (3.0, [0.0, 1.0])
  """
  _check(network, variables)
  task = tasks.check(task) or tasks.for_network(network)
  if not hasattr(task, 'margin'):
    raise UserError(
      f'exit_curve: {type(task).__name__} has no margin(outputs), which says '
      'how sure an answer is; early exit is for classification'
    )
  margins = tuple(float(x) for x in margins)
  if (
    not margins
    or sorted(set(margins)) != [*margins]
    or not (margins[0] >= 0 and margins[-1] <= 1)
  ):
    raise UserError(
      f'margins={margins}, but they must rise from 0 at least to 1 at most'
    )
  network, variables = ready(network, variables)
  variables = distributed.everywhere(variables, alias=True)
  judge = functools.partial(
    _judge, variables, network=network, task=task, margins=margins
  )
  sums = accumulate(judge, as_split(data), batch, task)['sums']
  values = [
    task.summarize(jax.tree.map(lambda x, i=i: x[i], sums['metric']))
    for i in range(len(margins) + 1)
  ]
  values = [value[task.metric] for value in values]
  steps = (sums['steps'] / sums['images']).tolist()
  full = values.pop()
  short = [i for i, value in enumerate(values) if value < full - LOSS]
  first = max(short, default=-1) + 1
  return {
    'margin': list(margins),
    task.metric: values,
    'steps': steps[:-1],
    'full': full,
    'full_steps': steps[-1],
    'chosen': margins[first] if first < len(margins) else 1.0,
  }


@functools.partial(jax.jit, static_argnames=('network', 'task', 'margins'))
def _judge(variables, batch, *, network, task, margins):
  images = task.present(batch['image'])
  activations, _, last, _ = spiked(network, variables, images)
  outputs = network.output_over_time(variables, activations, images)
  count = outputs.shape[1]
  taken = jnp.broadcast_to(jnp.arange(1, count + 1), outputs.shape[:2])
  if network.until_quiet:
    end = jnp.maximum(last, network.neuron.steps)
    taken = taken.at[:, -1].set(end)
  sure = jax.vmap(task.margin, 1, 1)(outputs)
  predicted = jax.vmap(task.predict, 1, 1)(outputs)
  rows = jnp.arange(len(images))

  def at(margin):
    over = sure > margin
    when = jnp.where(over.any(1), jnp.argmax(over, 1), count - 1)
    measured = task.measure(predicted[rows, when], batch)
    return measured, jnp.sum(taken[rows, when] * batch['mask'])

  metric, steps = jax.vmap(at)(jnp.array([*margins, 2.0]))
  sums = {'metric': metric, 'steps': steps, 'images': jnp.sum(batch['mask'])}
  return {'sums': sums}
