"""Test images with what networks said of them: boxes, or maps of classes."""

import re

import numpy as np

from fastsnn_jax.report.canvas import GREY

_COLOURS = (
  *('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'),
  *('#F0E442', '#8B5A2B', '#7F3FBF', '#2E8B57', '#B22222', '#4682B4'),
)
_NOTHING = 255  # the label of pixels that do not count
_SHOWN = 0.25  # least score of a box that is drawn


def draw(examples: dict, classes) -> dict:
  """A figure per entry, under its file's name.

  Args:
    examples: title -> 'image' uint8 [n, H, W, C], and 'truth', 'ann' and
      'snn': of boxes 'boxes' [n, K, 4] in shares of the image with 'label' or
      'classes' [n, K] (-1: none) and 'scores', of maps [n, H, W] classes. With
      maps may be 'size' [n, 2], (width, height): only these pixels at the top
      left are drawn and counted, for the others are padding.
    classes: their names.
  """
  figures = {}
  for title, example in examples.items():
    slug = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')
    paint = _boxes if isinstance(example['truth'], dict) else _maps
    figures[f'pictures-{slug}'] = paint(example, title, tuple(classes))
  return figures


def _panels(rows, columns, title, heads, shape):
  from matplotlib.figure import Figure

  width = 9.6 / columns
  figure = Figure(
    (9.6, rows * width * shape[0] / shape[1] + 0.9), layout='constrained'
  )
  axes = figure.subplots(rows, columns, squeeze=False)
  for ax in axes.flat:
    ax.set_axis_off()
  for ax, head in zip(axes[0], heads, strict=True):
    ax.set_title(head, fontsize=10)
  figure.suptitle(title, fontsize=10)
  return figure, axes


def _show(ax, image):
  image = image[..., 0] if image.shape[2:] == (1,) else image
  ax.imshow(image, cmap='gray', interpolation='nearest')


def _boxes(example, title, classes):
  """Truth, quantised ANN and spiking network side by side."""
  images = np.asarray(example['image'])
  heads = 'truth', 'quantised ANN', 'spiking network'
  figure, axes = _panels(len(images), 3, title, heads, images.shape[1:3])
  for i, (image, line) in enumerate(zip(images, axes, strict=True)):
    for ax, key in zip(line, ('truth', 'ann', 'snn'), strict=True):
      _show(ax, image)
      found = example[key]
      kinds = np.asarray(found.get('classes', found.get('label')))[i]
      scores = found.get('scores')
      for k in np.flatnonzero(kinds >= 0):
        if scores is not None and scores[i][k] < _SHOWN:
          continue
        note = classes[kinds[k]]
        if scores is not None:
          note += f' {scores[i][k]:.2f}'
        _box(ax, np.asarray(found['boxes'][i][k]), image.shape, kinds[k], note)
  return figure


def _box(ax, box, shape, kind, note):
  from matplotlib.patches import Rectangle

  colour = _COLOURS[kind % len(_COLOURS)]
  left, top, right, bottom = box * np.tile(shape[1::-1], 2) - 0.5
  ax.add_patch(
    Rectangle((left, top), right - left, bottom - top, ec=colour, fc='none')
  )
  text = 'black' if _light(colour) else 'white'
  look = {'color': text, 'fontsize': 5.5, 'va': 'bottom', 'clip_on': True}
  patch = {'fc': colour, 'ec': 'none', 'pad': 0.6}
  ax.text(left, top, note, bbox=patch, **look)


def _light(colour):
  from matplotlib.colors import to_rgb

  return np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.6


def _maps(example, title, classes):
  """Image, truth, both networks, and the pixels on which these differ."""
  from matplotlib.patches import Patch

  images = np.asarray(example['image'])
  heads = 'image', 'truth', 'quantised ANN', 'spiking network', 'they differ'
  whole = [images.shape[2:0:-1]] * len(images)
  sizes = np.asarray(example.get('size', whole))
  shape = sizes.max(0)[::-1]
  figure, axes = _panels(len(images), 5, title, heads, shape)
  colours = _colours(len(classes))
  seen = set()
  for i, ((width, height), line) in enumerate(zip(sizes, axes, strict=True)):
    image, *maps = (
      np.asarray(example[key][i])[:height, :width]
      for key in ('image', 'truth', 'ann', 'snn')
    )
    _show(line[0], image)
    for ax, found in zip(line[1:4], maps, strict=True):
      ax.imshow(colours[found], interpolation='nearest')
      seen |= set(np.unique(found).tolist())
    differ = maps[1] != maps[2]
    line[4].imshow(differ, cmap='gray_r', vmin=0, vmax=1)
    line[4].text(
      *(0.02, -0.02, f'{100 * differ.mean():.2f} % of the pixels'),
      transform=line[4].transAxes,
      va='top',
      fontsize=7,
    )
  patches = [
    Patch(color=colours[kind], label=classes[kind])
    for kind in sorted(seen)
    if kind < len(classes)
  ]
  look = {'loc': 'outside lower center', 'frameon': False, 'fontsize': 8}
  figure.legend(handles=patches, ncols=min(len(patches), 6) or 1, **look)
  return figure


def _colours(count):
  """RGB in 0..1 of the labels 0 to 255, another for each of so many classes."""
  from matplotlib.colors import to_rgb

  table = _voc_colours()
  few = '#303030', *_COLOURS
  if count <= len(few):  # else VOC's own for what is ignored: its 7 is GREY
    table[: len(few)] = [to_rgb(colour) for colour in few]
    table[_NOTHING] = to_rgb(GREY)
  return table


def _voc_colours():
  """VOC's colour map: bit 3 k + c of a label is bit 7 - k of channel c."""
  bits = np.arange(256)[:, None] >> np.arange(9) & 1
  return bits.reshape(-1, 3, 3).swapaxes(1, 2) @ (128, 64, 32) / 255
