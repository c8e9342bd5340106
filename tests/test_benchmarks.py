"""The benchmarks run, and compare with the limit that they name."""

import json
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks.timing import table


def test_ratios_are_of_the_same_round():
  # The machine was three times slower in the second round.
  took = {'limit': [1.0, 3.0, 1.0], 'ours': [2.0, 6.0, 2.0]}
  made = table('a title', took, 'limit', images=10)
  assert made['columns'][3:] == ['times limit', 'images/s']
  assert [row[3] for row in made['rows']] == [1, 2]
  assert [row[4] for row in made['rows']] == [10, 5]


@pytest.mark.once
def test_topics_run_and_are_written(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'tables.json'
  arguments = ['neuron', 'compiling', '--quick', '--json', str(path)]
  monkeypatch.setattr(sys, 'argv', ['benchmarks', *arguments])
  command.main()
  found, shown = json.loads(path.read_text()), capsys.readouterr().out
  assert [x['topic'] for x in found['tables']] == ['neuron', 'compiling']
  for made in found['tables']:
    assert made['title'] in shown
    assert all(len(row) == len(made['columns']) for row in made['rows'])
    assert all(row[1] > 0 for row in made['rows'])


def test_a_topic_that_does_not_exist_is_told(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['benchmarks', 'speed'])
  with pytest.raises(SystemExit):
    command.main()
  assert "'speed' is no topic" in capsys.readouterr().err
