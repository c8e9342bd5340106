"""What the values of a network's variables must be, whoever saved them."""

import jax
import jax.numpy as jnp
import numpy as np


def as_wide(value) -> np.ndarray:
  """In the machine's byte order, and half precision as float32.

  Evaluation is in float32 throughout; every half is such a number.
  """
  value = np.asarray(value)
  dtype = value.dtype.newbyteorder('=')
  if jnp.issubdtype(dtype, jnp.floating):
    wide = dtype if dtype in (np.float32, np.float64) else np.float32
    wide = np.float64 if dtype.itemsize > 8 else wide
    with np.errstate(over='ignore'):  # an infinity, which `fault` refuses
      return value.astype(jax.dtypes.canonicalize_dtype(wide))
  return value.astype(dtype)


def fault(path: tuple[str, ...], value: np.ndarray) -> str | None:
  """What is wrong with the leaf at ('params', …, 'theta'), or None."""
  if not jnp.issubdtype(value.dtype, jnp.inexact):
    return None
  if path[-1] == 'theta' and not (np.all(value > 0) and np.all(value < np.inf)):
    return (
      f'{value}, but no neuron has a threshold that is not positive, or '
      'infinite; train it again with a smaller learning rate'
    )
  bad = ~np.isfinite(value)
  needed = 'weights are finite numbers'
  if path[0] == 'batch_stats' and path[-1] == 'var':
    bad, needed = bad | (value < 0), 'variances are finite and not negative'
  if path[-1] == 'weight_alpha':
    bad, needed = bad | (value == 0), 'clips of weights are finite and not 0'
  if np.any(bad):
    return (
      f'{value[bad].ravel()[0]} is one of its values, but {needed}; train it '
      'again with a smaller learning rate, or get the file again'
    )
  return None
