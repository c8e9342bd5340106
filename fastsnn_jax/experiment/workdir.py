"""What an experiment has on disk, and how it is written down.

A workdir holds ann32, ann4, … (trained networks), snn4, … (spiking ones),
metrics.jsonl, tensorboard and report; while a stage runs, unfinished; and while
any command works there, lock.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import jax

from fastsnn_jax import architectures, data, distributed, tasks
from fastsnn_jax.architectures import BITS, build
from fastsnn_jax.checkpoint import networks, store
from fastsnn_jax.data import Dataset
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment.config import Conversion, Experiment, Stage
from fastsnn_jax.nn.network import Network

try:
  import fcntl
except ImportError:  # no POSIX: the name of the process in the lock has to do
  fcntl = None

_NO_FLOCK = errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS


def at(workdir) -> pathlib.Path:
  """A workdir's path; UserError where no directory can be."""
  name = os.fspath(workdir)
  if not schema.is_path(name):
    raise UserError(f'--workdir {name!r}: no directory can be there; name one')
  path = pathlib.Path(name).expanduser()
  if os.path.exists(path) and not os.path.isdir(path):
    raise UserError(f'--workdir {name}: it is a file; name a directory')
  return path


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Makes a workdir and keeps it from other commands until it is left.

  The first process of a launch holds WORKDIR/lock by `flock`, which ends with
  the process however that ends; so a lock that a kill left is none. Where the
  file system has no `flock`, the process that the file names has to be dead, on
  this host. UserError, in all processes of a launch, where another one works.
  """
  path, file, problem = workdir / 'lock', None, None
  try:
    if distributed.first():
      workdir.mkdir(parents=True, exist_ok=True)
      file = _lock(path)
  except UserError as error:
    problem = error
  except OSError as error:
    problem = UserError(
      f'--workdir {workdir}: it cannot be written to ({error.strerror}); make '
      'room, or name a directory that can be written to'
    )
  try:
    if distributed.any_of(problem is not None):
      raise problem or UserError(f'--workdir {workdir}: see the first process')
    yield
    if file is not None and not _is_at(path, file):
      raise UserError(
        f'--workdir {workdir}: it was removed or replaced while this command '
        'worked there, and what it wrote is lost; give the command again'
      )
  finally:
    if file is not None:
      with contextlib.suppress(OSError):
        if _is_at(path, file):
          path.unlink()  # before it is let go: nobody else has it
      os.close(file)


def _lock(path):
  """A descriptor of the file, which no other process has locked."""
  flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
  for _ in range(100):
    try:
      file, new = os.open(path, flags | os.O_EXCL, 0o644), True
    except FileExistsError:
      file, new = os.open(path, flags, 0o644), False
    try:
      held = os.read(file, 300).decode(errors='replace').strip()
      if held and not re.fullmatch(r'\d+ on .+', held):
        raise UserError(f'{path}: a file of another kind; give it another name')
      if not _take(file, held, new):
        who = f'process {held}' if held else 'another process'
        raise UserError(
          f'--workdir {path.parent}: {who} works there; wait for its end or '
          f'give another one ({path} can be removed where no process works)'
        )
      # Its last holder may have removed it since it was opened.
      if _is_at(path, file):
        os.ftruncate(file, 0)
        me = f'{os.getpid()} on {socket.gethostname()}\n'
        os.pwrite(file, me.encode(), 0)
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)
  raise UserError(f'--workdir {path.parent}: {path.name} changes all the time')


def _is_at(path, file):
  """Whether an open file still has this path."""
  try:
    return os.path.samestat(os.stat(path), os.fstat(file))
  except OSError:
    return False


def _take(file, held, new):
  """Locks an open file, unless a living process has it."""
  here = socket.gethostname()
  try:
    if fcntl is not None:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      return False
    if error.errno not in _NO_FLOCK:
      raise
  process, _, host = held.partition(' on ')
  if new or fcntl is None or host != here or not process.isdecimal():
    return new
  try:
    os.kill(int(process), 0)
  except ProcessLookupError:
    return True
  except (PermissionError, OverflowError):  # another user's, or no process
    pass
  return False


def open_data(config: Experiment, own=None) -> Dataset:
  """The data set of an experiment, or one's own as for `data.as_dataset`.

  UserError if there is none, or for settings that do not go with the task.
  """
  if own is not None:
    name = config.data.name  # the default's would stand for other images
    return data.as_dataset(own, 'own' if name == schema.Data.name else name)
  model = architectures.model(config.model)
  known = data.named.own(config.data.name, config.data.path)
  return known or tasks.named(model.task).open(config.data, model)


def network_of(config: Experiment, bits: int, dataset: Dataset) -> Network:
  """The network of a stage of an experiment, for this data set."""
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
