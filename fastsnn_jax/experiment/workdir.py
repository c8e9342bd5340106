"""What an experiment has on disk, and how it is written down.

A workdir holds ann32, ann4, … (trained networks), snn4, … (spiking ones),
metrics.jsonl, tensorboard and report; while a stage runs, unfinished; and while
any command works there, lock.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from fastsnn_jax import architectures, data, tasks
from fastsnn_jax.architectures import BITS, build
from fastsnn_jax.checkpoint import networks, store
from fastsnn_jax.data import Dataset
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment.config import Conversion, Experiment, Stage
from fastsnn_jax.experiment.given import Given
from fastsnn_jax.nn.network import Network


def at(workdir) -> pathlib.Path:
  """A workdir's path; UserError where no directory can be."""
  name = os.fspath(workdir)
  if not schema.is_path(name):
    raise UserError(f'--workdir {name!r}: no directory can be there; name one')
  path = pathlib.Path(name).expanduser()
  if os.path.exists(path) and not os.path.isdir(path):
    raise UserError(f'--workdir {name}: it is a file; name a directory')
  return path


def open_data(
  config: Experiment, own=None, given: Given | None = None
) -> Dataset:
  """The data set of an experiment, or one's own as for `data.as_dataset`.

  UserError if there is none, or for settings that do not go with the task.
  """
  if own is not None:
    name = config.data.name  # the default's would stand for other images
    return data.as_dataset(own, 'own' if name == schema.Data.name else name)
  model = given.network if given else architectures.model(config.model)
  known = data.named.own(config.data.name, config.data.path)
  return known or tasks.named(model.task).open(config.data, model)


def network_of(
  config: Experiment, bits: int, dataset: Dataset, given: Given | None = None
) -> Network:
  """The network of a stage of an experiment, for this data set."""
  if given:
    return given.network_for(config.data, dataset)
  model = architectures.model(config.model)
  fields = tasks.named(model.task).network_fields(config.data, model, dataset)
  return build(config.model, bits, dataset.classes, **fields)


def shown(network: Network, split) -> jax.ShapeDtypeStruct:
  """What the network is shown of one image of a split: shape and type."""
  raw = jax.ShapeDtypeStruct((1, *split.shape), 'uint8')
  return jax.eval_shape(tasks.for_network(network).present, raw)


def save(directory, network: Network | Experiment, variables, **meta) -> None:
  """Writes a network and its variables; `load` brings both back.

  Args:
    directory: an old checkpoint in it is replaced when the new is complete.
    network: or an `Experiment`, for the network of its last stage.
    variables: of the network.
    **meta: further JSON values.

  >>> import tempfile
  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> ann = fs.build('small_resnet8', bits=2, mean=(0.5,), std=(0.25,))
  >>> variables = ann.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> network = fs.to_spiking(ann)
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


def metas(workdir) -> Iterator[dict[str, Any]]:
  """Metadata of the trained networks, without any that was cut in writing."""
  return map(store.read_meta, _trained(workdir))


def _trained(workdir):
  paths = [pathlib.Path(workdir, f'ann{bits}') for bits in BITS]
  return sorted(filter(store.exists, paths))


def experiment_of(workdir) -> Experiment:
  """The experiment that train.py ran in this workdir; UserError if none."""
  problem = None
  for directory in _trained(at(workdir)):
    try:
      meta = store.read_meta(directory)
    except UserError as error:  # another one may do
      problem = error
      continue
    if 'experiment' in meta:  # else saved by hand
      return schema.from_dict(meta['experiment'])
  raise problem or UserError(
    f'--workdir {workdir}: it holds no trained network (ann4, ann3, ann2); run '
    'train.py with the same --workdir first'
  )


def trained_bits(workdir, asked: tuple[int, ...] = ()) -> tuple[int, ...]:
  """Bit widths to convert: those asked for, or all; UserError for others."""
  trained = [b for b in BITS if store.exists(workdir / f'ann{b}')]
  asked = asked or tuple(b for b in trained if b < 32)
  if not asked:
    raise UserError(
      f'--workdir {workdir}: it holds the float network only; train.py has to '
      'train a stage of 5 to 2 bits'
    )
  if missing := [bits for bits in asked if bits not in trained]:
    raise UserError(
      f'--bits {missing[0]}: {workdir}/ann{missing[0]} holds no checkpoint; '
      f'trained are {", ".join(f"ann{b}" for b in trained)}'
    )
  return asked


def identity_of(
  config: Experiment,
  stage: Stage,
  dataset: Dataset,
  given: Given | None = None,
) -> dict:
  """What makes a stage this one: settings that its result depends on."""
  settings = dataclasses.asdict(config)
  for name in ('convert', 'pretrained', 'save_minutes', 'save_steps'):
    del settings[name]
  for name in ('path', 'eval_batch', 'workers'):
    del settings['data'][name]
  shape = () if config.data.stream else dataset.train.shape
  settings['images'] = [len(dataset.train), *shape, len(dataset.classes)]
  if given:
    settings['function'] = given.identity()
  upto = config.stages[: config.stages.index(stage) + 1]
  settings['stages'] = {f'{s.bits} bits': dataclasses.asdict(s) for s in upto}
  return json.loads(json.dumps(settings))  # tuples as JSON gives them back


def flat(
  config: Experiment, conversion: Conversion, imported: dict[str, str] | None
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
