"""The main job: train at falling precision, convert, repair, judge, report.

`train` and `convert` are what train.py and convert.py call. `stages` does the
work of one stage, `judging` that of one bit width.
"""

import contextlib
import dataclasses
import pathlib

from fastsnn_jax import distributed as devices
from fastsnn_jax import tasks
from fastsnn_jax.architectures import BITS, task_of
from fastsnn_jax.checkpoint import store as checkpoint
from fastsnn_jax.checkpoint.networks import load, load_with_meta, save
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation import batches as batching
from fastsnn_jax.evaluation import evaluate as evaluation
from fastsnn_jax.experiment import judging, preparing, stages
from fastsnn_jax.experiment.config import Conversion, Experiment
from fastsnn_jax.experiment.config_trees import flat, from_dict, to_dict
from fastsnn_jax.experiment.opening import network_of, open_data
from fastsnn_jax.report import pages as report
from fastsnn_jax.tasks.detection import coco_metrics
from fastsnn_jax.training.log import Log, say, signals
from fastsnn_jax.training.loop import check_identity
from fastsnn_jax.version import __version__


def train(
  config: Experiment, workdir, *, profile: bool = False
) -> dict[str, float]:
  """Runs the stages not done yet, each from the best of the one before.

  Args:
    config: the experiment.
    workdir: gets ann32, ann4, …, metrics.jsonl and tensorboard. A run that was
      cut goes on from its last save.
    profile: write a trace of some steps of the first stage that is trained,
      for TensorBoard or Perfetto, into workdir/profile.

  Returns:
    {'ann32': metric on the test images, …}; they are looked at once, here.

  Raises:
    UserError: the workdir is of another experiment, the data are missing, or
      the loss is not finite.
    SystemExit: SIGTERM or SIGINT; all is saved.
  """
  workdir = pathlib.Path(workdir)
  if workdir.is_file():
    raise UserError(f'--workdir {workdir}: it is a file; name a directory')
  dataset = open_data(config.model, config.data)
  for note in dataset.notes:
    say(f'{dataset.name}: {note}')
  variables, networks = None, {}
  trace = workdir / 'profile' if profile else None
  with signals() as asked, contextlib.closing(Log(workdir)) as log:
    for stage in config.stages:
      name = f'ann{stage.bits}'
      identity = stages.identity_of(config, stage, dataset)
      done = checkpoint.exists(workdir / name)
      devices.check_shared(workdir, done)
      if done:
        network, variables, meta = load_with_meta(workdir / name)
        check_identity(workdir / name, identity, meta.get('identity', {}))
        say(f'{name}: trained already')
      else:
        network = network_of(config.model, stage.bits, config.data, dataset)
        variables = stages.train_stage(
          config, stage, network, variables, dataset, workdir, log, asked, trace
        )
        trace = None
      networks[name] = network, variables
  results = {}
  test = stages.judged_part(
    dataset.test, config.model, config.data, dataset.mean
  )
  for name, (network, variables) in networks.items():
    metric, results[name] = _measured(network, variables, test, config)
    stages.tell_skipped('test', test)
    say(f'{name}: {metric} {results[name]:.4f} on the test images')
  return results


def experiment_of(workdir) -> Experiment:
  """The experiment that train.py ran in this workdir.

  Raises:
    UserError: nothing was trained there.
  """
  for directory in sorted(pathlib.Path(workdir).glob('ann*')):
    if not checkpoint.exists(directory):
      continue  # cut while it was written
    _, _, meta = load_with_meta(directory)
    if 'experiment' in meta:  # else saved by hand
      return from_dict(meta['experiment'])
  raise UserError(
    f'--workdir {workdir}: it holds no trained network (ann4, ann3, ann2); run '
    'train.py with the same --workdir first'
  )


def convert(workdir, settings: Conversion | None = None, **overrides) -> dict:
  """Converts, judges, fine-tunes and reports each bit width of a workdir.

  Args:
    workdir: in which `train` ran; gets snn4, … and report/.
    settings: those of the experiment if not given.
    **overrides: fields of `Conversion`, such as bits=(2,).

  Returns:
    What report/results.json holds.

  Raises:
    UserError: a stage asked for was not trained, or is of another network.
  """
  workdir = pathlib.Path(workdir)
  trained = experiment_of(workdir)
  settings = dataclasses.replace(settings or trained.convert, **overrides)
  config = dataclasses.replace(trained, data=settings.of(trained.data))
  settings = dataclasses.replace(settings, bits=_bits(workdir, settings.bits))
  dataset = open_data(config.model, config.data)
  if settings.coco:
    _check_coco(config.model, dataset)
  if config.data.stream:
    dataset = preparing.in_reach(dataset, config, settings)
  rows, tuning, rasters, examples = [], [], {}, {}
  for bits in settings.bits:
    ann, variables, meta = load_with_meta(workdir / f'ann{bits}')
    if (ann.bits, meta.get('dataset')) != (bits, dataset.name):
      raise UserError(
        f'{workdir}/ann{bits}: a network of {ann.bits} bits, trained on '
        f'{meta.get("dataset")}, but {bits} bits on {dataset.name} are asked '
        'for; give another --workdir'
      )
    if ann.classes != tuple(dataset.classes):
      raise UserError(
        f'{workdir}/ann{bits} was trained on the classes '
        f'{", ".join(ann.classes)}, but the data have '
        f'{", ".join(dataset.classes)}; give data of the same, in their order'
      )
    judged = judging.convert_network(
      ann,
      variables,
      dataset,
      modes=settings.mode,
      steps=settings.steps,
      settle=settings.settle,
      tunings=preparing.tunings(config, settings),
      tune_images=settings.tune_images,
      batch=config.data.eval_batch,
      seed=config.seed,
      keep=settings.keep,
      mesh=stages.mesh(),
      **({'coco': True} if settings.coco else {}),
    )
    stages.tell_skipped('test', dataset.test)
    rows += judged.rows
    tuning += judged.tuning
    snn, tuned = judged.chosen
    save(
      workdir / f'snn{bits}',
      snn,
      tuned,
      dataset=dataset.name,
      experiment=to_dict(trained),
      conversion=dataclasses.asdict(settings),
    )
    if devices.first():
      image = batching.first_image(dataset.test)
      rasters[f'{bits} bits'] = judging.raster(snn, tuned, image)
      if ann.task != 'classification':
        examples[f'{bits} bits'] = judging.examples(
          ann, variables, snn, tuned, dataset.test
        )
  metric = tasks.for_network(ann).metric
  results = {
    'model': config.model,
    'dataset': dataset.name,
    'task': ann.task,
    'metric': metric,
    'classes': list(ann.classes),
    'images': rows[0]['images'],
    f'float_{metric}': _float_metric(workdir, dataset, config),
    'rows': rows,
    'tuning': tuning,
    'training': Log(workdir).curves(),
    'settings': flat(config, settings, meta.get('imported')),
    'version': __version__,
  }
  if devices.first():
    report.write(workdir / 'report', results, rasters, examples)
  return results


def _bits(workdir, asked) -> tuple[int, ...]:
  """Bit widths to convert: those asked for, or all that were trained."""
  there = [b for b in BITS if checkpoint.exists(workdir / f'ann{b}')]
  asked = asked or tuple(b for b in there if b < 32)
  if not asked:
    raise UserError(
      f'--workdir {workdir}: it holds the float network only; train.py has to '
      'train a stage of 5 to 2 bits'
    )
  for bits in set(asked).difference(there):
    raise UserError(
      f'--bits {bits}: {workdir}/ann{bits} holds no checkpoint; trained are '
      + ', '.join(f'ann{b}' for b in there)
    )
  return asked


def _check_coco(model, dataset):
  """Before hours of work: what COCO's numbers take."""
  if task_of(model) != 'detection':
    raise UserError(f'--coco: {model} is no detector; leave it out')
  coco_metrics.tools()
  if isinstance(dataset.test, dict) and 'size' not in dataset.test:
    raise UserError(
      f'--coco: {dataset.name} has no pictures with a size of their own, by '
      "which COCO's numbers are sorted; leave it out"
    )


def _float_metric(workdir, dataset, config):
  """The float network's metric on the test images, if it was trained."""
  if not checkpoint.exists(workdir / 'ann32'):
    return None
  return _measured(*load(workdir / 'ann32'), dataset.test, config)[1]


def _measured(network, variables, test, config):
  """(name of the task's metric, its value)."""
  metric = tasks.for_network(network).metric
  on = {'batch': config.data.eval_batch, 'mesh': stages.mesh()}
  return metric, evaluation.evaluate(network, variables, test, **on)[metric]
