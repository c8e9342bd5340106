"""The method in NumPy, from the equations (reference behaviour C1, C3).

Written for clarity and independently of the library; everything is computed in
the dtype of its first argument.
"""

import fractions
import itertools

import numpy as np

# 1.1: base sets by magnitude bits, as exponents of 1/2; each contains 0 too.
BASE_SETS = {
  2: [[1, 2, 3]],
  3: [[1, 2, 4], [3]],
  4: [[1, 3, 5], [2, 4, 6]],
  5: [[1, 3, 6], [2, 4, 7], [5]],
  6: [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
}

# 1.1: the order in which the official code stores the levels; it decides ties.
STORED = {
  2: '0 1 1/2 1/4',
  3: '0 .2 .4 .8 1 .6 .1 .3',
  4: '0 1/3 2/3 1/12 1/48 1 3/4 11/16 1/6 1/2 1/4 3/16 1/24 3/8 1/8 1/16',
  5: '0 .04 .08 .32 .36 .12 .01 .05 .64 .68 .96 1 .72 .76 .65 .69 .14 .03 .07 '
  '.34 .38 .10 .48 .20 .16 .52 .24 .28 .17 .21 .02 .06',
}


def apot_levels(bits, dtype=np.float32):
  """Levels of weights of so many bits, in the stored order where it is known.

  By construction: sums over the base sets, times the rounded reciprocal of the
  largest.
  """
  dtype = np.dtype(dtype).type
  half = fractions.Fraction(1, 2)
  sets = [
    [half**e for e in exponents] + [0] for exponents in BASE_SETS[bits - 1]
  ]
  sums = {sum(terms) for terms in itertools.product(*sets)}
  top = max(sums)
  by_share = {value / top: value for value in sums}
  order = sorted(by_share)
  if bits - 1 in STORED:
    stored = [fractions.Fraction(text) for text in STORED[bits - 1].split()]
    assert sorted(stored) == order
    order = stored
  values = [float(by_share[share]) for share in order]
  return np.array(values, dtype) * (dtype(1) / dtype(float(top)))


def nearest_level(x, bits):
  """1.3: signed level for every x clipped to [-1, 1]; ternary at 2 bits."""
  clipped = np.clip(x, -1, 1)
  if bits == 2:
    return np.round(clipped)
  levels = apot_levels(bits, x.dtype)
  distance = np.abs(np.abs(clipped)[..., None] - levels)
  return np.sign(clipped) * levels[np.argmin(distance, -1)]


def normalize(w):
  """1.2: (w - mean) / std, with N - 1."""
  return (w - np.mean(w)) / np.std(w, ddof=1)


def quantize_weight(w, alpha, bits):
  """1.3."""
  return nearest_level(normalize(w) / alpha, bits) * alpha


def quantize_weight_gradient(w, alpha, bits, g, gradient):
  """1.4: (dL/dw, dL/dalpha, sum of the latter's absolute terms)."""
  normal = normalize(w)
  x = normal / alpha
  outside = np.abs(x) > 1
  terms = g * np.where(outside, np.sign(x), nearest_level(x, bits) - x)
  std = np.std(w, ddof=1)
  if gradient == 'detached':
    dw = g / std
  else:
    h = g if bits == 2 else g * ~outside
    dw = (h - np.mean(h) - normal * np.sum(h * normal) / (w.size - 1)) / std
  return dw, np.sum(terms), np.sum(np.abs(terms))


def quantize_weight_8bit(w):
  """1.6: the scale is the signed maximum."""
  top, codes = np.max(w), w.dtype.type(127)
  return np.round(w / top * codes) / codes * top


def quantize_activation(x, alpha, levels):
  """1.5, with the number of levels above zero."""
  alpha, n = x.dtype.type(alpha), x.dtype.type(levels)
  share = np.round(np.clip(np.maximum(x, 0) / alpha, 0, 1) * n) / n
  return share * alpha


def quantize_activation_gradient(x, alpha, levels, g):
  """1.5: (dL/dx, the terms that sum to dL/dalpha)."""
  ratio = np.maximum(x, 0) / x.dtype.type(alpha)
  share = quantize_activation(x, alpha, levels) / x.dtype.type(alpha)
  dx = g * ((x > 0) & (ratio <= 1))
  return dx, g * np.where(ratio > 1, 1, share - ratio)


def integrate_and_fire(
  currents,
  theta,
  signed=True,
  negative_threshold=-1e-3,
  max_count=None,
  state_dtype=None,
):
  """3.2, one step after the other: spikes in {-1, 0, 1}, time first."""
  dtype = np.dtype(state_dtype or currents.dtype).type
  theta = np.asarray(theta, dtype)
  voltage = np.broadcast_to(theta * dtype(0.5), currents.shape[1:])
  count = np.zeros(currents.shape[1:], int)
  cap = len(currents) if max_count is None else max_count
  spikes = []
  for current in currents.astype(dtype):
    voltage = voltage + current
    plus = (voltage >= theta) & (count < cap)
    voltage = voltage - theta * plus
    count = count + plus
    minus = np.zeros_like(plus)
    if signed:
      minus = (voltage <= dtype(negative_threshold)) & (count > 0)
      voltage = voltage + theta * minus
      count = count - minus
    spikes.append(plus.astype(int) - minus.astype(int))
  return np.stack(spikes).astype(currents.dtype)
