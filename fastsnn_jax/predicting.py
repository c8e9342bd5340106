"""Raw images in, answers out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.data import normalize
from fastsnn_jax.network import Network


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
  """
  images = jnp.asarray(images)
  single = images.ndim == 3
  output = _predict(
    variables, images[None] if single else images, network=network
  )
  classes = np.asarray(jnp.argmax(output, -1))
  return classes[0] if single else classes
