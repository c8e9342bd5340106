"""Conversion of a workdir: spiking networks, tuned, judged and reported."""

import dataclasses
import functools
import math
import warnings

import jax
import numpy as np

from fastsnn_jax import distributed, tasks
from fastsnn_jax.checkpoint import networks, store
from fastsnn_jax.conversion.finetune import Tuning, finetune
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.errors import DivergesWarning, UserError
from fastsnn_jax.evaluation.compare import compare
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Conversion
from fastsnn_jax.experiment.finished.explaining import Explained
from fastsnn_jax.experiment.given import check as check_given
from fastsnn_jax.experiment.lock import locked
from fastsnn_jax.experiment.train import measure, tell
from fastsnn_jax.nn.folded.fold import ready
from fastsnn_jax.report import pages
from fastsnn_jax.training.log import Bar, Log, say
from fastsnn_jax.version import __version__

TUNE_BYTES = 2 * 10**9  # of tuning images, in memory and on each device
_EXAMPLES, _NEURONS = 3, 48  # images in a report, neurons of a layer's raster


def convert(
  workdir,
  settings: Conversion | None = None,
  *,
  data=None,
  model=None,
  **overrides,
) -> dict:
  """Converts, judges, fine-tunes and reports each bit width of a workdir.

  Args:
    workdir: in which `train` ran; gets snn4, … and report/.
    settings: those of the experiment if not given.
    data: data of your own, the same as `train` was given.
    model: the same as `train` was given, where it was.
    **overrides: fields of `Conversion`, such as bits=(2,).

  Returns:
    What report/results.json holds.

  UserError if a stage asked for was not trained, or is of another network.
  """
  workdir = files.at(workdir)
  experiment = files.experiment_of(workdir)
  settings = dataclasses.replace(settings or experiment.convert, **overrides)
  config = dataclasses.replace(experiment, data=settings.of(experiment.data))
  widths = files.trained_bits(workdir, settings.bits)
  settings = dataclasses.replace(settings, bits=widths)
  given = None
  if model is not None:
    given = check_given(model, experiment)
  elif any('function' in meta for meta in files.metas(workdir)):
    raise UserError(
      f'--workdir {workdir}: it holds a network of a function, which is no '
      'part of the file; give it again, fs.convert(workdir, model=…)'
    )
  dataset = files.open_data(config, data, given)
  with locked(workdir):
    return _convert(workdir, experiment, config, settings, dataset, given)


def _convert(workdir, experiment, config, settings, dataset, given):
  # All of them first: hours may lie between the first and the last.
  widths = settings.bits
  load = given.load if given else networks.load_with_meta
  trained = {
    bits: _load(load, workdir, bits, dataset, settings) for bits in widths
  }
  report = workdir / 'report'
  pages.check(report)
  batch, measured = config.data.eval_batch, None
  held_out = functools.partial(_held_out, config, dataset)
  explained = Explained(dataset.test, held_out, batch)
  if floating := _float_network(workdir):
    measured = measure(*floating, dataset.test, batch, 'test')[1]
    if settings.explain:
      explained.add_float(*floating)
  tuning_images = None
  if settings.schedules:
    tuning_images = _tuning_images(dataset.train, config, settings)
  rows, records, rasters, examples, kept = [], [], {}, {}, {}
  for bits, (ann, variables, task, _) in trained.items():
    made, judged, tuned = convert_network(
      ann, variables, task, dataset.test, tuning_images, config, settings
    )
    tell('test', dataset.test)
    rows, records = rows + judged, records + tuned
    name = list(made)[-1] if settings.keep == 'last' else settings.keep
    what = 'fine-tuning of the signed ' if name in settings.tune else ''
    say(f'snn{bits} holds the {name} {what}network (--keep takes another)')
    network, weights = made[name]
    kept[bits] = network, jax.device_get(weights)
    if settings.explain:
      explained.add(ann, variables, network, weights, task, name)
    if distributed.first():
      title, few = f'{bits} bits', min(_EXAMPLES, len(dataset.test))
      batch = next(dataset.test.batches(few, shared=False))
      rasters[title] = _raster(network, weights, task, batch)
      if (pictures := task.pictures(batch)) is not None:
        examples[title] = {
          'image': batch['image'],
          **pictures,
          'ann': _answer(ann, variables, task, batch),
          'snn': _answer(network, weights, task, batch),
        }
  network, _, task, meta = trained[widths[-1]]
  results = {
    'model': config.model,
    'dataset': dataset.name,
    'task': network.task,
    'metric': task.metric,
    'classes': list(network.classes),
    'images': rows[0]['images'],
    f'float_{task.metric}': measured,
    'rows': rows,
    'tuning': records,
    **explained.results,
    'training': Log(workdir).curves(),
    'settings': files.flat(config, settings, meta.get('imported')),
    'version': __version__,
  }

  def save():
    about = {'dataset': dataset.name}
    about['experiment'] = dataclasses.asdict(experiment)
    about['conversion'] = dataclasses.asdict(settings)
    for bits, (network, weights) in kept.items():
      networks.save(workdir / f'snn{bits}', network, weights, **about)
    if explained.counts:
      explained.save(report)

  if distributed.first():
    for problem in pages.write(report, results, rasters, examples, save):
      say(problem)
  else:
    save()  # all processes write a checkpoint
  return results


def convert_network(
  ann, variables, task, test, tuning_images, config, settings
):
  """Converts in every mode, judges, fine-tunes the signed one, judges again.

  `ann`, `variables` and `task` are the quantised network and what it is for,
  `test` is the split that is judged, `tuning_images` are in memory, or None for
  no fine-tuning, `config` and `settings` are `Experiment` and `Conversion`.

  Returns ({mode or schedule: (spiking network, variables)}, a row for each as
  in results.json, the records of `finetune`). UserError if a threshold is not
  positive, or if there are too few images to tune with.
  """
  bits = ann.neuron.bits
  for name, theta in ann.thetas(variables).items():
    if not (theta := float(np.min(theta))) > 0:
      raise UserError(
        f'layer {name!r}: theta={theta:.3g}, but no neuron has a '
        'threshold that is not positive; train the stage again with a smaller '
        'learning rate'
      )
  levels = 2**bits - 1
  steps = settings.steps or levels
  if steps != levels and 'settled' in settings.mode:
    say(
      f'--steps {steps}: settled equals the quantised network of '
      f'{bits} bits at {levels} steps only, for that many levels it has'
    )
  batch, made, rows, records = config.data.eval_batch, {}, [], []

  def judge(spiking, tuned):
    calls = test.steps(distributed.even(batch))
    with Bar(f'{bits} bits: judging {", ".join(spiking)}', calls) as bar:
      options = {'task': task, 'batch': batch, 'advance': bar.advance}
      with warnings.catch_warnings():
        warnings.simplefilter('ignore', DivergesWarning)  # said below
        judged = compare(ann, variables, spiking, test, **options)
    for mode, row in judged.items():
      rows.append({'bits': bits, 'mode': mode, 'tuned': tuned, **row})
      say(
        f'{bits} bits, {mode}, tuning {tuned}: {task.metric} '
        f'{row[task.metric]:.4f} (ANN {row["ann_" + task.metric]:.4f}), '
        f'agreement {row["agreement"]:.4f}'
      )
      if row.get('warning'):
        say(f'warning: {bits} bits, {mode}: {row["warning"]}')
      if row.get('not_quiet'):
        say(
          f'{bits} bits, {mode}: {row["not_quiet"]} of {row["images"]} '
          f'images still fired in the last of {row["steps"]} steps; '
          '--settle auto gives them the steps that they need'
        )

  for mode in settings.mode:
    settle = {'settle': settings.settle} if mode == 'settled' else {}
    made[mode] = to_spiking(ann, mode, steps=steps, **settle), variables
  judge(made, 'none')
  signed = to_spiking(ann, 'signed', steps=steps)
  for schedule in settings.schedules:
    tuning = Tuning(
      schedule=schedule,
      epochs=1 if schedule == 'bias' else settings.tune_epochs,
      learning_rate=settings.tune_learning_rate,
      weight_decay=settings.tune_weight_decay,
      batch=distributed.even(config.data.batch),
      batch_norm=settings.batch_norm,
      accept=settings.accept,
      crop=task.shift(config.data),
      flip=config.data.flip,
    )
    groups = 1 if schedule == 'parallel' else len(ann.firing) - 1
    title = f'{bits} bits: {schedule} fine-tuning'
    with Bar(title, groups * tuning.epochs) as bar:
      tuned, done = finetune(
        *(ann, signed, variables, tuning_images, tuning),
        task=task,
        seed=config.seed,
        batch=batch,
        on_layer=lambda record, bar=bar: bar.advance(note=record['layer']),
      )
    records += [{'bits': bits, **record} for record in done]
    made[schedule] = signed, tuned
    judge({'signed': made[schedule]}, schedule)
  return made, rows, records


def _load(load, workdir, bits, dataset, settings):
  """(network, variables, task, metadata), if they are of this data set."""
  directory = workdir / f'ann{bits}'
  ann, variables, meta = load(directory)
  if (ann.neuron.bits, meta.get('dataset')) != (bits, dataset.name):
    raise UserError(
      f'{directory}: a network of {ann.neuron.bits} bits, trained on '
      f'{meta.get("dataset")}, but {bits} bits on {dataset.name} are asked '
      'for; give another --workdir'
    )
  if ann.classes != tuple(dataset.classes):
    raise UserError(
      f'{directory} was trained on the classes {", ".join(ann.classes)}, but '
      f'the data have {", ".join(dataset.classes)}; give data of the same, in '
      'their order'
    )
  task = tasks.for_network(ann, **({'coco': True} if settings.coco else {}))
  task.check(dataset)
  return ann, variables, task, meta


def _tuning_images(split, config, settings):
  """Training images in memory: fine-tuning goes over them again and again."""
  fit = max(TUNE_BYTES // math.prod(split.shape), 1)
  if settings.tune_images is None and fit < len(split):
    say(
      f'fine-tuning takes {fit} of {len(split)} training images, '
      f'{TUNE_BYTES / 1e9:.0f} GB; --tune-images N takes another number'
    )
  split = split.some(settings.tune_images or fit, config.seed)
  images = split.in_memory()
  if (batch := distributed.even(config.data.batch)) > len(images):
    raise UserError(
      f'--tune-batch {batch}: fine-tuning has {len(images)} images; give a '
      'smaller one, or more --tune-images'
    )
  tell('fine-tuning', split, own=False)
  return images


def _held_out(config, dataset):
  """Images that chose the epoch, or would have."""
  if dataset.validation is not None:
    return dataset.validation
  return dataset.train.split(config.data.held_out, config.seed)[1]


def _float_network(workdir):
  """(network, variables) if they were trained, else None."""
  if not store.exists(workdir / 'ann32'):
    return None
  try:
    return networks.load(workdir / 'ann32')
  except UserError as error:  # the others do not need it
    say(f'the report goes without the float network: {error}')
    return None


def _answer(network, variables, task, batch):
  output, _ = _run(network, variables, task, batch['image'])
  return jax.device_get(task.predict(output))


def _raster(network, variables, task, batch) -> dict:
  """Spikes of some evenly spaced neurons of each layer, for one raw image."""
  image = batch['image'][:1]
  if network.until_quiet:  # once more, with the trains of all those steps
    settle = jax.jit(lambda v, x: network.settle(v, task.present(x)).steps)
    (steps,) = jax.device_get(settle(jax.device_get(variables), image))
    late = max(int(steps) - network.neuron.steps, 0)
    neuron = dataclasses.replace(network.neuron, settle=late)
    network = dataclasses.replace(network, neuron=neuron)
  _, activations = _run(network, variables, task, image)
  # In the table's order: jit gives dicts back sorted by name.
  names, spikes = [layer.name for layer in network.firing], []
  for name in names:
    flat = np.sign(np.asarray(activations[name][0])).astype(np.int8)
    flat = flat.reshape(len(flat), -1)
    some = np.linspace(0, flat.shape[1] - 1, min(_NEURONS, flat.shape[1]))
    spikes.append(flat[:, some.astype(int)])
  image, steps = batch['image'][0], network.neuron.steps
  return {'layers': names, 'spikes': spikes, 'image': image, 'T': steps}


def _run(network, variables, task, images):
  """Output and activations; on this process alone, whoever else has them."""
  network, variables = ready(network, variables)
  run = jax.jit(lambda v, x: network.apply(v, task.present(x)))
  return run(jax.device_get(variables), images)
