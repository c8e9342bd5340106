"""An official PyTorch checkpoint as a quantised network of a workdir."""

import dataclasses
import pathlib

import jax

from fastsnn_jax.checkpoint import networks
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import recipes
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Stage
from fastsnn_jax.experiment.lock import locked
from fastsnn_jax.torch_interop.state_dict import load_torch


def adopt(
  path, model, bits, workdir, *, data_name=None, data_path=None, size=None
) -> None:
  """Puts an official checkpoint where `fs.convert` looks for networks.

  It becomes WORKDIR/ann2 (3, 4), as if trained here; several bit widths of one
  model may share a workdir.

  Args:
    path, model, bits: as for `fs.load_torch`.
    workdir: gets the network.
    data_name: of the data set that it was trained on; if not given cifar10,
      imagenet2012 or voc, after the model.
    data_path: where the data set is.
    size: side of the images, if not the recipe's.

  UserError for a checkpoint of something else, data without as many classes, or
  a workdir that holds a network of another origin.
  """
  workdir = files.at(workdir)
  recipe = recipes.recommended(model)
  variables = load_torch(path, model, bits)
  name, size = data_name or recipe.data.name, size or recipe.data.size
  data = dataclasses.replace(recipe.data, name=name, path=data_path, size=size)
  config = dataclasses.replace(recipe, stages=(Stage(bits),), data=data)
  dataset = files.open_data(config)
  network = files.network_of(config, bits, dataset)
  image = files.shown(network, dataset.test)
  needed = jax.eval_shape(network.init, jax.random.key(0), image)
  read = dict(jax.tree_util.tree_leaves_with_path(variables))
  for key, leaf in jax.tree_util.tree_leaves_with_path(needed):
    if leaf.shape != read[key].shape:
      raise UserError(
        f'{path}: {jax.tree_util.keystr(key, simple=True, separator="/")} has '
        f'shape {read[key].shape}, but {dataset.name} ({len(dataset.classes)} '
        f'classes, images {image.shape[1:]}) needs {leaf.shape}; name the data '
        'that it was trained on'
      )
  for meta in files.metas(workdir):
    held = meta.get('imported', {}).get('model')
    if (held, meta.get('dataset')) != (model, dataset.name):
      what = f'an imported {held}' if held else 'a network trained there'
      raise UserError(
        f'--workdir {workdir}: it holds {what} on {meta.get("dataset")}; give '
        'an empty one'
      )
  origin = {'file': pathlib.Path(path).name, 'model': model}
  meta = {'dataset': dataset.name, 'imported': origin}
  meta['experiment'] = dataclasses.asdict(config)
  with locked(workdir):
    networks.save(workdir / f'ann{bits}', network, variables, **meta)
