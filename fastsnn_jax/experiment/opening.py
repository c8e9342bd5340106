"""A model and its data: what is read, and the network that is made for it."""

from fastsnn_jax import data
from fastsnn_jax.architectures import build, input_size, stride_of, task_of
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection import anchors


def open_data(model, settings):
  """The data set that a model is trained on: in memory, or as a stream.

  Args:
    model: its name; it says what labels are needed.
    settings: `config.Data`.

  Raises:
    UserError: no such data, or settings that do not go with the model's task.
  """
  path, task = settings.path, task_of(model)
  _check(model, settings, task)
  if task == 'classification':
    if settings.sizes or (settings.size and not settings.stream):
      raise UserError(
        f'data.size={settings.size}, data.sizes={settings.sizes}: images to '
        'classify have the size that they have, unless they are streamed; '
        'leave both out, or set data.size and stream=True'
      )
    if settings.stream:
      return data.open_stream(settings.name, path, size=settings.size)
    return data.load(settings.name, path)
  if task == 'segmentation':
    from fastsnn_jax.tasks.segmentation import data as segmentation

    how = {
      'size': settings.size,
      'stride': stride_of(model),
      'crowd': settings.crowd,
    }
    if settings.stream:
      how['size'] = side_of(model, settings)
      return segmentation.open_stream(settings.name, path, **how)
    return segmentation.load(settings.name, path, **how)
  from fastsnn_jax.tasks.detection import data as detection

  if settings.stream:
    return detection.open_stream(settings.name, path)
  size = side_of(model, settings)
  return detection.load(
    settings.name, path, size=size, train_size=max(size, *settings.sizes, 0)
  )


def _check(model, settings, task):
  """Raises a UserError for settings that this model's images cannot have."""
  if settings.anchors and task != 'detection':
    raise UserError(
      f'data.anchors={settings.anchors}: {model} is no detector; leave it out'
    )
  if task == 'classification':
    return
  stride, more = stride_of(model), int(task == 'segmentation')
  for name in ('size', 'sizes'):
    value = getattr(settings, name)
    for side in value if name == 'sizes' else [value] * (value is not None):
      if (side - more) % stride or side < stride:
        raise UserError(
          f'data.{name}={value}: {model} takes sides that are multiples of '
          f'{stride}{" and 1 more" * more}; choose '
          f'{max(round((side - more) / stride), 1) * stride + more} for {side}'
        )
  if more and len(settings.sizes) > 1:
    raise UserError(
      f'data.sizes={settings.sizes}: crops of images with masks have one side; '
      'name one'
    )


def side_of(model, settings) -> int:
  """Of the square images that a network with boxes or masks is judged on."""
  return settings.size or input_size(model)


def network_of(model, bits, settings, dataset):
  """The network of a model for this data set.

  Args:
    model, bits: as for `build`.
    settings: `config.Data`.
    dataset: as from `open_data`.
  """
  static = {'mean': dataset.mean, 'std': dataset.std}
  task, side = task_of(model), side_of(model, settings)
  if task == 'segmentation' and not settings.stream:
    side = dataset.test['image'].shape[1]  # the least that fits, if not given
  if task != 'classification':
    static['size'] = side
  if settings.anchors:
    train = dataset.train
    boxes = (
      train.boxes() if settings.stream else (train['boxes'], train['label'])
    )
    cells = side // stride_of(model)
    static['anchors'] = anchors.fit(*boxes, settings.anchors, cells)
  return build(model, bits, dataset.classes, **static)
