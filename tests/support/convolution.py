"""The definition of a convolution, in loops."""

import numpy as np


def loops(x, kernel, stride, padding, dilation, groups):
  """The convolution by its definition, one output after another, NumPy."""
  axes, (n, *sides, channels) = kernel.ndim - 2, x.shape
  stride, dilation = (
    s if isinstance(s, tuple) else (s,) * axes for s in (stride, dilation)
  )
  reach = [
    (k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)
  ]
  if padding == 'SAME':
    need = [
      max((-(-side // s) - 1) * s + r - side, 0)
      for side, s, r in zip(sides, stride, reach, strict=True)
    ]
    pads = [(total // 2, total - total // 2) for total in need]
  else:
    padding = 0 if padding == 'VALID' else padding
    pads = padding if isinstance(padding, tuple) else (padding,) * axes
    pads = [p if isinstance(p, tuple) else (p, p) for p in pads]
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  out = [
    (side - r) // s + 1
    for side, r, s in zip(x.shape[1:-1], reach, stride, strict=True)
  ]
  features, each = kernel.shape[-1], channels // groups
  y = np.zeros((n, *out, features))
  for at in np.ndindex(*out):
    for tap in np.ndindex(*kernel.shape[:axes]):
      places = zip(at, stride, tap, dilation, strict=True)
      pixel = x[(slice(None), *(i * s + k * d for i, s, k, d in places))]
      for d in range(features):
        start = d // (features // groups) * each
        y[(slice(None), *at, d)] += (
          pixel[:, start : start + each] @ kernel[(*tap, slice(None), d)]
        )
  return y
