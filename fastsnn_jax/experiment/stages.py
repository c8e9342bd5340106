"""One stage of an experiment: its data, its recipe, its result on disk."""

import json
import shutil

import jax
import numpy as np

from fastsnn_jax import data, tasks
from fastsnn_jax import distributed as devices
from fastsnn_jax.architectures import task_of
from fastsnn_jax.checkpoint.networks import save
from fastsnn_jax.data import squares
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation import evaluate as evaluation
from fastsnn_jax.evaluation.batches import even
from fastsnn_jax.experiment.config_trees import to_dict
from fastsnn_jax.experiment.opening import side_of
from fastsnn_jax.tasks.segmentation import task as segmentation
from fastsnn_jax.torch_interop.imagenet_trunk import with_trunk
from fastsnn_jax.training import input as feeding
from fastsnn_jax.training import step as training
from fastsnn_jax.training.log import say
from fastsnn_jax.training.loop import run_stage

TRUNK = 'layer'  # how the names of a segmenter's trunk begin


def mesh():
  """Over all devices, or None where there is one: nothing to share out."""
  return devices.mesh() if jax.device_count() > 1 else None


def judged_part(part, model, settings, mean, *, shared=True):
  """Arrays as they are, or a loader of a stream's split, for evaluation.

  Args:
    part: of a data set.
    model: its name.
    settings: `config.Data`.
    mean: of the data set.
    shared: among the processes; otherwise each loads all of it.
  """
  if not settings.stream:
    return part
  return data.Loader(
    part,
    batch=even(settings.eval_batch, mesh()),
    seed=0,
    **_reading(model, settings, False, mean),
    train=False,
    workers=settings.workers,
    process_index=jax.process_index() if shared else 0,
    process_count=jax.process_count() if shared else 1,
  )


def tell_skipped(what: str, part, *, own: bool = True) -> None:
  """A line on pictures of a loader that cannot be decoded, each told once.

  Args:
    what: they are for.
    part: as from `judged_part`.
    own: each process has pictures of its own.
  """
  if isinstance(part, data.Loader):
    for line in part.complaints():
      say(f'{what}: {line}', own=own)


def identity_of(config, stage, dataset) -> dict:
  """What makes a stage this one: settings that its result depends on."""
  settings = to_dict(config)
  for name in ('convert', 'pretrained', 'save_minutes', 'save_steps'):
    del settings[name]
  for name in ('path', 'eval_batch', 'workers'):
    del settings['data'][name]
  images = [len(dataset.train)]
  if not config.data.stream:
    images = dataset.train['image'].shape
  settings['images'] = [*images, len(dataset.classes)]
  upto = config.stages.index(stage) + 1
  settings['stages'] = {
    f'{s["bits"]} bits': s for s in settings['stages'][:upto]
  }
  return json.loads(json.dumps(settings))  # tuples as JSON gives them back


def train_stage(
  config, stage, network, previous, dataset, workdir, log, asked, trace
):
  """Variables of the stage's best epoch, on disk when this returns.

  Args:
    config, stage: the experiment, and which of its stages.
    network: of the stage.
    previous: variables of the stage before, or None.
    dataset: as from `open_data`.
    workdir: gets the result, and saves on the way.
    log: gets a row per epoch.
    asked: see `run_stage`.
    trace: directory for a trace of some steps, or None.

  Raises:
    UserError: settings that the data or the devices do not allow.
    SystemExit: a signal asked to end; all is saved.
  """
  name, on = f'ann{stage.bits}', mesh()
  task = _task(network, config, dataset)
  fitting, held_out = _parts(config, dataset)
  key = jax.random.fold_in(jax.random.key(config.seed), stage.bits)
  init_key, run_key = jax.random.split(key)
  if config.data.stream:
    loader = _training_loader(config, fitting, dataset.mean)
    shape, epoch_steps = loader.shape, loader.epoch_steps
  else:
    shape = fitting['image'].shape[1:]
    epoch_steps = -(-len(fitting['image']) // config.data.batch)
  recipe = _recipe(config, stage, epoch_steps, on)
  static = {'network': network, 'task': task, 'recipe': recipe}
  if config.data.stream:
    feed = feeding.Streaming(loader, run_key, **static)
  else:
    feed = feeding.Resident(fitting, run_key, **static)
  image = jax.ShapeDtypeStruct((1, *shape), 'float32')
  variables = network.init(init_key, image)
  if previous is not None:
    only = '' if config.inherit == 'all' else TRUNK
    variables = training.graft(variables, previous, only=only)
  elif config.pretrained:
    variables = with_trunk(variables, network, config.pretrained)
  judged_images = judged_part(held_out, config.model, config.data, dataset.mean)

  def score(variables, epoch):
    judged = evaluation.evaluate(
      network,
      variables,
      judged_images,
      batch=config.data.eval_batch,
      mesh=on,
    )
    tell_skipped(f'{name}, validation', judged_images)
    last = config.select == 'last'
    return {**judged, 'score': epoch if last else judged[task.metric]}

  identity = identity_of(config, stage, dataset)
  unfinished = workdir / 'unfinished' / name
  best, reached = run_stage(
    name,
    network,
    variables,
    feed,
    task=task,
    recipe=recipe,
    score=score,
    log=log,
    directory=unfinished,
    identity=identity,
    save_seconds=60 * config.save_minutes,
    save_steps=config.save_steps,
    asked=asked,
    trace=trace,
  )
  best = jax.device_get(best)  # one copy, wherever they were
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
  if devices.first():
    shutil.rmtree(unfinished, ignore_errors=True)
  return best


def _task(network, config, dataset):
  """With what changes the loss only; refused where the task has no such."""
  settings = {}
  if config.smoothing:
    settings['smoothing'] = config.smoothing
  if config.balance:
    if config.data.stream or network.task != 'segmentation':
      raise UserError(
        f'balance={config.balance}: it takes the masks of a segmenter, in '
        'memory; leave it out, or data.stream'
      )
    settings['weights'] = segmentation.balanced(
      dataset.train['label'], len(dataset.classes), config.balance
    )
  return tasks.for_network(network, **settings)


def _parts(config, dataset):
  """(what is trained on, what selects the epoch)."""
  fitting, judged = _two_parts(config, dataset)
  if config.data.stream:
    has_boxes = task_of(config.model) == 'detection'
    labels = judged.boxes()[1] if has_boxes else np.zeros(1)
  else:
    labels = judged['label']
  if config.select != 'last' and not np.any(labels >= 0):
    raise UserError(
      f'data.held_out={config.data.held_out}: none of the images that are to '
      'select an epoch has an object; choose a larger share'
    )
  return fitting, judged


def _two_parts(config, dataset):
  if config.select == 'test':  # as the reference does
    return dataset.train, dataset.test
  share, seed = config.data.held_out, config.seed
  if dataset.validation is not None:
    return dataset.train, dataset.validation
  if config.data.stream:
    return dataset.train.split(share, seed)
  return data.split(dataset.train, share, seed)


def _reading(model, settings, train, mean):
  """How a loader brings pictures to their size."""
  if task_of(model) == 'classification':
    crop = train and settings.size
    return {
      'size': settings.size,
      'crop': 'random_resized' if crop else 'none',
    }
  size = side_of(model, settings)
  if task_of(model) == 'segmentation':
    return {'size': size, 'crop': 'pad', 'fill': squares.fill_of(mean)}
  largest = max(size, *settings.sizes, 0) if train else size
  return {'size': largest, 'crop': 'squash'}


def _training_loader(config, source, mean):
  return data.Loader(
    source,
    batch=config.data.batch,
    seed=config.seed,
    **_reading(config.model, config.data, True, mean),
    train=True,
    workers=config.data.workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _recipe(config, stage, epoch_steps, on):
  if on is not None:
    devices.check_batch('data.batch', config.data.batch, on)
  parts = config.compute.accumulate * (on.size if on else 1)
  if config.data.batch % parts:
    raise UserError(
      f'data.batch={config.data.batch}, in {parts} parts (compute.accumulate '
      f'times devices), which all have one size; choose a multiple of {parts}'
    )
  cropped = config.data.size and task_of(config.model) == 'classification'
  return training.Recipe(
    steps=stage.epochs * epoch_steps,
    epoch_steps=epoch_steps,
    batch=config.data.batch,
    learning_rate=stage.learning_rate,
    schedule=stage.schedule,
    milestones=stage.milestones,
    momentum=config.momentum,
    weight_decay=stage.weight_decay,
    decay=config.decay,
    method=config.optimizer,
    warmup=round(config.warmup * epoch_steps),
    warmup_power=config.warmup_power,
    ema=config.ema,
    # Where the loader crops, it takes the place of this.
    crop=0 if cropped else config.data.crop,
    flip=config.data.flip,
    jitter=config.data.jitter,
    sides=config.data.sizes,
    dtype=config.compute.dtype,
    accumulate=config.compute.accumulate,
    remat=config.compute.remat,
    mesh=on,
    per_device=on is not None and config.compute.batch_stats == 'device',
  )
