"""Test images with the networks' answers: boxes, or maps of classes."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from fastsnn_jax.report import canvas

_COLOURS = (
  *('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'),
  *('#F0E442', '#8B5A2B', '#7F3FBF', '#2E8B57', '#B22222', '#4682B4'),
)
_IGNORED = 255  # the label of pixels that do not count
_MIN_SCORE = 0.25  # of a box that is drawn


def draw(example: dict, title: str, classes):
  """A line of pictures for each image: boxes, or maps of classes.

  `example` has 'image' uint8 [n, H, W, C], and 'truth', 'ann' and 'snn'. For
  boxes these are dicts of 'boxes' [n, K, 4] in shares of the image, 'label' or
  'classes' [n, K] (-1: none) and 'scores'; for maps they are classes [n, H, W],
  and 'size' [n, 2] may give the (width, height) that are no padding.
  """
  paint = _boxes if isinstance(example['truth'], dict) else _maps
  return paint(example, title, classes)


def _panels(rows, title, heads, shape):
  height = 9.6 / len(heads) * shape[0] / shape[1]
  figure = Figure((9.6, rows * height + 0.9), layout='constrained')
  axes = figure.subplots(rows, len(heads), squeeze=False)
  for ax in axes.flat:
    ax.set_axis_off()
  for ax, head in zip(axes[0], heads, strict=True):
    ax.set_title(head)
  figure.suptitle(title)
  return figure, axes


def _boxes(example, title, classes):
  """Truth, quantised ANN and spiking network side by side."""
  images = np.asarray(example['image'])
  shape = images.shape[1:3]
  heads = 'truth', 'quantised ANN', 'spiking network'
  figure, axes = _panels(len(images), title, heads, shape)
  for i, line in enumerate(axes):
    for ax, key in zip(line, ('truth', 'ann', 'snn'), strict=True):
      ax.imshow(images[i])
      answer = {k: np.asarray(part[i]) for k, part in example[key].items()}
      labels = answer.get('classes', answer.get('label'))
      scores = answer.get('scores', np.full(len(labels), np.nan))
      for k in np.flatnonzero((labels >= 0) & ~(scores < _MIN_SCORE)):
        score = '' if np.isnan(scores[k]) else f' {scores[k]:.2f}'
        box = answer['boxes'][k] * np.tile(shape[::-1], 2) - 0.5
        colour = _COLOURS[labels[k] % len(_COLOURS)]
        _box(ax, box, colour, classes[labels[k]] + score)
  return figure


def _box(ax, box, colour, text):
  left, top, right, bottom = box
  size = right - left, bottom - top
  ax.add_patch(Rectangle((left, top), *size, ec=colour, fc='none'))
  light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.6
  look = {'color': 'black' if light else 'white', 'fontsize': 5.5}
  patch = {'fc': colour, 'ec': 'none', 'pad': 0.6}
  ax.text(left, top, text, bbox=patch, va='bottom', clip_on=True, **look)


def _maps(example, title, classes):
  """Image, truth, both networks, and the pixels on which these differ."""
  images = np.asarray(example['image'])
  sizes = np.asarray(example.get('size', [images.shape[2:0:-1]] * len(images)))
  heads = 'image', 'truth', 'quantised ANN', 'spiking network', 'they differ'
  figure, axes = _panels(len(images), title, heads, sizes.max(0)[::-1])
  colours, drawn = _colours(len(classes)), set()
  for i, ((width, height), line) in enumerate(zip(sizes, axes, strict=True)):
    image, *maps = (
      np.asarray(example[key][i])[:height, :width]
      for key in ('image', 'truth', 'ann', 'snn')
    )
    line[0].imshow(image)
    for ax, labels in zip(line[1:4], maps, strict=True):
      ax.imshow(colours[labels])
      drawn |= set(np.unique(labels).tolist())
    differ = maps[1] != maps[2]
    line[4].imshow(differ, cmap='gray_r', vmin=0, vmax=1)
    text = f'{100 * differ.mean():.2f} % of the pixels'
    place = {'transform': line[4].transAxes, 'va': 'top'}
    line[4].text(0.02, -0.02, text, fontsize=7, **place)
  drawn = sorted(label for label in drawn if label < len(classes))
  patches = [Patch(color=colours[k], label=classes[k]) for k in drawn]
  columns = min(len(patches), 6) or 1
  place = {'loc': 'outside lower center', 'ncols': columns, 'fontsize': 8}
  figure.legend(handles=patches, **place)
  return figure


def _colours(count):
  """A table [256, 3] of RGB in 0..1 in which `count` classes differ."""
  # VOC's colour map: bit 3 k + c of a label is bit 7 - k of channel c.
  bits = np.arange(256)[:, None] >> np.arange(9) & 1
  table = bits.reshape(-1, 3, 3).swapaxes(1, 2) @ (128, 64, 32) / 255
  few = '#303030', *_COLOURS
  if count <= len(few):
    table[: len(few)] = [to_rgb(colour) for colour in few]
    table[_IGNORED] = to_rgb(canvas.GREY)  # which is class 7 of VOC's map
  return table
