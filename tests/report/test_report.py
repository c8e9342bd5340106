"""The report: what it writes, what it leaves out, and that it can be read."""

import errno
import itertools
import json
import math
import pathlib
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image
from support.jobs import one_line

from fastsnn_jax.errors import UserError
from fastsnn_jax.report import canvas, pages, plots

LAYERS = ['conv1', *(f'layer{i}.{j}.part1' for i in (1, 2) for j in range(3))]
MINIMAL = {
  'model': 'small',
  'dataset': 'drawn',
  'rows': [{'bits': 2, 'T': 3, 'steps': 3, 'mode': 'signed', 'tuned': 'none'}],
}


def make_row(rng, bits, mode, tuned):
  """A row with everything that a row can have."""
  top, k = 2**bits - 1, 8 if mode == 'settled' else 0
  row = {'bits': bits, 'T': top, 'steps': top + k, 'mode': mode, 'tuned': tuned}
  row |= {
    'accuracy': rng.uniform(0.5, 0.95),
    'ann_accuracy': 0.95 + 0.01 * bits,
    'agreement': np.float32(rng.uniform(0.5, 1)),
    'max_logit_difference': 3.4e-7 if k else rng.uniform(1, 9),
    'mean_firing_rate': rng.uniform(0.1, 0.2),
    'spikes_per_image': rng.uniform(1e4, 9e4),
    'synops_per_image': rng.uniform(1e6, 9e6),
    'macs_per_image': 12_345_678,
    'quiet_step': top + 4 if k else None,
    'not_quiet': 7 if k else None,
    'over_time': np.sort(rng.uniform(0.1, 0.9, top + k)),
    'agreement_over_time': [math.nan, *np.linspace(0.2, 1, top + k - 1)],
    'layers': [
      {'name': name, 'error': e, 'differing': e, 'firing_rate': e}
      for name, e in zip(LAYERS, rng.uniform(0, 1, len(LAYERS)), strict=True)
    ],
  }
  if k:
    row['quiet_histogram'] = rng.integers(0, 99, top + k)
  return row


def make_results(rng):
  tuned = (('signed', 'sequential'), ('signed', 'parallel'))
  modes = [(mode, 'none') for mode in ('unsigned', 'signed', 'settled')]
  curve = np.linspace(0.1, 0.9, 30)
  stage = {'train_loss': 1 - curve, 'train_accuracy': curve}
  stage |= {'val_accuracy': curve - 0.05, 'epoch': np.arange(1, 31)}
  return MINIMAL | {
    'task': 'classification',
    'metric': 'accuracy',
    'float_accuracy': 0.9812,
    'images': 360,
    'version': '0.1.0',
    'settings': {'seed': 0, 'schedule': 'cosine', 'path': pathlib.Path('data')},
    'rows': [
      make_row(rng, bits, *key) for bits in (3, 2) for key in (*modes, *tuned)
    ],
    'training': {'ann32': stage, 'ann2': stage},
    'tuning': [
      {'bits': bits, 'schedule': how, 'layer': name, 'loss_before': before}
      | {'loss_after': before / 2, 'accepted': i % 3 > 0, 'accuracy': 0.9}
      for bits, how in ((3, 'sequential'), (2, 'sequential'), (2, 'parallel'))
      for i, (name, before) in enumerate(zip(LAYERS, curve, strict=False))
    ],
  }


def make_rasters(rng):
  def raster(steps, shape):
    spikes = [rng.integers(-1, 2, (steps, 9), np.int8) for _ in LAYERS]
    image = rng.integers(0, 255, shape, np.uint8)
    return {'layers': LAYERS, 'spikes': spikes, 'image': image, 'T': 3}

  return {
    '2 bits, signed': raster(3, (8, 8, 1)),
    '2 bits, settled': raster(11, (16, 16, 3)),
  }


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  """A report with every section: its directory and its results."""
  rng = np.random.default_rng(0)
  directory = tmp_path_factory.mktemp('run') / 'report'
  results = make_results(rng)
  settings = dict(matplotlib.rcParams)
  pages.write(directory, results, make_rasters(rng))
  assert dict(matplotlib.rcParams) == settings
  return directory, results


def numbers(row):
  """What a page must say about a row."""
  shares = (row['accuracy'], row['ann_accuracy'], row['agreement'])
  counts = (row['spikes_per_image'], row['synops_per_image'])
  ratio = row['synops_per_image'] / row['macs_per_image']
  others = (row['max_logit_difference'], row['mean_firing_rate'], ratio)
  quiet = [
    '\u2013' if row[name] is None else str(row[name])
    for name in ('quiet_step', 'not_quiet')
  ]
  return [
    str(row['steps']),
    *map(pages.percent, shares),
    *map(pages.number, others),
    *map(pages.number, counts),
    '12.3 M',
    *quiet,
  ]


def test_results_come_back_and_nan_is_null(full):
  directory, results = full
  text = (directory / 'results.json').read_text(encoding='utf-8')
  assert 'NaN' not in text
  back = json.loads(text)
  assert back.keys() == results.keys()
  for mine, row in zip(back['rows'], results['rows'], strict=True):
    assert mine['agreement_over_time'][0] is None
    assert mine['over_time'] == row['over_time'].tolist()
    assert mine['accuracy'] == row['accuracy']
    assert mine['agreement'] == float(row['agreement'])
  assert back['settings']['path'] == 'data'


def test_html_stands_alone(full):
  text = (full[0] / 'report.html').read_text(encoding='utf-8')
  links = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]*)', text)
  assert links
  assert all(link.startswith(('#', 'data:')) for link in links)
  assert all(u.startswith('#') for u in re.findall(r'url\(["\']?(.)', text))
  assert not re.search(r'https?:|@import|<script|<link', text)
  assert len(text) < 2_000_000


def test_html_has_every_number_and_one_best_row_per_bit_width(full):
  directory, results = full
  text = (directory / 'report.html').read_text(encoding='utf-8')
  body = text[text.index('<tbody>') : text.index('</table>')]
  lines = [
    line for line in re.findall(r'<tr.*?</tr>', body, re.S) if '<td>' in line
  ]
  for row, line in zip(results['rows'], lines, strict=True):
    assert f'>{canvas.label(row)}</th>' in line
    cells = re.findall(r'<td>(.*?)</td>', line)
    assert sorted(cells) == sorted(numbers(row))
  for bits in (2, 3):
    rows = [i for i, r in enumerate(results['rows']) if r['bits'] == bits]
    best = max(rows, key=lambda i: results['rows'][i]['accuracy'])
    assert [i for i in rows if 'class="best"' in lines[i]] == [best]


def test_markdown_has_a_line_per_row(full):
  directory, results = full
  text = (directory / 'report.md').read_text(encoding='utf-8')
  table = [line for line in text.splitlines() if line.startswith('|')]
  assert len({line.count('|') for line in table}) == 1
  for row, line in zip(results['rows'], table[2:], strict=True):
    cells = [cell.strip(' *') for cell in line.strip('|').split('|')]
    assert cells[:5] == [
      str(row[key]) for key in ('bits', 'T', 'steps', 'mode', 'tuned')
    ]
    assert sorted(cells[5:]) == sorted(numbers(row)[1:])
  assert '\n\n\n' not in text


def test_pictures_are_there_and_not_blank(full):
  directory, _ = full
  files = sorted((directory / 'plots').iterdir())
  text = (directory / 'report.md').read_text(encoding='utf-8')
  linked = re.findall(r'!\[.*?\]\((.*?)\)', text)
  assert sorted(linked) == [f'plots/{file.name}' for file in files]
  assert len(files) == 6 + 2
  for file in files:
    with Image.open(file) as image:
      grey = np.asarray(image.convert('L'))
    assert min(grey.shape) > 300
    assert grey.max() == 255
    assert 0.01 < np.mean(grey < 230) < 0.5, file.name


def test_minimal_results_leave_sections_out(tmp_path):
  pages.write(tmp_path, MINIMAL)
  assert json.loads((tmp_path / 'results.json').read_text()) == MINIMAL
  assert not list((tmp_path / 'plots').iterdir())
  for name in ('report.md', 'report.html'):
    text = (tmp_path / name).read_text(encoding='utf-8')
    assert 'small on drawn' in text
    for word in ('None', 'nan', 'Undefined', '![', '<svg', 'Settings'):
      assert word not in text


def test_missing_numbers_are_dashes(tmp_path):
  first = MINIMAL['rows'][0] | {'accuracy': math.nan, 'agreement': 1.0}
  second = first | {'mode': 'settled', 'accuracy': 0.5, 'over_time': [0.5]}
  pages.write(tmp_path, MINIMAL | {'rows': [first, second]})
  text = (tmp_path / 'report.md').read_text(encoding='utf-8')
  assert '| signed | none | \u2013 | 100.0 % |' in text


def test_the_answer_of_all_that_comes_until_quiet_is_named():
  first = MINIMAL['rows'][0] | {'over_time': [0.1, 0.2, 0.3]}
  last = first | {'mode': 'settled', 'steps': 9, 'over_time': [0.1] * 4}
  for rows, names in (([first], []), ([first, last], ['quiet'])):
    figure = plots.parts({'rows': rows})['over_time']()
    texts = [text for ax in figure.axes for text in ax.texts]
    assert [text.get_text() for text in texts] == names
    assert all(text.get_position()[0] == 4 for text in texts)


def test_names_are_escaped(tmp_path):
  pages.write(tmp_path, MINIMAL | {'model': '<b>&'})
  text = (tmp_path / 'report.html').read_text(encoding='utf-8')
  assert '<b>' not in text
  assert '&lt;b&gt;&amp;' in text


def test_layer_names_of_a_deep_network_do_not_overlap():
  rng = np.random.default_rng(0)
  layers = [
    {'name': f'layer{i // 36}.{i % 36}.part{i % 2}', 'error': e, 'differing': e}
    for i, e in enumerate(rng.uniform(0, 1, 109))
  ]
  row = MINIMAL['rows'][0] | {'layers': layers}
  figure = plots.parts({'rows': [row]})['layer_error']()
  figure.draw_without_rendering()
  for ax in figure.axes:
    boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert len(boxes) > 20
    for left, right in itertools.pairwise(boxes):
      assert left.x1 <= right.x0


def test_a_failed_write_keeps_the_old_results(tmp_path, monkeypatch):
  pages.write(tmp_path, MINIMAL)

  def full_disk(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'replace', full_disk)
  with pytest.raises(UserError, match='No space left on device; make room'):
    pages.write(tmp_path, MINIMAL | {'model': 'other'})
  assert json.loads((tmp_path / 'results.json').read_text()) == MINIMAL
  assert not list(tmp_path.glob('.*'))


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'taken').write_text('a file')
  with pytest.raises(UserError, match='cannot write the report'):
    pages.write(tmp_path / 'taken', MINIMAL)


NAMES = [
  '$\\frac$',
  '$',
  'a\\$b$',
  'chien_\udce9',
  'a\nb',
  '\x1b[31m',
  '中',
  '',
]


def with_classes(names):
  share = list(np.linspace(0, 1, len(names)))
  row = MINIMAL['rows'][0] | {'by_class': share, 'ann_by_class': share}
  layers = [{'name': name, 'error': 0.5} for name in names]
  return MINIMAL | {'classes': names, 'rows': [row | {'layers': layers}]}


def test_any_name_of_a_class_or_layer_is_drawn(tmp_path):
  results = with_classes(NAMES)
  title = 'two $\\bits$'
  steps = np.zeros((3, 4), int)
  raster = {'layers': NAMES[:1], 'spikes': [steps], 'T': 3}
  raster['image'] = np.zeros((8, 8, 3), np.uint8)
  boxes = {'boxes': np.full((1, 8, 4), 0.5), 'label': np.arange(8)[None]}
  example = {'image': np.zeros((1, 8, 8, 3), np.uint8)}
  example |= dict.fromkeys(('truth', 'ann', 'snn'), boxes)
  assert not pages.write(tmp_path, results, {title: raster}, {title: example})
  assert json.loads((tmp_path / 'results.json').read_text()) == results
  drawn = {path.stem for path in tmp_path.glob('plots/*.png')}
  assert {'by_class', 'layer_error'} < drawn
  assert len(drawn) == 4
  text = (tmp_path / 'report.html').read_text(encoding='utf-8')
  assert '$\\frac$' in text
  assert 'chien_\\udce9' in text


def test_names_are_shown_as_they_are():
  assert canvas.shown({'a': ['$x$', 3, ('é\n',)]}) == {
    'a': ['\\$x\\$', 3, ['é\\n']]
  }


def test_no_number_is_lost_for_a_picture(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  results = make_results(rng) | {'training': {'ann2': {'train_loss': ['x']}}}
  results['tuning'] = [{'bits': 2, 'schedule': 'a\nb'}]
  problems = pages.write(tmp_path, results, {'2 bits': {'layers': []}})
  names = ['tuning.png', 'training.png', 'raster-2-bits.png']
  assert [line.split()[0][13:] for line in problems] == names
  assert all(len(line.splitlines()) == 1 for line in problems)
  back = json.loads((tmp_path / 'results.json').read_text())
  assert back['rows'][0]['accuracy'] == results['rows'][0]['accuracy']
  text = (tmp_path / 'report.md').read_text(encoding='utf-8')
  linked = re.findall(r'!\[.*?\]\((.*?)\)', text)
  there = [f'plots/{path.name}' for path in tmp_path.glob('plots/*')]
  assert sorted(linked) == sorted(there)
  assert not set(names) & {path.name for path in tmp_path.glob('plots/*')}

  def no_room(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(canvas, 'svg', no_room)
  with pytest.raises(UserError, match='No space left'):
    pages.write(tmp_path, results | {'model': 'other'})
  back = json.loads((tmp_path / 'results.json').read_text())
  assert back['model'] == 'other'
  assert not (tmp_path / 'report.md').exists()


@pytest.mark.parametrize('cut', [KeyboardInterrupt, MemoryError, UserError])
def test_pages_never_stand_beside_what_they_are_not_of(tmp_path, cut):
  rng = np.random.default_rng(0)
  pages.write(tmp_path, make_results(rng))
  seen = []

  def meanwhile():
    seen.extend(path.name for path in tmp_path.iterdir())
    raise cut

  with pytest.raises(cut):
    pages.write(tmp_path, MINIMAL | {'model': 'other'}, meanwhile=meanwhile)
  assert sorted(seen) == ['.draft', 'plots', 'results.json']
  assert json.loads((tmp_path / 'results.json').read_text())['model'] == 'other'
  assert not (tmp_path / 'report.html').exists()
  (tmp_path / '.draft' / 'plots').mkdir(parents=True)  # left by a kill
  (tmp_path / '.draft' / 'plots' / 'half.png.part').write_bytes(b'PNG')
  pages.write(tmp_path, MINIMAL)
  assert not (tmp_path / 'plots' / 'half.png').exists()
  assert not (tmp_path / '.draft').exists()


@pytest.mark.parametrize('name', ['report.md', 'plots', 'results.json'])
def test_what_stands_in_the_way_is_found_before_the_work(tmp_path, name):
  path = tmp_path / 'report' / name
  path.parent.mkdir()
  path.write_text('') if name == 'plots' else path.mkdir()
  with pytest.raises(UserError, match='cannot write the report') as caught:
    pages.check(tmp_path / 'report')
  one_line(caught)


MARKUP = ['<script>alert(1)</script>', '<img src=x onerror=f()>', '&lt;b>']
MARKUP += ['[x](javascript:f())', '`a` <b>', 'a|b', 'two\n# lines', '![x](y)']


@pytest.mark.parametrize('text', MARKUP)
def test_markdown_has_no_markup_of_names(tmp_path, text):
  results = with_classes([text, 'b'])
  results |= {'model': text, 'dataset': text, 'settings': {text: text}}
  results |= {'metric': 'accuracy', 'version': text}
  results['rows'][0] |= {'mode': text, 'tuned': text}
  pages.write(tmp_path, results)
  page = (tmp_path / 'report.md').read_text(encoding='utf-8')
  assert not re.search(r'<(?!\d)', page)
  assert not re.search(r'(?<!\\)\]\((?!plots/)', page)
  assert page.count('\n# ') == 0
  rows = [line for line in page.splitlines() if line.startswith('| 2 |')]
  widths = [len(re.findall(r'(?<!\\)\|', line)) for line in rows]
  assert widths == [6, 5, 5]  # the table of results, and that of classes


def test_importing_the_report_imports_no_matplotlib():
  code = (
    'import sys, fastsnn_jax.report\n'
    'assert not {"matplotlib", "jinja2"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
