"""One quantised network, turned into spiking ones, repaired and judged."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastsnn_jax import tasks
from fastsnn_jax.conversion.finetune import Tuning, finetune
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.data import Dataset, Loader, present
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation import evaluate as evaluation
from fastsnn_jax.evaluation.batches import count, even
from fastsnn_jax.nn.network import Network
from fastsnn_jax.training.log import Bar, say


class Judged(NamedTuple):
  """What came of one bit width.

  Attributes:
    rows: one per mode, and one per fine-tuning, as in results.json.
    tuning: the records of `finetune`.
    chosen: the spiking network and variables to keep; settled needs no other
      weights than the quantised network's.
  """

  rows: list[dict]
  tuning: list[dict]
  chosen: tuple[Network, dict]


def convert_network(
  ann: Network,
  variables,
  dataset: Dataset,
  *,
  modes: Sequence[str],
  settle: int,
  tunings: Sequence[Tuning],
  tune_images: int | None,
  batch: int,
  seed: int,
  steps: int | None = None,
  keep: str = 'last',
  mesh: Mesh | None = None,
  **of_task,
) -> Judged:
  """Converts in every mode, judges, fine-tunes the signed one, judges again.

  Args:
    ann, variables: the quantised network.
    dataset: judged on its test images, tuned on its training images.
    modes: of `to_spiking`.
    settle: steps after the T-th, in settled mode.
    tunings: fine-tunings, each from the quantised network's variables.
    tune_images: how many training images they see; None for all.
    batch: images per evaluation call.
    seed: of the fine-tuning.
    steps: with input, T; None for 2^bits - 1.
    keep: what is chosen: the network of this mode, or of the tuning of this
      schedule; 'last' for the last tuning's, or without any the last mode's.
    mesh: over whose devices batches are shared out; None for one device.
    **of_task: settings of `tasks.for_network`.

  Raises:
    UserError: a threshold is not positive.
  """
  for layer in ann.firing:
    theta = float(variables['params'][layer.name]['theta'])
    if not theta > 0:
      raise UserError(
        f'layer {layer.name!r}: theta={theta:.3g}, but no neuron has a '
        'threshold that is not positive; train the stage again with a smaller '
        'learning rate'
      )
  given, spiking = {} if steps is None else {'steps': steps}, {}
  for mode in modes:
    late = {'settle': settle} if mode == 'settled' else {}
    spiking[mode] = to_spiking(ann, mode, **given, **late), variables
  if given and steps != 2**ann.bits - 1 and 'settled' in modes:
    say(
      f'--steps {steps}: settled equals the quantised network of {ann.bits} '
      f'bits at {2**ann.bits - 1} steps only, for that many levels it has'
    )
  images = {name: x[:tune_images] for name, x in dataset.train.items()}
  if tunings and (least := max(t.batch for t in tunings)) > count(images):
    raise UserError(
      f'--tune-batch {least}: there are {count(images)} images to tune with; '
      'give a smaller one, or more --tune-images'
    )
  task = tasks.for_network(ann, **of_task)
  judge = functools.partial(_judge, ann, variables, task, dataset, batch, mesh)
  made, rows, records = dict(spiking), judge(spiking, 'none'), []
  signed = to_spiking(ann, 'signed', **given)
  for tuning in tunings:
    units = 1 if tuning.schedule == 'parallel' else len(ann.firing) - 1
    title = f'{ann.bits} bits: {tuning.schedule} fine-tuning'
    with Bar(title, units * tuning.epochs) as bar:
      tuned, done = finetune(
        ann,
        signed,
        variables,
        images,
        tuning,
        seed=seed,
        batch=batch,
        on_layer=lambda record, bar=bar: bar.advance(note=record['layer']),
      )
    records += [{'bits': ann.bits, **record} for record in done]
    made[tuning.schedule] = signed, tuned
    rows += judge({'signed': made[tuning.schedule]}, tuning.schedule)
  kept = list(made)[-1] if keep == 'last' else keep
  what = 'network' if kept in spiking else 'fine-tuning of the signed network'
  say(f'snn{ann.bits} holds the {kept} {what} (--keep takes another)')
  return Judged(rows, records, made[kept])


def _judge(ann, variables, task, dataset, batch, mesh, spiking, tuned):
  """A row per network, and a line on the terminal for each."""
  calls = math.ceil(count(dataset.test) / even(batch, mesh))
  with Bar(f'{ann.bits} bits: judging {", ".join(spiking)}', calls) as bar:
    judged = evaluation.compare(
      ann,
      variables,
      spiking,
      dataset.test,
      task,
      batch=batch,
      mesh=mesh,
      advance=bar.advance,
    )
  rows = []
  for mode, row in judged.items():
    say(
      f'{ann.bits} bits, {mode}, tuning {tuned}: {task.metric} '
      f'{row[task.metric]:.4f} (ANN {row["ann_" + task.metric]:.4f}), '
      f'agreement {row["agreement"]:.4f}'
    )
    rows.append({'bits': ann.bits, 'mode': mode, 'tuned': tuned, **row})
  return rows


def examples(ann, variables, snn, tuned, data, number: int = 3) -> dict:
  """The first images of a set, and what both networks say of them.

  Returns:
    {'image', 'truth', 'ann', 'snn'}, and of padded images with maps 'size', as
    `pictures.draw` takes them.
  """
  task = tasks.for_network(ann)
  if isinstance(data, Loader):
    data = next(data.evaluation())
  batch = {name: np.asarray(x)[:number] for name, x in data.items()}
  shown = present(ann, batch['image'])

  @functools.partial(jax.jit, static_argnames='network')
  def answer(variables, network):
    return task.predict(network.apply(variables, shown)[0])

  truth, more = batch['label'], {}
  if 'boxes' in batch:
    truth = {name: batch[name] for name in ('boxes', 'label')}
  elif 'size' in batch:
    more = {'size': batch['size']}
  return {
    **more,
    'image': batch['image'],
    'truth': truth,
    'ann': jax.device_get(answer(jax.device_get(variables), network=ann)),
    'snn': jax.device_get(answer(jax.device_get(tuned), network=snn)),
  }


def raster(network: Network, variables, image, neurons: int = 48) -> dict:
  """Spikes of some evenly spaced neurons of each layer, for one raw image.

  Returns:
    {'layers': names, 'spikes': int8 [steps, neurons] per layer, 'image', 'T'}.
  """
  variables = jax.device_get(variables)  # run here, whoever else has them
  shown = present(network, jnp.asarray(image)[None])
  _, activations = jax.jit(network.apply)(variables, shown)
  # In the table's order: jit gives dicts back sorted by name.
  names, spikes = [layer.name for layer in network.firing], []
  for name in names:
    flat = np.sign(np.asarray(activations[name][0])).astype(np.int8)
    flat = flat.reshape(len(flat), -1)
    shown = np.linspace(0, flat.shape[1] - 1, min(neurons, flat.shape[1]))
    spikes.append(flat[:, shown.astype(int)])
  return {
    'layers': names,
    'spikes': spikes,
    'image': image,
    'T': network.neuron.steps,
  }
