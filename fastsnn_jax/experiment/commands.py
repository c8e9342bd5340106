"""What each command takes: `fastsnn train …`, `convert`, `diagnose`, …"""

import argparse
import contextlib
import functools
import io
import os
import re
from typing import Annotated

import tyro

from fastsnn_jax import distributed
from fastsnn_jax.data import sbd
from fastsnn_jax.data.readers import voc
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import config as schema
from fastsnn_jax.experiment import (
  convert,
  import_official,
  recipes,
  train,
)
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.finished import deploy, explaining

_FLAT = tyro.conf.arg(name='')  # --seed, not --experiment.seed


def train_command(arguments: list[str]) -> None:
  """python train.py --config configs/digits.py --workdir runs/digits"""
  path = _early(arguments, '--config')
  default = schema.load(path) if path else schema.Experiment()

  def main(
    config: str,
    workdir: str,
    profile: bool = False,
    experiment: Annotated[schema.Experiment, _FLAT] = default,
  ):
    """Trains a network at falling precision.

    Each stage starts from the best of the one before. A run that was cut goes
    on with the same command.

    Args:
      config: Python file that sets the experiment, or one of ours by name, such
        as digits. The options below show its values and override them.
      workdir: Directory that gets checkpoints and metrics.
      profile: Write a trace of some training steps to WORKDIR/profile.
      experiment: What to train.
    """
    del config
    return functools.partial(train.train, experiment, workdir, profile=profile)

  _parse(main, arguments)()


def convert_command(arguments: list[str]) -> None:
  """python convert.py --workdir runs/digits"""
  if path := _early(arguments, '--config'):  # for what it registers
    schema.load(path)
  default = schema.Conversion()
  if _early(arguments, '--from-torch'):
    if network := _early(arguments, '--model'):
      default = recipes.recommended(network).convert
  elif directory := _early(arguments, '--workdir'):
    default = files.experiment_of(directory).convert

  def main(
    workdir: str,
    config: str | None = None,
    from_torch: str | None = None,
    model: str | None = None,
    data: str | None = None,
    size: int | None = None,
    settings: Annotated[schema.Conversion, _FLAT] = default,
  ):
    """Converts quantised networks to spiking ones, and reports.

    Evaluates every mode at every time step, fine-tunes layer by layer,
    evaluates again, and writes WORKDIR/report and WORKDIR/snn4, … (--keep says
    which of the networks). It replaces what an earlier conversion wrote.

    Args:
      workdir: Directory in which train.py ran; its experiment sets the defaults
        below.
      config: Config file that registers a model, a data set or a task of your
        own; its experiment does not count.
      from_torch: Convert this official PyTorch checkpoint in place of what was
        trained in WORKDIR. Give --model and --bits, too.
      model: Model of the official checkpoint.
      data: Data set that the official checkpoint was trained on, if not
        cifar10, imagenet2012 or voc; --data-path says where it is.
      size: Side of its images in pixels, if not 224, 416 or 513, the recipe's.
      settings: What to convert, and how.
    """
    del config
    images = {'data_name': data, 'data_path': settings.data_path, 'size': size}
    return from_torch, model, workdir, images, settings

  file, model, workdir, images, settings = _parse(main, arguments)
  if file:
    if not schema.is_path(file):
      raise UserError(f'--from-torch {file}: no file can be there; name one')
    if model is None or _early(arguments, '--bits') is None:
      raise UserError(
        f'--from-torch {file}: the file does not say what it holds; add '
        '--model NAME and --bits N'
      )
    if len(settings.bits) > 1:
      raise UserError(
        f'--bits {settings.bits}: a checkpoint is of one bit width; name that'
      )
    import_official.adopt(file, model, settings.bits[0], workdir, **images)
  elif model or images['data_name'] or images['size']:
    raise UserError('--model, --data and --size belong to --from-torch; add it')
  convert.convert(workdir, settings)
  if distributed.first():
    print(files.at(workdir) / 'report' / 'report.html')


def merge_sbd_command(arguments: list[str]) -> None:
  """fastsnn merge-sbd SBD_DIR VOC_DIR"""
  what = 'Merges SBD into VOC 2012: masks, and the list trainaug.'
  parser = argparse.ArgumentParser(description=what)
  parser.add_argument('sbd_dir', help=f'SBD, with {sbd.LAYOUT}')
  parser.add_argument('voc_dir', help='VOCdevkit, with VOC2012 in it')
  given = parser.parse_args(arguments)
  masks, names = sbd.merge_sbd(given.sbd_dir, given.voc_dir)
  print(f'{masks} masks in {voc.MASKS[0]}, {names} names in trainaug.txt')


def diagnose_command(arguments: list[str]) -> None:
  """fastsnn diagnose --workdir runs/digits --bits 2"""
  if path := _early(arguments, '--config'):  # for what it registers
    schema.load(path)

  def main(
    workdir: str,
    bits: int,
    config: str | None = None,
    images: int = 256,
    data_path: str | None = None,
  ):
    """Says where a spiking network leaves its quantised twin, and why.

    Prints the errors of each site and what to do, and writes
    WORKDIR/report/diagnosis-2-bits.txt and .png.

    Args:
      workdir: Directory in which convert.py ran.
      bits: Compare the networks snn2 and ann2, say.
      config: Config file that registers a model, a data set or a task of your
        own.
      images: Look at so many test images.
      data_path: Directory of the data, if it is not where train.py found it.
    """
    del config
    return workdir, bits, images, data_path

  workdir, bits, images, path = _parse(main, arguments)
  print(
    explaining.diagnose_workdir(workdir, bits, images=images, data_path=path)
  )


def export_command(arguments: list[str]) -> None:
  """fastsnn export --workdir runs/digits --bits 2 --format onnx"""
  if path := _early(arguments, '--config'):  # for what it registers
    schema.load(path)

  def main(
    workdir: str,
    bits: int,
    format: str,
    mode: str | None = None,
    path: str | None = None,
    sites: bool = False,
    config: str | None = None,
  ):
    """Writes a trained network as a file for other runtimes.

    Beside it comes a JSON file that says what is in it. docs/deployment.md
    says which format is for whom.

    Args:
      workdir: Directory in which train.py ran.
      bits: Of which network; 32 is the float one.
      format: onnx, qonnx, stablehlo or nir.
      mode: quantised (the default), float, unsigned (nir's default), signed or
        settled, of the trained variables; or kept, the network that convert.py
        left.
      path: The file; WORKDIR/export/MODE_BITS.FORMAT if none is given.
      sites: One more output for each row that fires, its levels or spikes.
      config: Config file that registers a model, a data set or a task of your
        own; its experiment does not count.
    """
    del config
    return workdir, bits, format, mode, path, sites

  print(deploy.deploy(*_parse(main, arguments)))


COMMANDS = {
  'train': train_command,
  'convert': convert_command,
  'diagnose': diagnose_command,
  'export': export_command,
  'merge-sbd': merge_sbd_command,
}


def _early(arguments, option):
  """An option's value before the full parser, whose defaults hang on it."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  spelled = '--' + option[2:].replace('-', '_')  # tyro takes both
  parser.add_argument(*{option, spelled}, nargs='?', dest='value')
  return parser.parse_known_args(arguments)[0].value


def _parse(main, arguments):
  """What `main` returns; what tyro says in a frame becomes one line."""
  said, columns = io.StringIO(), os.environ.get('COLUMNS')
  os.environ['COLUMNS'] = '99999'  # where tyro breaks a line
  try:
    # Neither is a terminal to tyro, so it draws no frame and no colour.
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
      return tyro.cli(main, args=arguments)
  except SystemExit as end:
    if end.code:
      _, *parts = re.split(r'\n *-{3,} *\n', said.getvalue())  # but the title
      raise UserError('; '.join(' '.join(p.split()) for p in parts)) from end
  finally:
    del os.environ['COLUMNS']
    if columns is not None:
      os.environ['COLUMNS'] = columns
  if os.environ.get('NO_COLOR'):
    tyro._experimental_options['ansi_codes'] = False
  return tyro.cli(main, args=arguments)  # --help, on the user's terminal
