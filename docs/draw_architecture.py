"""Draws docs/images/architecture.svg: python docs/draw_architecture.py."""

import pathlib

# In import order, as ROOMS in tests/test_architecture.py has it.
FOLDERS = {
  'errors': 'UserError',
  'distributed': 'the mesh',
  'nn': 'quantisers, neurons, layers',
  'tracing': 'a function as a network',
  'data': 'examples in batches',
  'report': 'pages, plots',
  'architectures': 'tables by name',
  'tasks': 'loss, answers, metrics',
  'checkpoint': 'save and load',
  'evaluation': 'metrics, agreement',
  'inference': 'raw images in, answers out',
  'torch_interop': 'official checkpoints',
  'training': 'one step, the loop',
  'conversion': 'to spiking, tuning',
  'deployment': 'files for other runtimes',
  'experiment': 'train, convert, config',
}
PATH = (
  ('train.py', 'a config, a workdir'),
  ('experiment', 'one stage a bit width'),
  ('data', 'Split.batches'),
  ('training', 'the jitted step'),
  ('tasks', 'augment and present'),
  ('nn', 'Network.apply, layer by layer'),
  ('nn', 'Relu, QuantRelu or IntegrateAndFire'),
)
WIDTH, BOX, HEIGHT, GAP = 1280, 140, 58, 20
INK, GREY = '#1b1f24', '#808080'


def text(x, y, words, size=13, weight='normal', colour=INK, anchor='middle'):
  return (
    f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" '
    f'fill="{colour}" text-anchor="{anchor}">{words}</text>'
  )


def box(x, y, title, note, fill):
  middle, lines = x + BOX / 2, [note]
  if len(note) > 22:  # two lines, broken at the space nearest to the middle
    spaces = [i for i, letter in enumerate(note) if letter == ' ']
    cut = min(spaces, key=lambda i: abs(i - len(note) / 2))
    lines = [note[:cut], note[cut + 1 :]]
  shape = (
    f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6" '
    f'fill="{fill}" stroke="{GREY}"/>'
  )
  notes = (
    text(middle, y + 37 + 14 * i, line, 11) for i, line in enumerate(lines)
  )
  return '\n'.join([shape, text(middle, y + 20, title, weight='bold'), *notes])


def arrow(x, y):
  line = f'M{x + 2} {y}h{GAP - 6}m-5 -4l5 4l-5 4'
  return f'<path d="{line}" fill="none" stroke="{GREY}" stroke-width="1.5"/>'


def row(y, boxes, fill, arrows):
  parts = []
  for i, (title, note) in enumerate(boxes):
    x = 10 + i * (BOX + GAP)
    parts.append(box(x, y, title, note, fill))
    if arrows and i + 1 < len(boxes):
      parts.append(arrow(x + BOX, y + HEIGHT / 2))
  return parts


def draw():
  folders = list(FOLDERS.items())
  heads = (
    (24, 'The folders: each imports only folders that stand before it'),
    (214, 'The way of an image in training'),
  )
  parts = [
    *(text(10, y, head, 15, 'bold', GREY, 'start') for y, head in heads),
    *row(40, folders[:8], '#e8f1f8', arrows=False),
    *row(112, folders[8:], '#e8f1f8', arrows=False),
    *row(230, PATH, '#e3f4ec', arrows=True),
  ]
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 300" '
    'font-family="system-ui, sans-serif">\n' + '\n'.join(parts) + '\n</svg>\n'
  )


if __name__ == '__main__':
  path = pathlib.Path(__file__).parent / 'images' / 'architecture.svg'
  path.write_text(draw(), encoding='utf-8')
