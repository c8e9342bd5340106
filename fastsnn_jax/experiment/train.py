"""Training at falling precision: each stage starts from the one before."""

import contextlib
import dataclasses
import functools
import shutil

import jax

from fastsnn_jax import distributed, tasks
from fastsnn_jax.checkpoint import networks, store
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.data import Shuffle
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation.evaluate import evaluate
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Experiment
from fastsnn_jax.experiment.given import check as check_given
from fastsnn_jax.experiment.given import flat, unflat
from fastsnn_jax.experiment.lock import locked
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.torch_interop.imagenet_trunk import with_trunk
from fastsnn_jax.training.log import Log, say, signals
from fastsnn_jax.training.loop import Session, check_identity, run_stage
from fastsnn_jax.training.step import graft

TRUNK = 'layer'  # how the names of a segmenter's trunk begin


def train(
  config: Experiment, workdir, *, data=None, model=None, profile: bool = False
) -> dict[str, float]:
  """Runs the stages not done yet, each from the best of the one before.

  Args:
    config: the experiment.
    workdir: gets ann32, ann4, …, metrics.jsonl and tensorboard. A run that was
      cut goes on from its last save.
    data: data of your own in place of what `config.data` names: a `Dataset`, or
      {'train': …, 'test': …}; examples/own_arrays.py gives NumPy arrays.
    model: (network, variables) of `fs.from_function` or `fs.calibrate`, in
      place of what `config.model` names. Training starts from these variables,
      in the one stage that the experiment has; the function is differentiated
      as it is. `fs.convert` and `fs.load` need it again.
    profile: write a trace of some steps of the first stage that is trained,
      for TensorBoard or Perfetto, into workdir/profile.

  Returns:
    {'ann32': metric on the test images, …}; they are looked at once, here. A
    stage that is `spiking` has the metric of the spiking network.

  UserError if the workdir is of another experiment, the data are missing, or
  the loss is not finite; SystemExit after SIGTERM or SIGINT, with all saved.
  """
  workdir = files.at(workdir)
  given = None
  if model is not None:
    given = check_given(model, config)
    config = dataclasses.replace(config, model=given.name)
  load = given.load if given else networks.load_with_meta
  dataset = files.open_data(config, data, given)
  for note in dataset.notes:
    say(f'{dataset.name}: {note}')
  fitting, variables, trained = None, None, {}
  with contextlib.ExitStack() as run:
    run.enter_context(locked(workdir))
    asked = run.enter_context(signals())
    log = run.enter_context(contextlib.closing(Log(workdir)))
    trace = workdir / 'profile' if profile else None
    session = Session(workdir, log, asked, trace)
    for stage in config.stages:
      name = f'ann{stage.bits}'
      identity = files.identity_of(config, stage, dataset, given)
      done = store.exists(workdir / name)
      distributed.check_shared(workdir, done)
      if done:
        network, variables, meta = load(workdir / name)
        check_identity(workdir / name, identity, meta.get('identity', {}))
        say(f'{name}: trained already')
        _forget(workdir, name)  # if a kill came between the two
      else:
        if fitting is None:
          parts = config.compute.accumulate
          distributed.check_batch('data.batch', config.data.batch, parts)
          fitting, judged = held_out(config, dataset, given)
        network = files.network_of(config, stage.bits, dataset, given)
        task = tasks.for_network(network)
        twin = network  # of what is trained
        if given:
          twin, variables = flat(network, given.variables)
        else:
          start = _moving(network, stage)
          variables = initial(config, stage, start, fitting, variables)
        variables, score = run_stage(
          _moving(twin, stage),
          variables,
          task.for_training(
            dataset.train, smoothing=config.smoothing, balance=config.balance
          ),
          fitting,
          config,
          stage,
          score=functools.partial(_score, config, name, twin, judged),
          session=session,
          identity=identity,
        )
        variables = jax.device_get(variables)  # one copy, wherever they were
        variables = unflat(twin, variables) if given else variables
        by = 'epoch' if config.select == 'last' else task.metric
        meta = {'dataset': dataset.name, 'identity': identity}
        meta['selected'] = {'by': config.select, by: score}
        meta['experiment'] = dataclasses.asdict(config)
        networks.save(workdir / name, network, variables, **meta)
        _forget(workdir, name)
        session = session._replace(trace=None)
      trained[name] = _moving(network, stage), variables
  results, batch = {}, config.data.eval_batch
  for name, (network, variables) in trained.items():
    _, results[name] = measure(network, variables, dataset.test, batch, 'test')
    metric = tasks.for_network(network).metric
    say(f'{name}: {metric} {results[name]:.4f} on the test images')
  return results


def _forget(workdir, name):
  """Removes the saves of a stage that is done."""
  if distributed.first():
    shutil.rmtree(workdir / 'unfinished' / name, ignore_errors=True)


def held_out(config, dataset, given=None):
  """(what is trained on, what selects the epoch)."""
  if config.select == 'test':  # as the official code does
    parts = dataset.train, dataset.test
  elif dataset.validation is not None:
    parts = dataset.train, dataset.validation
  else:
    parts = dataset.train.split(config.data.held_out, config.seed)
  network = files.network_of(config, config.stages[0].bits, dataset, given)
  task = tasks.for_network(network)
  side, most = min(parts[0].shape[:2]), 2**31 - 1  # the counter has 32 bits
  if task.shift(config.data) >= side:
    raise UserError(
      f'data.crop={config.data.crop}: crops of images of side {side} would be '
      f'nothing but padding; give at most {side - 1}'
    )
  passes = max(config.warmup, *(stage.epochs for stage in config.stages))
  if (steps := passes * parts[0].steps(config.data.batch)) > most:
    raise UserError(
      f'stage.epochs, warmup: {passes} epochs are {steps:.0f} steps, but a '
      f'stage has at most {most}; give fewer epochs or a larger data.batch'
    )
  if config.select != 'last' and not task.labelled(parts[1]):
    name, remedy = (
      (f'select={config.select!r}', "choose 'held-out' or 'last'")
      if config.select == 'test'
      else ('data.validation', "label some, or choose select='last'")
      if dataset.validation is not None
      else (f'data.held_out={config.data.held_out}', 'choose a larger share')
    )
    raise UserError(
      f'{name}: none of the images that are to select an epoch has a label; '
      f'{remedy}'
    )
  return parts


def initial(config, stage, network, split, previous):
  """The variables that a stage starts from."""
  image = files.shown(network, split)
  variables = network.init(Shuffle(config.seed, stage.bits).init_key, image)
  if previous is not None:
    only = '' if config.inherit == 'all' else TRUNK
    return graft(variables, previous, only=only)
  if config.pretrained:
    return with_trunk(variables, network, config.pretrained)
  return variables


def _moving(network, stage):
  """The network that a stage trains: the one that is saved, or its twin."""
  return to_spiking(network) if stage.spiking else network


def _score(config, name, network, split, variables, epoch):
  """Metrics on the images that select the epoch, and their 'score'."""
  what, batch = f'{name}, validation', config.data.eval_batch
  scores, score = measure(network, variables, split, batch, what)
  return {**scores, 'score': epoch if config.select == 'last' else score}


def measure(network, variables, split, batch, what):
  """(all metrics on a split, the one that counts); tells what is damaged."""
  folded = ready(network, variables, known=False)  # compiled once for all
  scores = evaluate(*folded, split, batch=batch)
  tell(what, split)
  return scores, scores[tasks.for_network(network).metric]


def tell(what: str, split, *, own: bool = True) -> None:
  """A line on each picture for `what` that cannot be decoded, once.

  `own`: each process has read pictures of its own; otherwise all the same.
  """
  for line in split.complaints():
    say(f'{what}: {line}', own=own)
