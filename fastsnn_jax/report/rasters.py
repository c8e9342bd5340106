"""Rasters: every spike that some neurons of each layer fired for one image."""

import re

import numpy as np

from fastsnn_jax.report.canvas import BLUE, GREY, MARK_T, VERMILLION, count_on

_MAX_BANDS = 24  # layers in one figure
_MAX_NEURONS = 168  # and neurons, one in 2.6 points of height


def draw(rasters: dict) -> dict:
  """A figure per raster, under its file's name."""
  figures = {}
  for title, raster in rasters.items():
    slug = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')
    figures[f'raster-{slug}'] = _raster(raster, title)
  return figures


def _spread(total, at_most):
  """Up to `at_most` indices, spread evenly over `total`."""
  return np.linspace(0, total - 1, min(total, at_most)).round().astype(int)


def _raster(raster, title):
  """One image and its spikes: a band per layer, a line per neuron."""
  from matplotlib.figure import Figure

  chosen = _spread(len(raster['layers']), _MAX_BANDS)
  most = max(4, _MAX_NEURONS // len(chosen))
  bands = [np.asarray(raster['spikes'][layer]) for layer in chosen]
  bands = [band[:, _spread(band.shape[1], most)] for band in bands]
  edges = np.cumsum([0, *(band.shape[1] for band in bands)])
  spikes = np.concatenate(bands, axis=1)

  steps = len(spikes)
  width, height = max(1.6, 0.2 * steps), max(2.6, 0.9 + edges[-1] / 28)
  figure = Figure((2.5 + width, height), layout='constrained')
  picture, ax = figure.subplots(1, 2, width_ratios=(1, width))
  image = np.asarray(raster['image'])
  image = image[..., 0] if image.shape[2:] == (1,) else image
  picture.imshow(image, cmap='gray', interpolation='nearest')
  picture.set_axis_off()
  picture.set_anchor('N')

  for i in range(0, len(bands), 2):
    shade = {'color': GREY, 'alpha': 0.14, 'lw': 0}
    ax.axhspan(edges[i] - 0.5, edges[i + 1] - 0.5, **shade)
  for sign, colour, mark, name in (
    (1, BLUE, '|', 'positive spike'),
    (-1, VERMILLION, 'x', 'negative spike'),
  ):
    step, neuron = np.nonzero(spikes == sign)
    ax.plot(step + 1, neuron, mark, color=colour, ms=3.2, mew=1.5, label=name)
  if steps > raster['T']:
    ax.axvline(raster['T'] + 0.5, **(MARK_T | {'label': 'input ends'}))
  ax.set_xlim(0.5, steps + 0.5)
  ax.set_ylim(edges[-1] - 0.5, -0.5)
  names = [raster['layers'][layer] for layer in chosen]
  ax.set_yticks((edges[:-1] + edges[1:] - 1) / 2, names, fontsize=7.5)
  ax.tick_params(axis='y', length=0)
  ax.set_ylabel('neurons, by layer', fontsize=9)
  ax.spines[:].set_visible(False)
  count_on(ax, 'time step')
  if len(chosen) < len(raster['layers']):
    title += f'\n{len(chosen)} of {len(raster["layers"])} layers'
  figure.suptitle(title, fontsize=10)
  place = {'loc': 'outside lower center', 'ncols': 3, 'frameon': False}
  figure.legend(fontsize=8, markerscale=2, handlelength=1.2, **place)
  return figure
