"""How the cost of an image grows with T, depth, batch and the size of images.

  python -m benchmarks growth --json growth.json
  python -m benchmarks.growth growth.json docs/images/growth.svg

The second command draws the first one's tables.
"""

import dataclasses
import json
import pathlib
import sys

import fastsnn_jax as fs
from benchmarks.inference import folded, images_of, variables_of
from benchmarks.timing import compare, table

MODES = 'signed', 'settled'


@dataclasses.dataclass(frozen=True)
class Case:
  """A ResNet, and what it sees."""

  bits: int = 2
  depth: int = 20
  batch: int = 16
  side: int = 32

  def of(self, mode):
    """(function, variables, images)."""
    images = images_of(self.side, self.batch)
    bits = 32 if mode == 'float' else self.bits
    ann = fs.build(f'cifar_resnet{self.depth}', bits)
    variables = variables_of(ann, images)
    spiking = mode in MODES
    network = fs.to_spiking(ann, mode) if spiking else ann
    return folded(network, variables, images)


AXES = {  # name: (field, values, what is written)
  'time steps T': ('bits', (1, 2, 3, 4), lambda bits: 2**bits - 1),
  'layers': ('depth', (20, 32, 44, 56), lambda depth: depth),
  'images in a batch': ('batch', (4, 16, 64), lambda batch: batch),
  'pixels of a side': ('side', (16, 32, 64), lambda side: side),
}


def tables(quick):
  axes = list(AXES.items())[2:3] if quick else AXES.items()
  for title, (field, values, write) in axes:
    cases, images = {}, {}
    for value in values[:1] if quick else values:
      case = dataclasses.replace(Case(), **{field: value})
      for mode in ('float', *MODES):
        name = f'{mode}, {write(value)}'
        cases[name], images[name] = case.of(mode), case.batch
    unit = f'float, {write(getattr(Case(), field))}'
    took = compare(cases, repeats=2 if quick else 5)
    took = {k: [x / images[k] for x in times] for k, times in took.items()}
    unit = unit if unit in took else next(iter(took))
    yield table(f'An image, by {title}', took, unit)


def draw(found, path):
  """A panel for each axis: forward passes of the usual float network."""
  from fastsnn_jax.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    STYLE,
    Figure,
    matplotlib,
  )

  looks = {'float': (GREY, 's'), 'signed': (BLUE, 'o'), 'settled': (GREEN, '^')}
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(8, 5.2), layout='constrained')
    panels = figure.subplots(2, 2).flat
    for panel, made in zip(panels, found['tables'], strict=False):
      for mode, (colour, marker) in looks.items():
        rows = [row for row in made['rows'] if row[0].startswith(f'{mode},')]
        at = [int(row[0].split()[-1]) for row in rows]
        panel.plot(at, [row[3] for row in rows], color=colour, marker=marker)
        panel.annotate(
          mode, (at[-1], rows[-1][3]), (4, 0), textcoords='offset points'
        )
      panel.set_xlabel(made['title'].removeprefix('An image, by '))
      panel.set_xscale('log', base=2)
      panel.set_yscale('log')
      panel.set_xticks(at, map(str, at), minor=False)
    figure.supylabel('time of an image, in float forward passes')
    figure.savefig(path)


if __name__ == '__main__':
  draw(json.loads(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2])
