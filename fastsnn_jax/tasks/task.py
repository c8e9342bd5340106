"""What a problem asks of its data and of a network's output.

One trainer, evaluator, converter and fine-tuner serve every task. Batches are
dicts: 'image', the labels of the task, and 'mask', 1.0 where a row is real and
0.0 where it fills up the batch.
"""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import normalize
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.errors import PixelsWarning, UserError


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
  """Base of all tasks; a task of one's own is a frozen dataclass of this.

  It has to give `metric`, `loss`, `predict`, `measure` and `summarize`. Tasks
  are static arguments of compiled functions, so their fields have to be
  hashable; functions marked 'jit' are traced.

  Attributes:
    classes: how many there are.
    mean, std: per channel, of images in 0..1.
    size: side of the images that the network is shown; 0 for their own.
    metric: the name in `summarize` by which networks are compared.
    verb: the public function that answers raw images.
    labels: {a label that the data must have: its dimensions for one example}.

  A regression, for networks of one output:

  >>> import fastsnn_jax as fs, jax.numpy as jnp
  >>> @dataclasses.dataclass(frozen=True)
  ... class Regression(fs.Task):
  ...   metric = 'minus_error'  # the larger the better
  ...   def predict(self, outputs):
  ...     return outputs[:, 0]
  ...   def measure(self, predictions, batch):
  ...     errors = jnp.abs(predictions - batch['label']) * batch['mask']
  ...     return {'loss': errors.sum(), 'count': batch['mask'].sum()}
  ...   def loss(self, outputs, batch):
  ...     sums = self.measure(self.predict(outputs), batch)
  ...     return sums['loss'] / jnp.maximum(sums['count'], 1), sums
  ...   def summarize(self, sums, kept=None):
  ...     return {'minus_error': -float(sums['loss'] / sums['count'])}
  >>> task = Regression(classes=1, mean=(0.5,), std=(0.25,))
  >>> batch = {'label': jnp.array([1.0, 5.0]), 'mask': jnp.array([1.0, 0.0])}
  >>> task.summarize(task.loss(jnp.array([[3.0], [4.0]]), batch)[1])
  {'minus_error': -2.0}
  """

  classes: int
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  size: int = 0

  metric: ClassVar[str]
  verb: ClassVar[str] = 'evaluate'
  labels: ClassVar[Mapping[str, int]] = {}

  # --- what a task has to give ----------------------------------------------

  @abc.abstractmethod
  def loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(mean over the real rows, sums of them: 'loss', 'count', …); jit."""

  @abc.abstractmethod
  def predict(self, outputs) -> Any:
    """What the network says, of its outputs; jit."""

  @abc.abstractmethod
  def measure(self, predictions, batch) -> dict[str, jax.Array]:
    """Sums over the real rows of a batch; jit."""

  @abc.abstractmethod
  def summarize(self, sums, kept=None) -> dict[str, float]:
    """Metrics of all images, on the host; `sums` are of `measure`, in training
    of `loss`; `kept` is {'found': of `rows`, 'truth': of `truth`}, or None."""

  # --- data -----------------------------------------------------------------

  @classmethod
  def of(cls, network, **options) -> Self:
    """The task of a network, with `options` for further fields of the task.

    Raises:
      UserError: an option that the task does not have.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    if strange := sorted(set(options) - fields):
      raise UserError(
        f'{", ".join(strange)}: of no use where the network is for '
        f'{network.task}; leave it out'
      )
    names = fields & {'mean', 'std', 'size', *cls._of_network}
    shared = {name: getattr(network, name) for name in names}
    return cls(**{'classes': len(network.classes), **shared, **options})

  _of_network: ClassVar[tuple[str, ...]] = ()  # fields that a network has too

  @classmethod
  def open(cls, settings, model) -> Dataset:
    """The data set of `settings`, the config's `Data`, for an
    `architectures.Model`."""
    raise UserError(
      f'data.name={settings.name!r}: no such data set for this task; register '
      'it by fs.register_dataset, or give data=… to fs.train'
    )

  @classmethod
  def network_fields(cls, settings, model, dataset) -> dict[str, Any]:
    """Fields of the `Network` that the data decide.

    Raises:
      UserError: the data lack labels that the task needs.
    """
    shapes = dataset.train.shapes(1)
    for name, dimensions in cls.labels.items():
      if name not in shapes or len(shapes[name].shape) != 1 + dimensions:
        what = f'shape {shapes[name].shape[1:]}' if name in shapes else 'none'
        raise UserError(
          f'{dataset.name}: {cls.__name__} needs {name!r} with {dimensions} '
          f'dimensions for each image, but it has {what}'
        )
    return {'mean': dataset.mean, 'std': dataset.std}

  def for_training(self, train, *, smoothing=0.0, balance=0.0) -> Self:
    """The task with what changes its loss on the split `train` only.

    Raises:
      UserError: the task has no such thing; 0 stands for none.
    """
    given = {'smoothing': smoothing, 'balance': balance}
    if strange := [f'{name}={value}' for name, value in given.items() if value]:
      raise UserError(f'{strange[0]}: of no use for this task; leave it out')
    return self

  def labelled(self, split) -> bool:
    """Whether a split can be judged: some example has a label."""
    labels = split.column('label')
    if labels is None or not np.issubdtype(labels.dtype, np.integer):
      return True
    return bool(np.any(labels >= 0))

  def check(self, dataset) -> None:
    """Raises a UserError where the data lack what the metrics need."""
    return None

  # --- images ---------------------------------------------------------------

  def present(self, images):
    """What the network is shown of raw images, [B, H, W, C] in 0..255; jit."""
    return normalize(images, self.mean, self.std)

  def augment(self, key, batch, settings, side=None) -> dict[str, Any]:
    """A raw training batch as the network is shown it, changed at random; jit.

    `key` is of this step, `settings` the config's `Data` (crop, flip, jitter),
    `side` that which images are brought to, None for their own.
    """
    return {**batch, 'image': self.present(batch['image'])}

  def shift(self, settings) -> int:
    """Pixels by which fine-tuning, which needs no labels, may move images."""
    return 0

  # --- answers --------------------------------------------------------------

  def agree(self, predictions, others, batch):
    """(how much two networks' predictions are the same, of how much); jit."""
    same = jax.tree.map(
      lambda a, b: (a == b).reshape(len(a), -1).all(1), predictions, others
    )
    same = functools.reduce(lambda a, b: a & b, jax.tree.leaves(same))
    return (same * batch['mask']).sum(), batch['mask'].sum()

  def rows(self, predictions) -> dict[str, Any]:
    """What `summarize` needs of each prediction, for what is no sum; jit."""
    return {}

  def truth(self, batch) -> dict[str, Any]:
    """The same of the labels; jit."""
    return {}

  def details(self, sums, kept=None) -> dict[str, Any]:
    """What a report shows besides: 'by_class' and more, on the host."""
    return {}

  def pictures(self, batch) -> dict[str, Any] | None:
    """The labels as `report.predictions` draws them; None for no pictures."""
    return None

  def answer(self, network, variables, images, **options):
    """What `answers`, with its options, gives for raw images, uint8 or floats
    in 0..255: [B, H, W, C], one [H, W, C], or a list of such.

    Raises:
      UserError: images of another shape, or values that are no pixels.
    """
    several = isinstance(images, list | tuple)
    arrays = [_as_array(x) for x in (images if several else [images])]
    results = []
    for pixels in Pixels()(*arrays):
      batch = pixels[None] if pixels.ndim == 3 else pixels
      if not len(batch):  # the form of the answers is that of one image's
        batch = np.zeros((1, *batch.shape[1:]), batch.dtype)
      answers = self.answers(network, variables, batch, **options)
      one = pixels.ndim == 3
      results.append(answers[0] if one else answers[: len(pixels)])
    return results if several else results[0]

  def answers(self, network, variables, images):
    """An answer for each of a batch of raw images."""
    return np.asarray(_answers(variables, images, network=network, task=self))


@functools.partial(jax.jit, static_argnames=('network', 'task'))
def _answers(variables, images, *, network, task):
  output, _ = network.apply(variables, task.present(images))
  return task.predict(output)


def _as_array(images) -> np.ndarray:
  """[B, H, W, C] or [H, W, C], on the host."""
  try:
    array = np.asarray(images)
  except (TypeError, ValueError) as error:
    raise UserError(f'images make no array ({error})') from error
  if array.ndim not in (3, 4) or 0 in array.shape[-3:]:
    what = f'shape {array.shape}' if array.ndim else type(images).__name__
    raise UserError(
      f'images of {what}, but they must be [B, H, W, C], or one [H, W, C]'
    )
  return array


class Pixels:
  """The one check of raw images: finite numbers of 0 to 255, on the host.

  It is called with a batch after the other of one set of images and gives them
  back. uint8 costs nothing, others a look at the least and the largest value
  (NumPy's, which keeps NaN; XLA's on a CPU may lose it). Floats of which none
  is above 1 are taken for shares of 255, with a warning; the first that are not
  all 0 decide it for the set.

  UserError for other values or another type.
  """

  def __init__(self):
    self._scale = None  # until it is known

  def __call__(self, *batches) -> list[np.ndarray]:
    found = [_range(x) for x in batches if x.size and x.dtype != np.uint8]
    high = max((high for _, high, real in found if real), default=0)
    if self._scale is None and high:
      self._scale = 255 if high <= 1 else 1
      if self._scale > 1:
        warnings.warn(
          f'images: floats of which none is above {high:.4g} are taken for '
          'shares of 255; give uint8, or floats of 0 to 255',
          PixelsWarning,
          stacklevel=3,
        )
    elif high > 1 and self._scale == 255:
      raise UserError(
        f'images: floats up to {high:.4g} behind others of which none is above '
        '1; give all as uint8, or as floats of 0 to 255'
      )
    if self._scale != 255:
      return list(batches)
    return [x * x.dtype.type(255) if _is_real(x) else x for x in batches]


def _range(images):
  """(least, largest value, whether these are floats)."""
  real = _is_real(images)
  if not (real or np.issubdtype(images.dtype, np.integer)):
    raise UserError(
      f'images of dtype {images.dtype}, but they must be uint8 or floats, with '
      'pixels of 0 to 255'
    )
  low, high = images.min(), images.max()
  if not (low >= 0 and high <= 255):  # nor if one is not a number
    raise UserError(
      f'images of shape {images.shape} with values from {low} to {high}; they '
      'must have pixels, of 0 to 255: not normalised, which the network does '
      'itself; divide those of 16 bits by 257'
    )
  return low, float(high), real


def _is_real(images):
  return jnp.issubdtype(images.dtype, jnp.floating)  # bfloat16 too


def check_sides(settings, model) -> None:
  """Raises a UserError for sides that a network with a map cannot take."""
  stride, rest = model.stride, model.remainder
  for name in ('size', 'sizes'):
    value = getattr(settings, name)
    for side in value if name == 'sizes' else [value] * (value is not None):
      if (side - rest) % stride or side < stride:
        near = max(round((side - rest) / stride), 1) * stride + rest
        raise UserError(
          f'data.{name}={value}: the network takes sides that are multiples of '
          f'{stride}{" and 1 more" * rest}; choose {near} for {side}'
        )


def refuse_anchors(settings) -> None:
  """Raises a UserError where anchors are asked for and of no use."""
  if settings.anchors:
    raise UserError(
      f'data.anchors={settings.anchors}: the model is no detector; leave it out'
    )
