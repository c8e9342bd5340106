"""A network of a workdir as a file for other runtimes."""

import warnings

from fastsnn_jax.checkpoint import networks
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.deployment.write import export
from fastsnn_jax.errors import UserError
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.training.log import say

_SPIKING = 'unsigned', 'signed', 'settled'
_MODES = 'quantised', 'float', *_SPIKING, 'kept'


def deploy(workdir, bits, format, mode=None, path=None, sites=False):
  """Exports a network of a workdir; the path of the file.

  Args:
    workdir: in which `train` ran; its data say what images are shown.
    bits, mode: which network; 'kept' is what `convert` left in snnB.
    format, sites: as of `fs.export`.
    path: of the file; WORKDIR/export/MODE_BITS.FORMAT if None.
  """
  workdir = files.at(workdir)
  if mode is None:
    plain = 'float' if bits == 32 else 'quantised'
    mode = 'unsigned' if format == 'nir' else plain
  if mode not in _MODES:
    raise UserError(f'--mode {mode}: the modes are {", ".join(_MODES)}')
  if (bits == 32) != (mode == 'float'):
    raise UserError(
      f'--mode {mode} --bits {bits}: the float network has 32 bits, and no '
      'other; give --bits 32 --mode float, or another mode'
    )
  config = files.experiment_of(workdir)
  part = 'snn' if mode == 'kept' else 'ann'
  network, variables = networks.load(workdir / f'{part}{bits}')
  if mode in _SPIKING:
    network = to_spiking(network, mode)
  shape = files.shown(network, files.open_data(config).test).shape[1:]
  if path is None:
    path = workdir / 'export' / f'{mode}_{bits}.{format}'
    path.parent.mkdir(exist_ok=True)
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    export(
      network, variables, path, format=format, image_shape=shape, sites=sites
    )
  for warning in told:
    say(f'warning: {warning.message}')
  return path
