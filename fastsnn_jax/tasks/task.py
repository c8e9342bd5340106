"""What a problem asks of its data and of a network's output.

One trainer, evaluator, converter and fine-tuner serve every task. Batches are
dicts: 'image', the labels of the task, and 'mask', 1.0 where a row is real and
0.0 where it fills up the batch.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from fastsnn_jax.data import normalize
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.pixels import Pixels, as_array


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
    cls.check_labels(dataset.name, dataset.train.shapes(1))
    return {'mean': dataset.mean, 'std': dataset.std}

  @classmethod
  def check_labels(cls, what: str, batch) -> None:
    """Raises a UserError where a batch, or its shapes, lacks labels."""
    for name, dimensions in cls.labels.items():
      label = batch.get(name)
      numbers = label is not None and label.dtype.kind in 'biuf'
      if not numbers or len(label.shape) != 1 + dimensions:
        found = (
          'there are none'
          if label is None
          else f'they are {label.dtype} of shape {label.shape[1:]}'
        )
        raise UserError(
          f'{what}: {cls.__name__} needs {name!r}, numbers of {dimensions} '
          f'dimensions for each image, but {found}; the data have '
          f'{sorted(batch.keys() - {"mask"})}'
        )

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
    arrays = [as_array(x) for x in (images if several else [images])]
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
