"""An official PyTorch checkpoint as a quantised network of a workdir."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp

from fastsnn_jax import tasks
from fastsnn_jax.checkpoint import networks, store
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import recipes
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Stage
from fastsnn_jax.torch_interop.state_dict import load_torch


def adopt(
  path: str | os.PathLike,
  model: str,
  bits: int,
  workdir: str | os.PathLike,
  *,
  data_name: str | None = None,
  data_path: str | None = None,
  size: int | None = None,
) -> None:
  """Puts an official checkpoint where `fs.convert` looks for networks.

  It becomes WORKDIR/ann2 (3, 4), as if trained here; several bit widths of one
  model may share a workdir.

  Args:
    path: of the checkpoint; see `fs.load_torch`.
    model: one of `fs.models()`.
    bits: of the checkpoint, which does not say it.
    workdir: gets the network.
    data_name: of the data set that it was trained on; if not given cifar10,
      imagenet2012 or voc, after the model.
    data_path: of the data set; see `fs.data.load`.
    size: side of the images, if not the recipe's.

  Raises:
    UserError: a checkpoint of something else, data without as many classes, or
      a workdir that holds a network of another origin.
  """
  recipe = recipes.recommended(model)
  variables = load_torch(path, model, bits)
  config = dataclasses.replace(
    recipe,
    stages=(Stage(bits),),
    data=dataclasses.replace(
      recipe.data,
      name=data_name or recipe.data.name,
      path=data_path,
      size=size or recipe.data.size,
    ),
  )
  dataset = files.open_data(config)
  network = files.network_of(config, bits, dataset)
  raw = jax.ShapeDtypeStruct((1, *dataset.test.shape), jnp.uint8)
  image = jax.eval_shape(tasks.for_network(network).present, raw)
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
  for directory in pathlib.Path(workdir).glob('ann*'):
    if not store.exists(directory):
      continue
    meta = store.read_meta(directory)
    held = meta.get('imported', {}).get('model')
    if (held, meta.get('dataset')) != (model, dataset.name):
      what = f'an imported {held}' if held else 'a network trained there'
      raise UserError(
        f'--workdir {workdir}: it holds {what} on {meta.get("dataset")}; give '
        'an empty one'
      )
  networks.save(
    pathlib.Path(workdir) / f'ann{bits}',
    network,
    variables,
    dataset=dataset.name,
    imported={'file': pathlib.Path(path).name, 'model': model},
    experiment=dataclasses.asdict(config),
  )
