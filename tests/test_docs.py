"""The documents agree with the code, and with each other."""

import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
from support.rooms import ROOMS

import fastsnn_jax as fs
from fastsnn_jax import architectures, tasks
from fastsnn_jax.data import named

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
NUMBER = r'\b[CDS](?:\d(?:\.\d)?|-Q\d+)\b'


def test_cited_numbers_are_on_the_page_of_the_official_code():
  page = (DOCS / 'reference_behaviour.md').read_text()
  known = set(re.findall(rf'(?:^## |\*\*|, |to ){NUMBER}', page, re.M))
  known = {re.search(NUMBER, entry)[0] for entry in known}
  for path in (ROOT / 'fastsnn_jax').rglob('*.py'):
    text = ' '.join(path.read_text().replace('# ', '').split())
    for cited in re.findall(r'reference behaviour ([^)]*)', text):
      assert set(re.findall(NUMBER, cited)) <= known, f'{path}: {cited}'


def test_the_order_of_folders_is_that_of_the_architecture_test():
  text = ' '.join((DOCS / 'architecture.md').read_text().split())
  order = re.search(r'checks the order: ([\w, ]+)\.', text)[1].split(', ')
  rooms = [room for room in ROOMS if room in order]
  assert rooms == order
  drawing = runpy.run_path(str(DOCS / 'draw_architecture.py'))
  assert list(drawing['FOLDERS']) == order
  picture = (DOCS / 'images' / 'architecture.svg').read_text(encoding='utf-8')
  assert drawing['draw']() == picture, 'run python docs/draw_architecture.py'


@pytest.mark.parametrize(
  'path', sorted(DOCS.glob('*.md')), ids=lambda p: p.stem
)
def test_the_files_that_a_page_names_exist(path):
  named = re.findall(r'`((?:[\w-]+/)+[\w-]+\.(?:py|md))`', path.read_text())
  for name in named:
    assert (ROOT / name).exists() or (ROOT / 'fastsnn_jax' / name).exists(), (
      name
    )


def test_the_recipes_for_contributors_run(tmp_path, monkeypatch):
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  monkeypatch.setattr(architectures, '_MODELS', architectures._MODELS.copy())
  architectures._MODELS.pop('mine', None)  # another test's
  monkeypatch.setattr(named, '_OWN', {})
  monkeypatch.setattr(tasks, '_TASKS', tasks._TASKS.copy())
  images = np.zeros((6, 8, 8, 1), np.uint8)
  for part in ('train', 'test'):
    np.savez(tmp_path / part, image=images, label=np.arange(6) % 2)
  names = {}
  for code in re.findall(r'```python\n(.*?)```', text, re.S):
    exec(code, names)
  assert names['network'].neuron == fs.QuantRelu(2)
  assert fs.build('mine', bits=32).task == 'classification'
  assert len(named.own('mine', tmp_path).train) == 6
  counter = fs.build('counter', bits=3, mean=(0.5,), std=(0.5,))
  variables = counter.init(jax.random.key(0), images[:1].astype(np.float32))
  data = {'image': images, 'label': np.zeros(6, int)}
  assert fs.evaluate(counter, variables, data).keys() == {'exact'}


@pytest.mark.parametrize('page', ['own_network', 'explain'])
def test_pages_with_programs_run(page):
  code = re.findall(
    r'```python\n(.*?)```', (DOCS / f'{page}.md').read_text(), re.S
  )
  names = {}
  for part in code:
    exec(part, names)
  assert names['settled'].spiking
