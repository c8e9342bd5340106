"""Raw images in, answers out."""

import functools
import numbers

import numpy as np

from fastsnn_jax.errors import UserError, check_whole
from fastsnn_jax.evaluation.exits import check_exit, run_until_sure
from fastsnn_jax.nn.network import Network
from fastsnn_jax.tasks import expect
from fastsnn_jax.tasks.detection.task import Detections

__all__ = ['Detections', 'classify', 'detect', 'segment']


def classify(
  network: Network,
  variables,
  images,
  *,
  exit_margin: float | None = None,
) -> np.ndarray:
  """Classes of raw images: [B], or a scalar, indices into `network.classes`.

  With `exit_margin` a spiking network goes step by step, and ends as soon as
  all images are done: the probability of the first class is above that of the
  second by more than `exit_margin`. At 1 it runs all steps.

  Args:
    network, variables: a classification network, float, quantised or spiking.
    images: [B, H, W, C], one [H, W, C], or a list of such; uint8 or floats in
      0..255, at the size that the network was trained for. An empty batch has
      an empty answer.
    exit_margin: from 0 to 1, as `fs.exit_curve` chooses it; None for all steps.

  UserError for a network for another task, and for values that are no pixels: a
  negative one, NaN, or above 255. Floats of which none is above 1 are taken for
  shares of 255, with a warning. The same holds wherever raw images come in.

  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_resnet8', bits=2, mean=(0.5,), std=(0.25,))
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
  >>> fs.classify(network, variables, np.zeros((3, 8, 8, 1), np.uint8)).shape
  (3,)
  """
  options = {}
  if exit_margin is not None:
    check_exit(network, exit_margin)
    options['run'] = functools.partial(run_until_sure, threshold=exit_margin)
  return expect(network, variables, 'classify').answer(
    network, variables, images, **options
  )


def detect(
  network: Network,
  variables,
  images,
  *,
  size: int | None = None,
  threshold: float = 0.25,
  limit: int = 100,
) -> Detections | list[Detections]:
  """Objects in raw images: `Detections`, or for several images a list of them.

  An image is squashed to a square of `size` pixels, as in training, and the
  boxes are mapped back. A new size of images compiles the resizing only.

  Args:
    network, variables: a detector, float, quantised or spiking.
    images: [B, H, W, C], one [H, W, C], or a list of such of several sizes;
      uint8 or floats in 0..255.
    size: a multiple of `network.stride`; None for `network.size`.
    threshold: least score.
    limit: objects in an image at most.

  UserError for a network for another task, and for a size that it cannot take.

  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_yolo', classes=['cat', 'dog'], mean=(0.5,) * 3,
  ...                    std=(0.25,) * 3)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  >>> image = np.zeros((50, 70, 3), np.uint8)
  >>> fs.detect(network, variables, image).boxes.shape
  (0, 4)
  """
  if size is not None:
    check_whole('size', size, 1)
  check_whole('limit', limit, 1)
  if not (isinstance(threshold, numbers.Real) and threshold == threshold):
    raise UserError(f'threshold={threshold!r}, but it must be a number')
  options = {'size': size, 'threshold': threshold, 'limit': limit}
  return expect(network, variables, 'detect').answer(
    network, variables, images, **options
  )


def segment(network: Network, variables, images) -> np.ndarray | list:
  """The class of every pixel of raw images.

  Images are padded at the bottom and on the right with the mean colour, and the
  answer is cut back: to the square that the network was judged on, its `size`,
  if they fit in; or else to the next sides that the map of logits can be
  enlarged to, and each new size of images then compiles the network anew.

  Args:
    network, variables: a segmenter, float, quantised or spiking.
    images: as for `detect`.

  Returns:
    uint8 [B, H, W] or [H, W], indices into `network.classes`; for a list of
    images a list.

  UserError for a network for another task, and for images of another shape.

  >>> import jax, jax.numpy as jnp
  >>> import fastsnn_jax as fs
  >>> network = fs.build('small_deeplab', classes=['sky', 'road'],
  ...                    mean=(0.5,) * 3, std=(0.25,) * 3)
  >>> variables = network.init(jax.random.key(0), jnp.ones((1, 33, 33, 3)))
  >>> fs.segment(network, variables, np.zeros((20, 30, 3), np.uint8)).shape
  (20, 30)
  """
  return expect(network, variables, 'segment').answer(
    network, variables, images
  )
