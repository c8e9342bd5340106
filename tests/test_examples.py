"""Every file of examples/ runs as it is, and says what it found."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = sorted(
  (pathlib.Path(__file__).resolve().parent.parent / 'examples').glob('*.py')
)

SLOW = 'own_efficientnet', 'own_torchvision'  # a minute of compilation


@pytest.mark.once
@pytest.mark.parametrize(
  'path',
  [
    pytest.param(
      path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)
    )
    for path in EXAMPLES
  ],
)
def test_it_runs(path, tmp_path):
  done = subprocess.run(
    [sys.executable, path, str(tmp_path / 'run')],
    cwd=path.parent.parent,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert 'settled' in done.stdout


def test_there_are_examples():
  assert {path.stem for path in EXAMPLES} >= {
    'own_arrays',
    'own_table',
    'own_task',
  }
