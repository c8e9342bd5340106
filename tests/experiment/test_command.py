"""The command lines: help, and one line for every mistake."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from support.shared import ROOT

from fastsnn_jax.experiment import cli as command
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment.config import Conversion, Experiment

DIGITS = str(ROOT / 'configs' / 'digits.py')


@pytest.fixture
def run(monkeypatch, capsys):
  """`run('train', '--help')` is (exit code, standard output, error)."""
  monkeypatch.setattr(command, '_cache_compilations', lambda: None)
  monkeypatch.setattr(command, '_silence_orbax', lambda: None)

  def call(name, *arguments):
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
    capsys.readouterr()
    try:
      command.run(command.COMMANDS[name])
      code = 0
    except SystemExit as end:
      code = end.code or 0
    return code, *capsys.readouterr()

  return call


@pytest.fixture
def called(monkeypatch):
  """What the commands would have done: [(name, arguments), …]."""
  calls = []
  for name in ('train', 'convert'):
    monkeypatch.setattr(
      f'fastsnn_jax.experiment.{name}.{name}',
      lambda *args, name=name, **options: calls.append((name, args)),
    )
  return calls


def assert_one_error(code, out, err, *parts):
  assert code == 2
  assert out == ''
  assert err.endswith('\n')
  (line,) = err.splitlines()
  assert line.startswith('error: ')
  for part in parts:
    assert part in line


@pytest.mark.parametrize('early', [(), ('--config', DIGITS)])
def test_train_help_names_what_there_is(run, early):
  code, out, err = run('train', *early, '--help')
  assert (code, err) == (0, '')
  for option in (
    '--config',
    '--workdir',
    '--data.path',
    '--data.batch',
    '--seed',
    '--save-minutes',
  ):
    assert option in out


def test_convert_help_names_what_there_is(run):
  code, out, err = run('convert', '--help')
  assert (code, err) == (0, '')
  for option in (
    '--workdir',
    '--bits',
    '--mode',
    '--settle',
    '--tune',
    '--tune-epochs',
    '--accept',
    'sequential',
    'settled',
  ):
    assert option in out


def test_train_takes_the_config_and_what_overrides_it(run, called):
  code, _, err = run(
    'train',
    *('--config', DIGITS, '--workdir', 'there'),
    *('--seed', '3', '--data.path', '/data', '--save-minutes', '0'),
  )
  assert (code, err) == (0, '')
  ((name, (experiment, workdir)),) = called
  assert (name, workdir) == ('train', 'there')
  assert (experiment.seed, experiment.save_minutes) == (3, 0)
  assert experiment.data.path == '/data'
  assert experiment.stages == schema.load(DIGITS).stages


def test_convert_takes_the_workdirs_experiment_as_default(
  run, called, monkeypatch
):
  from fastsnn_jax.experiment import workdir as files

  default = Conversion(bits=(3,), tune_images=77)
  monkeypatch.setattr(
    files, 'experiment_of', lambda _: Experiment(convert=default)
  )
  code, out, err = run('convert', '--workdir', 'there')
  assert (code, err) == (0, '')
  assert out.strip() == str(pathlib.Path('there/report/report.html'))
  code, _, _ = run(
    'convert',
    *('--workdir=there', '--bits', '4', '2', '--mode', 'settled'),
    *('--settle', '3', '--tune', 'none', '--accept', 'always'),
  )
  assert code == 0
  assert called[0] == ('convert', ('there', default))
  want = Conversion(
    bits=(4, 2),
    mode=('settled',),
    settle=3,
    tune=('none',),
    accept='always',
    tune_images=77,
  )
  assert called[1] == ('convert', ('there', want))
  assert default.settle == 'auto'
  monkeypatch.setattr(
    files, 'experiment_of', lambda _: Experiment(convert=want)
  )
  assert run('convert', '--workdir=there', '--settle', 'auto')[0] == 0
  auto = dataclasses.replace(want, settle='auto')
  assert called[2] == ('convert', ('there', auto))


def test_the_console_script_finds_our_configs_by_name(run, called, monkeypatch):
  arguments = ('train', '--config', 'digits', '--workdir', 'there')
  monkeypatch.setattr(sys, 'argv', ['fastsnn', *arguments])
  command.main()
  config = schema.load(DIGITS)
  assert called == [('train', (config, 'there'))]


@pytest.mark.parametrize('name', ['train', 'convert'])
def test_help_names_the_command_that_was_typed(run, monkeypatch, capsys, name):
  assert run(name, '--help')[1].startswith(f'usage: {name}.py ')
  monkeypatch.setattr(sys, 'argv', ['/bin/fastsnn', name, '--help'])
  with pytest.raises(SystemExit):
    command.main()
  assert capsys.readouterr().out.startswith(f'usage: fastsnn {name} ')


@pytest.mark.parametrize(
  ('arguments', 'code'), [((), 2), (('--help',), 0), (('tune',), 2)]
)
def test_the_console_script_says_what_it_does(
  monkeypatch, capsys, arguments, code
):
  monkeypatch.setattr(sys, 'argv', ['fastsnn', *arguments])
  with pytest.raises(SystemExit) as end:
    command.main()
  assert end.value.code == code
  out, err = capsys.readouterr()
  assert (err if code else out).startswith('usage: fastsnn {train,convert,')
  assert not (out if code else err)


@pytest.mark.parametrize(
  ('arguments', 'parts'),
  [
    ((), ('--config', '--workdir')),
    (('--workdir', 'w'), ('--config',)),
    (('--config', DIGITS), ('--workdir',)),
    (('--config',), ('--config',)),
    (('--config', 'none/such.py', '--workdir', 'w'), ('no such file',)),
    (('--config', 'digit', '--workdir', 'w'), ('bccd', 'digits', 'voc_')),
    (('--config', __file__, '--workdir', 'w'), ('config = Experiment',)),
    (('--config', DIGITS, '--workdir', 'w', '--wings', '2'), ('--wings',)),
    (('--config', DIGITS, '--workdir', 'w', '--seed', 'x'), ('--seed',)),
    (
      ('--config', DIGITS, '--workdir', 'w', '--data.batch', '0'),
      ('data.batch=0', 'at least 1'),
    ),
    (
      ('--config', DIGITS, '--workdir', 'w', '--momentum', '1.5'),
      ('experiment.momentum=1.5',),
    ),
    (
      ('--config', DIGITS, '--workdir', 'w', '--select', 'luck'),
      ('--select', 'held-out'),
    ),
    (
      ('--config', DIGITS, '--workdir', 'w', '--model', 'resnet99'),
      ('resnet99', 'small_resnet8'),
    ),
    (
      (
        *('--config', DIGITS, '--workdir', 'w'),
        *('--data.name', 'idx', '--data.path', '/none/such'),
      ),
      ('/none/such',),
    ),
    (
      ('--config', DIGITS, '--workdir', 'w', '--data.name', 'idx'),
      ('idx', 'path'),
    ),
  ],
)
def test_a_mistake_in_training_is_one_line_and_code_2(
  run, tmp_path, monkeypatch, arguments, parts
):
  monkeypatch.chdir(tmp_path)
  assert_one_error(*run('train', *arguments), *parts)
  assert not list(tmp_path.glob('w/*'))


@pytest.mark.parametrize(
  ('arguments', 'parts'),
  [
    ((), ('--workdir',)),
    (('--workdir',), ('--workdir',)),
    (('--workdir', 'none/such'), ('none/such', 'train.py')),
    (('--workdir', '.'), ('no trained network',)),
    (('--bits', '7'), ()),
  ],
)
def test_a_mistake_in_converting_is_one_line_and_code_2(
  run, tmp_path, monkeypatch, arguments, parts
):
  monkeypatch.chdir(tmp_path)
  assert_one_error(*run('convert', *arguments), *parts)


@pytest.mark.parametrize(
  ('arguments', 'parts'),
  [
    (('--bits', '7'), ('bits=7',)),
    (('--settle', '0'), ('conversion.settle=0',)),
    (('--mode', 'asleep'), ('--mode', 'settled')),
    (('--tune', 'maybe'), ('--tune', 'sequential')),
    (('--tune-epochs', '-1'), ('tune_epochs=-1',)),
    (('--accept', 'never'), ('--accept',)),
    (('--wings', '2'), ('--wings',)),
  ],
)
def test_a_wrong_setting_of_converting_is_one_line_and_code_2(
  run, called, monkeypatch, arguments, parts
):
  from fastsnn_jax.experiment import workdir as files

  monkeypatch.setattr(files, 'experiment_of', lambda _: Experiment())
  assert_one_error(*run('convert', '--workdir', 'w', *arguments), *parts)
  assert not called


def test_memory_that_is_exhausted_is_one_line(run, monkeypatch):
  said = 'RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.'

  def too_much(*args, **options):
    raise jax.errors.JaxRuntimeError(f'{said}\nwhat the allocator knows')

  monkeypatch.setattr('fastsnn_jax.experiment.train.train', too_much)
  found = run('train', '--config', DIGITS, '--workdir', 'there')
  assert_one_error(*found, said, '--data.batch')


def test_an_interrupt_is_code_130_without_a_traceback(run, monkeypatch):
  def interrupted(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr('os._exit', sys.exit)  # the test shall live on

  monkeypatch.setattr('fastsnn_jax.experiment.train.train', interrupted)
  code, out, err = run('train', '--config', DIGITS, '--workdir', 'w')
  assert (code, out) == (130, '')
  assert err == 'interrupted; give the same command again\n'


def test_a_fault_of_ours_is_no_mistake_of_the_users(run, monkeypatch):
  def broken(*args, **options):
    raise RuntimeError('a bug')

  monkeypatch.setattr('fastsnn_jax.experiment.train.train', broken)
  with pytest.raises(RuntimeError, match='a bug'):
    run('train', '--config', DIGITS, '--workdir', 'w')


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
    command._cache_compilations()
    assert jax.config.jax_compilation_cache_dir is None  # on a CPU
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    command._cache_compilations()
    assert jax.config.jax_compilation_cache_dir == '/somewhere/fastsnn_jax'
    jax.config.update('jax_compilation_cache_dir', '/mine')
    command._cache_compilations()
    assert jax.config.jax_compilation_cache_dir == '/mine'
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize('script', ['train', 'convert'])
def test_the_scripts_themselves_end_in_one_line(tmp_path, script):
  arguments = {
    'train': ['--config', DIGITS, '--workdir', 'w', '--data.name', 'idx'],
    'convert': ['--workdir', 'none/such'],
  }[script]
  done = subprocess.run(
    [sys.executable, ROOT / f'{script}.py', *arguments],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert_one_error(done.returncode, done.stdout, done.stderr)
  assert not list(tmp_path.iterdir())
