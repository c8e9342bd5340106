"""Raw images in, answers out."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import normalize
from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks.detection import task as detection
from fastsnn_jax.tasks.segmentation import task as segmentation


@functools.partial(jax.jit, static_argnames='network')
def _predict(variables, images, *, network):
  output, _ = network.apply(
    variables, normalize(images, network.mean, network.std)
  )
  return output


def classify(network: Network, variables, images) -> np.ndarray:
  """Classes of raw images.

  Args:
    network, variables: a classification network, float, quantised or spiking.
    images: [B, H, W, C] or one [H, W, C]; uint8 or floats in 0..255, at the
      size that the network was trained for.

  Returns:
    [B] (or a scalar) indices into `network.classes`.

  Raises:
    UserError: a network for another task.
  """
  _check_task(network, 'classification', 'classify')
  images = jnp.asarray(images)
  single = images.ndim == 3
  output = _predict(
    variables, images[None] if single else images, network=network
  )
  classes = np.asarray(jnp.argmax(output, -1))
  return classes[0] if single else classes


class Detections(NamedTuple):
  """What is in one image, by falling score.

  Attributes:
    boxes: float32 [n, 4], (x1, y1, x2, y2) in pixels of the image.
    scores: float32 [n], in 0..1.
    classes: int32 [n], indices into `network.classes`.
  """

  boxes: np.ndarray
  scores: np.ndarray
  classes: np.ndarray


def detect(
  network: Network,
  variables,
  images,
  *,
  size: int | None = None,
  threshold: float = 0.25,
  limit: int = 100,
) -> Detections | list[Detections]:
  """Objects in raw images.

  An image is squashed to a square of `size` pixels, as in training, and the
  boxes are mapped back. A new size of images compiles the resizing only.

  Args:
    network, variables: a detector, float, quantised or spiking.
    images: [B, H, W, C], one [H, W, C], or a list of such of several sizes;
      uint8 or floats in 0..255.
    size: a multiple of `network.stride`; None for `network.size`.
    threshold: least score.
    limit: objects in an image at most.

  Returns:
    `Detections`, or for more than one image a list of them.

  Raises:
    UserError: a network for another task, or a size that it cannot take.

  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_yolo', classes=['cat', 'dog'], mean=(0.5,) * 3,
  ...                    std=(0.25,) * 3)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  >>> found = fs.detect(network, variables, np.zeros((50, 70, 3), np.uint8))
  >>> found.boxes.shape
  (0, 4)
  """
  _check_task(network, 'detection', 'detect')
  if isinstance(images, list | tuple):
    return [
      detect(
        network,
        variables,
        image,
        size=size,
        threshold=threshold,
        limit=limit,
      )
      for image in images
    ]
  images = jnp.asarray(images)
  batch = _as_batch(images)
  height, width = batch.shape[1:3]
  side = network.size if size is None else size
  sides = (side, side) if side else _near((height, width), network.stride)
  found = jax.device_get(
    _detect(
      variables,
      _resize(batch, sides=sides),
      network=network,
      threshold=threshold,
      limit=limit,
    )
  )
  scale = np.array([width, height, width, height], np.float32)
  several = []
  for boxes, scores, classes in zip(
    *(found[key] for key in Detections._fields), strict=True
  ):
    some = classes >= 0
    several.append(
      Detections(
        boxes[some].astype(np.float32) * scale,
        scores[some].astype(np.float32),
        classes[some].astype(np.int32),
      )
    )
  return several[0] if images.ndim == 3 else several


def segment(network: Network, variables, images) -> np.ndarray | list:
  """The class of every pixel of raw images.

  Images are padded at the bottom and on the right with the mean colour, and the
  answer is cut back: to the square that the network was judged on, its `size`,
  if they fit in; or else to the next sides that the map of logits can be
  enlarged to, and each new size of images then compiles the network anew.

  Args:
    network, variables: a segmenter, float, quantised or spiking.
    images: [B, H, W, C], one [H, W, C], or a list of such of several sizes;
      uint8 or floats in 0..255.

  Returns:
    uint8 [B, H, W] or [H, W], indices into `network.classes`; for a list of
    images a list.

  Raises:
    UserError: a network for another task, or images of another shape.

  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_deeplab', classes=['sky', 'road'],
  ...                    mean=(0.5,) * 3, std=(0.25,) * 3)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 33, 33, 3)))
  >>> fs.segment(network, variables, np.zeros((20, 30, 3), np.uint8)).shape
  (20, 30)
  """
  _check_task(network, 'segmentation', 'segment')
  if isinstance(images, list | tuple):
    return [segment(network, variables, image) for image in images]
  images = np.asarray(images)
  batch = _as_batch(images)
  height, width = batch.shape[1:3]
  if not network.mean:
    raise UserError('the network has no mean and std; give them to fs.build')
  if batch.shape[-1] != len(network.mean):
    raise UserError(
      f'images of shape {images.shape}, but the network takes '
      f'{len(network.mean)} channels; repeat a grey one, leave out transparency'
    )
  sides = (network.size, network.size)
  if max(height, width) > network.size:
    stride = network.stride
    sides = (-(-(x - 1) // stride) * stride + 1 for x in (height, width))
  fill = 255 * np.array(network.mean, np.float32)
  padded = np.full((len(batch), *sides, batch.shape[-1]), fill)
  padded[:, :height, :width] = batch
  found = np.asarray(_segment(variables, padded, network=network))
  found = found[:, :height, :width]
  return found[0] if images.ndim == 3 else found


@functools.partial(jax.jit, static_argnames='network')
def _segment(variables, images, *, network):
  output, _ = network.apply(
    variables, normalize(images, network.mean, network.std)
  )
  return segmentation.predict(output, factor=network.stride)


@functools.partial(jax.jit, static_argnames='sides')
def _resize(images, *, sides):
  shape = images.shape[0], *sides, images.shape[-1]
  return jax.image.resize(images.astype(jnp.float32), shape, 'linear')


@functools.partial(jax.jit, static_argnames=('network', 'limit'))
def _detect(variables, images, *, network, threshold, limit):
  output, _ = network.apply(
    variables, normalize(images, network.mean, network.std)
  )
  return detection.predict(
    output,
    anchors=network.anchors,
    overlap=network.overlap,
    threshold=threshold,
    limit=limit,
  )


def _as_batch(images):
  """[B, H, W, C], of such or of one image."""
  batch = images[None] if images.ndim == 3 else images
  if batch.ndim != 4:
    raise UserError(
      f'images of shape {images.shape}, but they must be [B, H, W, C], or one '
      '[H, W, C]'
    )
  low, high = (images.min(), images.max()) if images.size else (np.nan,) * 2
  if not (low >= 0 and high <= 255):  # nor if one is not a number
    raise UserError(
      f'images of shape {images.shape} with values from {low} to {high}; they '
      'must have pixels, of 0 to 255'
    )
  return batch


def _near(sides, stride):
  return tuple(max(round(side / stride), 1) * stride for side in sides)


def _check_task(network, task, name):
  if network.task != task:
    raise UserError(
      f'{name}: the network is for {network.task}, not for {task}; '
      f'use fs.{_ANSWERS.get(network.task, "evaluate")}'
    )


_ANSWERS = {
  'classification': 'classify',
  'detection': 'detect',
  'segmentation': 'segment',
}
