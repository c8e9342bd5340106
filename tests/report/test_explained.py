"""Cost, early exit and diagnosis in the report, and what it leaves out."""

import matplotlib
import pytest

from fastsnn_jax.report import canvas, explained, pages

ROW = {'bits': 2, 'T': 3, 'steps': 3, 'mode': 'settled', 'tuned': 'none'}
SITE = {
  'differing': 0.2,
  'own': 0.0,
  'inherited': 0.01,
  'sequential': 0.03,
}
SPENT = {'operations': 12.5, 'neurons': 2.5, 'memory': 31.0}
RESULTS = {
  'model': 'small',
  'dataset': 'drawn',
  'rows': [{**ROW, 'accuracy': 0.9, 'warning': 'conv: its bias differs'}],
  'cost': [
    {'bits': 32, 'network': 'float', 'macs': 1e6, 'acs': 0.0, **SPENT},
    {
      **{'bits': 2, 'T': 3, 'network': 'spiking, settled', 'acs': 4.5e5},
      **{'macs': 123.0, 'firing_rate': 0.15, 'break_even_rate': 0.2, **SPENT},
      'words': 'It costs less than its twin.',
    },
  ],
  'early_exit': [
    {
      **{'bits': 2, 'T': 3, 'network': 'settled', 'margin': [0.0, 0.5, 1.0]},
      **{'accuracy': [0.8, 0.9, 0.91], 'steps': [1.0, 1.5, 5.25]},
      **{'full': 0.91, 'full_steps': 5.25, 'chosen': 0.5},
    }
  ],
  'diagnosis': [
    {
      **{'bits': 2, 'T': 3, 'network': 'settled', 'first': 'conv'},
      'sites': [{'name': 'stem', **SITE}, {'name': 'conv', **SITE, 'own': 0.2}],
      'words': ('conv: its bias differs.', 'Give it that of the twin.'),
    }
  ],
}


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  directory = tmp_path_factory.mktemp('run') / 'report'
  assert pages.write(directory, RESULTS) == []
  return directory


@pytest.mark.parametrize('page', ['report.md', 'report.html'])
def test_pages_say_the_numbers_and_the_words(report, page):
  text = (report / page).read_text(encoding='utf-8')
  for words in (
    'Where it leaves its twin',
    'Cost of an image',
    'Early exit',
    'its bias differs. Give it that of the twin.',
    'It costs less than its twin.',
    'takes 1.50 steps on the average in place of 5.25',
    '90.0 % accuracy in place of 91.0 %',
    '450.0 k',
    'Warning:',
  ):
    assert words in text, words


def test_each_figure_is_drawn(report):
  names = {path.stem for path in (report / 'plots').iterdir()}
  assert names >= {'cost', 'early_exit', 'diagnosis'}


def test_bars_are_as_long_as_the_numbers():
  with matplotlib.rc_context(canvas.STYLE):
    (left, right) = explained.cost(RESULTS['cost']).axes
    parts = explained.diagnosis(RESULTS['diagnosis']).axes[0]
  ends = [
    max(p.get_x() + p.get_width() for p in ax.patches) for ax in (left, right)
  ]
  assert ends == [15.0, 46.0]
  tops = [p.get_y() + p.get_height() for p in parts.patches]
  assert max(tops) == pytest.approx(0.24)
  assert 'begins here' in [text.get_text() for text in parts.texts]


def test_nothing_is_drawn_of_nothing(tmp_path):
  plain = {k: RESULTS[k] for k in ('model', 'dataset')}
  assert pages.write(tmp_path / 'report', {**plain, 'rows': [ROW]}) == []
  assert not list((tmp_path / 'report' / 'plots').glob('cost*'))
  heads, lines = explained.cost_table([], pages.number)
  assert (heads, lines) == ([], [])


def test_a_figure_is_saved_by_itself(tmp_path):
  path = tmp_path / 'diagnosis.png'
  explained.save(path, explained.diagnosis, RESULTS['diagnosis'])
  assert path.read_bytes().startswith(b'\x89PNG')
