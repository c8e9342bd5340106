"""What the README shows has to run, and what it names has to be there."""

import re

import pytest
from support.models import registered, tiny_resnet
from support.shared import ROOT

README = (ROOT / 'README.md').read_text()


@pytest.mark.once
def test_the_library_example_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code = re.findall(r'```python\n(.*?)```', README, re.S)[0]
  names = {}
  exec(code, names)
  assert names['over_time'].shape == (4, 4, 10)
  assert names['network'].spiking


@pytest.mark.once
def test_the_example_of_own_data_runs(tmp_path, monkeypatch):
  import numpy as np

  import fastsnn_jax as fs

  monkeypatch.chdir(tmp_path)
  code = re.findall(r'```python\n(.*?)```', README, re.S)[1]
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (128, 8, 8, 1)).astype(np.uint8)
  labels = np.arange(128) % 4
  stages = (fs.Stage(32, epochs=1), fs.Stage(2, epochs=1))
  convert = fs.Conversion(mode='settled', tune='none')
  changes = f'flip=False), stages={stages!r}, convert={convert!r}'
  short = code.replace('flip=False)', changes)
  assert "'small_resnet8'" in short
  short = short.replace("'small_resnet8'", "'tiny_resnet'")  # compiles soon
  names = {'fs': fs, 'images': images, 'labels': labels}
  names |= {'Stage': fs.Stage, 'Conversion': fs.Conversion}
  names['other_part'] = {'image': images, 'label': labels}
  with registered('tiny_resnet', tiny_resnet):
    exec(short, names)
  assert (tmp_path / 'runs/own/report/results.json').is_file()


def test_it_is_short():
  assert README.count('\n') <= 150


def test_what_it_links_to_is_there():
  links = re.findall(r'\]\((?!https?:)([\w/.]+)\)', README)
  assert len(links) > 10
  assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_make_targets_exist():
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'make ([\w-]+)', README):
    assert re.search(rf'^{target}:', makefile, re.M), target
