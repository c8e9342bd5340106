"""The main job: train at falling precision, convert, repair, judge, report.

`train` and `convert` are what train.py and convert.py call. Beside the command
lines and the storage, this is the library file that reads the configuration.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import jax

from fastsnn_jax import (
  checkpoint,
  data,
  evaluation,
  finetuning,
  judging,
  report,
  tasks,
  training,
)
from fastsnn_jax.config import Conversion, Experiment, flat, from_dict, to_dict
from fastsnn_jax.errors import UserError
from fastsnn_jax.models import build
from fastsnn_jax.progress import Log, say, signals
from fastsnn_jax.running import check_identity, run_stage
from fastsnn_jax.storage import load, load_with_meta, save
from fastsnn_jax.version import __version__


def train(config: Experiment, workdir) -> dict[str, float]:
  """Runs the stages not done yet, each from the best of the one before.

  Args:
    config: the experiment.
    workdir: gets ann32, ann4, …, metrics.jsonl and tensorboard. A run that was
      cut goes on from its last save.

  Returns:
    {'ann32': metric on the test images, …}; they are looked at once, here.

  Raises:
    UserError: the workdir is of another experiment, the data are missing, or
      the loss is not finite.
    SystemExit: SIGTERM or SIGINT; all is saved.
  """
  workdir = pathlib.Path(workdir)
  dataset = data.load(config.data.name, config.data.path)
  variables, networks = None, {}
  with signals() as asked, contextlib.closing(Log(workdir)) as log:
    for stage in config.stages:
      name = f'ann{stage.bits}'
      identity = _identity(config, stage, dataset)
      if checkpoint.exists(workdir / name):
        network, variables, meta = load_with_meta(workdir / name)
        check_identity(workdir / name, identity, meta.get('identity', {}))
      else:
        network = _build(config, stage, dataset)
        variables = _train_stage(
          config, stage, network, variables, dataset, workdir, log, asked
        )
      networks[name] = network, variables
  results = {}
  for name, (network, variables) in networks.items():
    metric = tasks.for_network(network).metric
    results[name] = evaluation.evaluate(
      network, variables, dataset.test, batch=config.data.eval_batch
    )[metric]
    say(f'{name}: {metric} {results[name]:.4f} on the test images')
  return results


def _build(config, stage, dataset):
  return build(
    config.model,
    stage.bits,
    dataset.classes,
    mean=dataset.mean,
    std=dataset.std,
  )


def _train_stage(
  config, stage, network, previous, dataset, workdir, log, asked
):
  """Variables of the stage's best epoch, on disk when this returns."""
  name = f'ann{stage.bits}'
  task = tasks.for_network(network)
  fitting, held_out = data.split(
    dataset.train, config.data.held_out, config.seed
  )
  if config.select == 'test':  # as the reference does
    fitting = dataset.train
  key = jax.random.fold_in(jax.random.key(config.seed), stage.bits)
  init_key, run_key = jax.random.split(key)
  variables = network.init(init_key, dataset.train['image'][:1])
  if previous is not None:
    variables = training.graft(variables, previous)
  epoch_steps = -(-len(fitting['image']) // config.data.batch)
  recipe = training.Recipe(
    steps=stage.epochs * epoch_steps,
    epoch_steps=epoch_steps,
    batch=config.data.batch,
    learning_rate=stage.learning_rate,
    schedule=stage.schedule,
    milestones=stage.milestones,
    momentum=config.momentum,
    weight_decay=stage.weight_decay,
    decay=config.decay,
    crop=config.data.crop,
    flip=config.data.flip,
  )

  def score(variables, epoch):
    judged = evaluation.evaluate(
      network,
      variables,
      dataset.test if config.select == 'test' else held_out,
      batch=config.data.eval_batch,
    )
    last = config.select == 'last'
    return {**judged, 'score': epoch if last else judged[task.metric]}

  identity = _identity(config, stage, dataset)
  unfinished = workdir / 'unfinished' / name
  best, reached = run_stage(
    name,
    network,
    variables,
    fitting,
    task=task,
    recipe=recipe,
    score=score,
    key=run_key,
    log=log,
    directory=unfinished,
    identity=identity,
    save_seconds=60 * config.save_minutes,
    asked=asked,
  )
  save(
    workdir / name,
    network,
    best,
    dataset=dataset.name,
    identity=identity,
    selected={
      'by': config.select,
      'epoch' if config.select == 'last' else task.metric: reached,
    },
    experiment=to_dict(config),
  )
  shutil.rmtree(unfinished, ignore_errors=True)
  return best


def _identity(config, stage, dataset):
  """What makes a stage this one: settings that its result depends on."""
  settings = to_dict(config)
  for name in ('convert', 'save_minutes'):
    del settings[name]
  del settings['data']['path'], settings['data']['eval_batch']
  settings['images'] = [*dataset.train['image'].shape, len(dataset.classes)]
  upto = config.stages.index(stage) + 1
  settings['stages'] = {
    f'{s["bits"]} bits': s for s in settings['stages'][:upto]
  }
  return json.loads(json.dumps(settings))  # tuples as JSON gives them back


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
  config = experiment_of(workdir)
  settings = dataclasses.replace(settings or config.convert, **overrides)
  for bits in settings.bits:
    if not checkpoint.exists(workdir / f'ann{bits}'):
      trained = ', '.join(sorted(p.name for p in workdir.glob('ann*')))
      raise UserError(
        f'--bits {bits}: {workdir}/ann{bits} holds no checkpoint; trained are '
        f'{trained}'
      )
  dataset = data.load(config.data.name, settings.data_path or config.data.path)
  rows, tuning, rasters = [], [], {}
  for bits in settings.bits:
    ann, variables, meta = load_with_meta(workdir / f'ann{bits}')
    if (ann.bits, meta.get('dataset')) != (bits, dataset.name):
      raise UserError(
        f'{workdir}/ann{bits}: a network of {ann.bits} bits, trained on '
        f'{meta.get("dataset")}, but {bits} bits on {dataset.name} are asked '
        'for; give another --workdir'
      )
    judged = judging.convert_network(
      ann,
      variables,
      dataset,
      modes=settings.mode,
      settle=settings.settle,
      tunings=_tunings(config, settings),
      tune_images=settings.tune_images,
      batch=config.data.eval_batch,
      seed=config.seed,
    )
    rows += judged.rows
    tuning += judged.tuning
    snn, tuned = judged.chosen
    save(
      workdir / f'snn{bits}',
      snn,
      tuned,
      dataset=dataset.name,
      experiment=to_dict(config),
      conversion=dataclasses.asdict(settings),
    )
    image = dataset.test['image'][0]
    rasters[f'{bits} bits'] = judging.raster(snn, tuned, image)
  results = {
    'model': config.model,
    'dataset': dataset.name,
    'task': ann.task,
    'metric': tasks.for_network(ann).metric,
    'images': len(dataset.test['image']),
    'float_accuracy': _float_metric(workdir, dataset, config),
    'rows': rows,
    'tuning': tuning,
    'training': Log(workdir).curves(),
    'settings': flat(config, settings, meta.get('imported')),
    'version': __version__,
  }
  report.write(workdir / 'report', results, rasters)
  return results


def _tunings(config, settings):
  """One `Tuning` per schedule asked for."""
  return tuple(
    finetuning.Tuning(
      schedule=schedule,
      epochs=settings.tune_epochs,
      learning_rate=settings.tune_learning_rate,
      weight_decay=settings.tune_weight_decay,
      batch=config.data.batch,
      batch_norm=settings.batch_norm,
      accept=settings.accept,
      crop=config.data.crop,
      flip=config.data.flip,
    )
    for schedule in settings.schedules
  )


def _float_metric(workdir, dataset, config):
  """The float network's metric on the test images, if it was trained."""
  if not checkpoint.exists(workdir / 'ann32'):
    return None
  network, variables = load(workdir / 'ann32')
  metrics = evaluation.evaluate(
    network, variables, dataset.test, batch=config.data.eval_batch
  )
  return metrics[tasks.for_network(network).metric]
