"""What an experiment has on disk, and how it is written down.

A workdir holds ann32, ann4, … (trained networks), snn4, … (spiking ones),
metrics.jsonl, tensorboard and report; and, while a stage runs, unfinished.
"""

import dataclasses
import json
import pathlib
from typing import Any

from fastsnn_jax import architectures, data, tasks
from fastsnn_jax.architectures import BITS, build
from fastsnn_jax.checkpoint import networks, store
from fastsnn_jax.data import Dataset
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment.config import (
  Compute,
  Conversion,
  Data,
  Experiment,
  Stage,
)
from fastsnn_jax.nn.network import Network


def open_data(config: Experiment, own=None) -> Dataset:
  """The data set of an experiment.

  Args:
    config: names a model, whose task says what labels are needed, and the data.
    own: a data set to take instead, see `data.as_dataset`.

  Raises:
    UserError: no such data, or settings that do not go with the task.
  """
  if own is not None:
    name = config.data.name  # the default's would stand for other images
    return data.as_dataset(own, 'own' if name == Data.name else name)
  model = architectures.model(config.model)
  known = data.named.own(config.data.name, config.data.path)
  return known or tasks.named(model.task).open(config.data, model)


def network_of(config: Experiment, bits: int, dataset: Dataset) -> Network:
  """The network of a stage of an experiment, for this data set."""
  model = architectures.model(config.model)
  task = tasks.named(model.task)
  fields = task.network_fields(config.data, model, dataset)
  return build(config.model, bits, dataset.classes, **fields)


def save(directory, network: Network | Experiment, variables, **meta) -> None:
  """Writes a network and its variables; `load` brings both back.

  Args:
    directory: of the checkpoint; one that is there is replaced when the new
      one is complete.
    network: or an `Experiment`, for the network of its last stage.
    variables: of the network.
    **meta: further JSON values.

  >>> import tempfile
  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> network = fs.to_spiking(fs.build('small_resnet8', bits=2))
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> with tempfile.TemporaryDirectory() as directory:
  ...   fs.save(directory, network, variables)
  ...   fs.load(directory)[0].neuron.steps
  3
  """
  if isinstance(network, Experiment):
    meta = {'experiment': dataclasses.asdict(network), **meta}
    bits = network.stages[-1].bits
    network = network_of(network, bits, open_data(network))
  networks.save(directory, network, variables, **meta)


def experiment_of(workdir) -> Experiment:
  """The experiment that train.py ran in this workdir.

  Raises:
    UserError: nothing was trained there.
  """
  for directory in sorted(pathlib.Path(workdir).glob('ann*')):
    if not store.exists(directory):
      continue  # cut while it was written
    meta = store.read_meta(directory)
    if 'experiment' in meta:  # else saved by hand
      return from_dict(meta['experiment'])
  raise UserError(
    f'--workdir {workdir}: it holds no trained network (ann4, ann3, ann2); run '
    'train.py with the same --workdir first'
  )


def trained_bits(workdir, asked: tuple[int, ...] = ()) -> tuple[int, ...]:
  """Bit widths to convert: those asked for, or all that were trained.

  Raises:
    UserError: one asked for was not trained, or none was.
  """
  trained = [b for b in BITS if store.exists(workdir / f'ann{b}')]
  asked = asked or tuple(b for b in trained if b < 32)
  if not asked:
    raise UserError(
      f'--workdir {workdir}: it holds the float network only; train.py has to '
      'train a stage of 5 to 2 bits'
    )
  for bits in asked:
    if bits not in trained:
      raise UserError(
        f'--bits {bits}: {workdir}/ann{bits} holds no checkpoint; trained are '
        + ', '.join(f'ann{b}' for b in trained)
      )
  return asked


def identity_of(config: Experiment, stage: Stage, dataset: Dataset) -> dict:
  """What makes a stage this one: settings that its result depends on."""
  settings = dataclasses.asdict(config)
  for name in ('convert', 'pretrained', 'save_minutes', 'save_steps'):
    del settings[name]
  for name in ('path', 'eval_batch', 'workers'):
    del settings['data'][name]
  shape = () if config.data.stream else dataset.train.shape
  settings['images'] = [len(dataset.train), *shape, len(dataset.classes)]
  upto = config.stages[: config.stages.index(stage) + 1]
  settings['stages'] = {
    f'{done.bits} bits': dataclasses.asdict(done) for done in upto
  }
  return json.loads(json.dumps(settings))  # tuples as JSON gives them back


def from_dict(tree: dict[str, Any]) -> Experiment:
  """The inverse of `asdict`; settings that came later have their defaults."""

  def tuples(part):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}

  try:
    return Experiment(
      **{
        **tree,
        'data': Data(**tuples(tree['data'])),
        'stages': tuple(Stage(**tuples(stage)) for stage in tree['stages']),
        'convert': Conversion(**tuples(tree['convert'])),
        'compute': Compute(**tree.get('compute', {})),
      }
    )
  except (KeyError, TypeError, UserError) as error:
    raise UserError(
      f'the experiment in this checkpoint does not fit this version ({error}); '
      'load it with the version that wrote it'
    ) from error


def flat(
  config: Experiment,
  conversion: Conversion,
  imported: dict[str, str] | None = None,
) -> dict[str, Any]:
  """Settings as one level of names, for the report; paths are left out.

  Those of the training too, unless the network was imported from a file.
  """
  tree = dataclasses.asdict(dataclasses.replace(config, convert=conversion))
  result = {}
  if imported:
    tree = {name: tree[name] for name in ('model', 'data', 'convert', 'seed')}
    result['imported from'] = imported['file']
  for name, value in tree.items():
    if name == 'stages':
      for stage in value:
        words = [f'{k} {v}' for k, v in stage.items() if k != 'bits']
        result[f'stage {stage["bits"]} bits'] = ', '.join(words)
    elif isinstance(value, dict):
      value = {k: v for k, v in value.items() if not k.endswith('path')}
      result |= {f'{name}.{k}': v for k, v in value.items()}
    else:
      result[name] = value
  return result
