"""What the README shows has to run."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()


def test_the_library_example_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (code,) = re.findall(r'```python\n(.*?)```', README, re.S)
  names = {}
  exec(code, names)
  assert names['over_time'].shape == (4, 11, 10)
  assert names['network'].spiking


def test_the_files_it_names_exist():
  for name in re.findall(r'`([\w/]+\.(?:py|md))`', README):
    places = (ROOT / name, ROOT / 'fastsnn_jax' / name)
    assert any(place.exists() for place in places), name


def test_its_pictures_are_there():
  pictures = re.findall(r'\]\(([\w/.]+\.png)\)', README)
  assert pictures
  assert all((ROOT / picture).is_file() for picture in pictures)


def test_its_make_targets_exist():
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'make ([\w-]+)', README):
    assert re.search(rf'^{target}:', makefile, re.M), target
