"""Commands on a terminal, into a pipe that ends, and without a stream."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from support.shared import ROOT

from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import cli
from fastsnn_jax.training.log import Bar

MISTAKES = {
  '--wings 2': ('--wings', '--help'),
  '--seeed 3': ('--seeed', '--seed INT'),
  '--stages.0.epoch 3': ('--stages.0.epoch,', '--stages.0.epochs INT'),
  '--seed x': ('--seed', "'x'"),
  '--seed': ('--seed', 'Missing value'),
  '--select luck': ('luck', 'held-out', '--help'),
  '--data.batch 0': ('data.batch=0', 'at least 1'),
  f'--{"long" * 60} --wings': (f'--{"long" * 60},', '--wings'),
}
PROGRAM = """
import os, sys
from fastsnn_jax.experiment import cli
for line in sys.argv[1:]:
  sys.argv[1:] = ['--config', 'digits', '--workdir', 'w', *line.split(' ')]
  try:
    cli.run(cli.COMMANDS["train"])
  except SystemExit as end:
    print(f'code {end.code or 0}', flush=True)
  os.environ['NO_COLOR'] = '1'
"""


def on_a_terminal(*arguments):
  """What a program of Python shows on a terminal of 80 columns."""
  ours, theirs = pty.openpty()
  environment = {**os.environ, 'TERM': 'xterm', 'PYTHONPATH': str(ROOT)}
  for name in ('COLUMNS', 'NO_COLOR', 'CI'):
    environment.pop(name, None)
  streams = dict.fromkeys(('stdin', 'stdout', 'stderr'), theirs)
  command = [sys.executable, *arguments]
  with subprocess.Popen(command, env=environment, **streams):
    os.close(theirs)
    said = b''
    with contextlib.suppress(OSError):  # its end
      while part := os.read(ours, 65536):
        said += part
  os.close(ours)
  return said.decode().replace('\r\n', '\n')


@pytest.fixture(scope='module')
def said():
  text = on_a_terminal('-c', PROGRAM, '--help', *MISTAKES, '--help')
  return re.split(r'code \d\n', text), re.findall(r'code (\d)\n', text)


def test_a_mistake_on_a_terminal_is_one_plain_line(said):
  parts, codes = said
  assert codes == ['0', *'2' * len(MISTAKES), '0']
  for text, words in zip(parts[1:-2], MISTAKES.values(), strict=True):
    assert text.startswith('error: ')
    assert text.count('\n') == 1
    assert text.strip().isprintable()
    assert not re.search('[\u2500-\u257f]|---', text)
    for word in words:
      assert word in text


def test_help_has_colours_unless_they_are_refused(said):
  (coloured, *_, plain, rest), _ = said
  assert not rest
  assert '\x1b[' in coloured
  assert '\x1b' not in plain
  assert '--data.path' in plain


def shell(line, **environment):
  return subprocess.run(
    ['bash', '-c', line],
    env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.once
@pytest.mark.parametrize(
  ('line', 'environment', 'code'),
  [
    ('{0} -u train.py --help | (exit); exit ${{PIPESTATUS[0]}}', {}, 141),
    ('{0} convert.py --help >/dev/full', {}, 2),
    ('{0} train.py --help', {'PYTHONIOENCODING': 'ascii'}, 0),
    ('{0} train.py --help 2>&-', {}, 0),
  ],
)
def test_help_ends_without_a_traceback(line, environment, code):
  done = shell(line.format(sys.executable), **environment)
  assert done.returncode == code
  assert 'Traceback' not in done.stderr
  assert 'Error' not in done.stderr
  assert done.stderr.count('\n') == (code == 2)


def test_an_error_is_one_line_whatever_it_quotes(capsys):
  def command(arguments):
    raise UserError('a name\nof \x1b[31m two lines \udce9')

  with pytest.raises(SystemExit) as end:
    _run(command)
  assert end.value.code == 2
  line = 'error: a name\\nof \\x1b[31m two lines \\udce9\n'
  assert capsys.readouterr().err == line


def _run(command):
  with cli._ended():
    command([])


def test_without_standard_error_nothing_is_said(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'stderr', None)
  with Bar('work', 2) as bar:
    bar.advance()
    bar.line('half of it')
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_signal_ends_with_the_code_of_shells(monkeypatch, capsys, name):
  def command(arguments):
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(10)

  monkeypatch.setattr(os, '_exit', sys.exit)  # the test shall live on
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with pytest.raises(SystemExit) as end:
    _run(command)
  assert end.value.code == 128 + signal.Signals[name]
  assert capsys.readouterr().err.startswith('interrupted; ')
  after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  assert after == before


# What pip writes as the console script.
FASTSNN = (
  '-c',
  'import sys; from fastsnn_command import main; sys.exit(main())',
)


@pytest.mark.parametrize(
  ('command', 'module', 'name'),
  [
    ((*FASTSNN, 'train', '--help'), b'jax', 'SIGINT'),
    ((*FASTSNN, 'convert', '--help'), b'optax', 'SIGTERM'),
    ((*FASTSNN, 'merge-sbd', '--help'), b'fastsnn_jax.nn', 'SIGINT'),
    (('train.py', '--help'), b'numpy', 'SIGTERM'),
    (('convert.py', '--help'), b'numpy', 'SIGINT'),
  ],
)
def test_a_signal_in_the_first_second_is_one_line_too(command, module, name):
  """It comes in the middle of the imports, when a module has just come."""
  process = subprocess.Popen(
    [sys.executable, '-X', 'importtime', *command],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    cwd=ROOT,
  )
  for line in process.stderr:
    if module in line:
      break
  process.send_signal(signal.Signals[name])
  said = process.communicate(timeout=60)[1]
  assert process.returncode == 128 + signal.Signals[name]
  assert said.splitlines()[-1].startswith(b'interrupted; ')
  assert b'Traceback' not in said


def test_what_the_console_script_imports_first_is_light():
  program = 'import fastsnn_command, sys; print("fastsnn_jax" in sys.modules)'
  said = subprocess.check_output([sys.executable, '-c', program], cwd=ROOT)
  assert said == b'False\n'
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  assert project['project']['scripts'] == {'fastsnn': 'fastsnn_command:main'}
  wheel = project['tool']['hatch']['build']['targets']['wheel']
  assert 'fastsnn_command.py' in wheel['packages']
