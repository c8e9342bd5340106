"""Rasters: every spike of some neurons of each layer, for one image."""

import numpy as np
from matplotlib.figure import Figure

from fastsnn_jax.report import canvas

_MAX_BANDS = 24  # layers in one figure
_MAX_NEURONS = 168  # and neurons, one in 2.6 points of height


def draw(raster: dict, title: str):
  """One image and its spikes: a band for each layer, a line for each neuron.

  `raster` has `layers` (names), `spikes` (an int array [steps, neurons] for
  each), `image` (uint8 [H, W, C]) and `T`, the steps with input.
  """
  layers = raster['layers']
  chosen = _spread(len(layers), _MAX_BANDS)
  most = max(4, _MAX_NEURONS // len(chosen))
  bands = [np.asarray(raster['spikes'][layer]) for layer in chosen]
  bands = [band[:, _spread(band.shape[1], most)] for band in bands]
  edges = np.cumsum([0, *(band.shape[1] for band in bands)])
  spikes = np.concatenate(bands, axis=1)

  steps = len(spikes)
  width, height = max(1.6, 0.2 * steps), max(2.6, 0.9 + edges[-1] / 28)
  figure = Figure((2.5 + width, height), layout='constrained')
  picture, ax = figure.subplots(1, 2, width_ratios=(1, width))
  picture.imshow(np.asarray(raster['image']))
  picture.set_axis_off()
  picture.set_anchor('N')

  for low, high in zip(edges[:-1:2], edges[1::2], strict=True):
    shade = {'color': canvas.GREY, 'alpha': 0.14, 'lw': 0}
    ax.axhspan(low - 0.5, high - 0.5, **shade)
  for sign, colour, mark, name in (
    (1, canvas.BLUE, '|', 'positive spike'),
    (-1, canvas.VERMILLION, 'x', 'negative spike'),
  ):
    step, neuron = np.nonzero(spikes == sign)
    ax.plot(step + 1, neuron, mark, color=colour, ms=3.2, mew=1.5, label=name)
  if steps > raster['T']:
    ax.axvline(raster['T'] + 0.5, **(canvas.MARK_T | {'label': 'input ends'}))
  ax.set(xlim=(0.5, steps + 0.5), ylim=(edges[-1] - 0.5, -0.5))
  ax.set_ylabel('neurons, by layer')
  names = [layers[layer] for layer in chosen]
  ax.set_yticks((edges[:-1] + edges[1:] - 1) / 2, names, fontsize=7.5)
  ax.tick_params(axis='y', length=0)
  ax.grid(visible=False)
  ax.spines[:].set_visible(False)
  canvas.count_on(ax, 'time step')
  if len(chosen) < len(layers):
    title += f'\n{len(chosen)} of {len(layers)} layers'
  figure.suptitle(title)
  place = {'loc': 'outside lower center', 'ncols': 3, 'fontsize': 8}
  figure.legend(markerscale=2, handlelength=1.2, **place)
  return figure


def _spread(total, at_most):
  """Up to `at_most` indices, spread evenly over `total`."""
  return np.linspace(0, total - 1, min(total, at_most)).round().astype(int)
