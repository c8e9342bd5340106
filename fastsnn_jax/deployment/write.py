"""`export` and `load_export`: networks as files that other programs run."""

import functools
import importlib
import importlib.metadata
import json
import numbers
import os
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax.deployment import stablehlo
from fastsnn_jax.errors import UserError, told
from fastsnn_jax.nn.network import Network, check_network
from fastsnn_jax.nn.neurons import Relu
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.version import __version__

FORMATS = 'onnx', 'qonnx', 'stablehlo', 'nir'
_RESERVED = 'images', 'output', 'step', 'fired'
_PACKAGES = {
  'onnx': 'onnx',
  'qonnx': 'onnx',
  'nir': 'nir',
  'stablehlo': 'flatbuffers',
}


def export(
  network: Network,
  variables,
  path,
  *,
  format: str,
  image_shape: tuple[int, ...],
  sites: bool = False,
) -> dict:
  r"""Writes a network as a file that runs without this library.

    'onnx': levels as whole numbers between QuantizeLinear and
      DequantizeLinear, weights as integers of 2 to 16 bits; of a spiking
      network, one time step as a graph, with voltages and counts going in and
      out.
    'qonnx': Quant nodes, for FINN and hls4ml; quantised networks only.
    'stablehlo': any network, of a function too, as one program of `jax.export`
      for CPU, CUDA and TPU; `fs.load_export` runs it.
    'nir': the unsigned spiking network, for neuromorphic tools, with a warning
      of what the format does not say.

  Graphs take `images`, [N, H, W, C], normalised float32, of any N, and give
  `output`. A JSON file beside it, PATH.json, says what is in it: inputs,
  outputs, thetas, T, mode, classes, mean and std, versions. docs/deployment.md
  has the details.

  Args:
    network, variables: float, quantised or spiking, folded or not.
    path: of the file; one that is there is replaced.
    format: one of the four.
    image_shape: (H, W, C) of the images, or the axes that the network takes.
    sites: one more output for each row that fires, under its name and with
      channels last: its levels as whole numbers, or its spikes.

  Returns:
    What the JSON file says.

  Raises:
    UserError: an unknown format, a package that is missing (the extra
      `export`), a network that the format cannot say.

  >>> import tempfile, jax
  >>> import fastsnn_jax as fs
  >>> rows = [
  ...   fs.Layer('stem', fs.Conv(4)),
  ...   fs.Layer('head', fs.Dense(2, norm=False), ('stem',)),
  ... ]
  >>> network = fs.Network(rows, fs.QuantRelu(2))
  >>> images = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
  >>> variables = network.init(jax.random.key(1), images)
  >>> with tempfile.TemporaryDirectory() as directory:
  ...   path = f'{directory}/net.onnx'
  ...   about = fs.export(
  ...     network, variables, path, format='onnx', image_shape=(4, 4, 1)
  ...   )
  >>> about['mode'], about['T'], about['outputs'][0]['shape']
  ('quantised', 3, ['N', 2])
  """
  image_shape = _checked(network, variables, format, image_shape)
  path = _writable(path)
  about = {
    'format': format,
    'file': path.name,
    'image_shape': list(image_shape),
    **_described(network),
    'versions': {'fastsnn_jax': __version__, 'jax': jax.__version__},
  }
  if format == 'stablehlo':
    _need(format)
    data = stablehlo.program(network, variables, image_shape, sites)
    path.write_bytes(data)
    about |= {
      'platforms': list(stablehlo.PLATFORMS),
      'inputs': [
        {'name': 'images', 'dtype': 'float32', 'shape': ['N', *image_shape]}
      ],
      'sites': _thetas(network, variables),
      'sites_are_outputs': sites,
    }
  else:
    _only_tables(network, format)
    names = {x.name for x in network.firing} if sites else ()
    if taken := [x for x in names if x in _RESERVED or x[0] == '/']:
      raise UserError(
        f'layer {min(taken)!r}: with sites=True each row is an output of its '
        f'name, but {", ".join(_RESERVED)} and /… are taken; rename it'
      )
    writer = _module(format)
    found = writer.write(network, variables, path, format, image_shape, sites)
    about['versions'] |= found.pop('versions')
    about |= {**found, 'sites_are_outputs': sites and format != 'nir'}
  about['bytes'] = path.stat().st_size
  for problem in about.get('warnings', ()):
    warnings.warn(problem, stacklevel=2)
  text = json.dumps(about, indent=2, allow_nan=False)
  _beside(path).write_text(text + '\n', encoding='utf-8')
  return about


def load_export(path):
  """The program that `fs.export` wrote with format='stablehlo'.

  It needs neither the network's code nor Flax: `jax.export.deserialize` of the
  file's bytes gives the same program.

  Returns:
    (run, about): images [N, H, W, C] -> output, or (output, {row: levels}) of
    an export with sites; and what the JSON beside it says.

  Raises:
    UserError: no such file, or not such a program.

  >>> import tempfile, jax
  >>> import fastsnn_jax as fs
  >>> rows = [
  ...   fs.Layer('stem', fs.Conv(4)),
  ...   fs.Layer('head', fs.Dense(2, norm=False), ('stem',)),
  ... ]
  >>> network = fs.Network(rows, fs.QuantRelu(2))
  >>> images = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
  >>> variables = network.init(jax.random.key(1), images)
  >>> with tempfile.TemporaryDirectory() as directory:
  ...   path = f'{directory}/net.stablehlo'
  ...   about = fs.export(
  ...     network, variables, path, format='stablehlo', image_shape=(4, 4, 1)
  ...   )
  ...   run, about = fs.load_export(path)
  >>> run(images).shape, about['mode']
  ((3, 2), 'quantised')
  """
  path = _path(path)
  if not path.is_file():
    raise UserError(f'{path}: there is no such file; fs.export writes one')
  try:
    about = json.loads(_beside(path).read_text(encoding='utf-8'))
  except (OSError, ValueError):
    about = {}  # the program runs without it
  return stablehlo.opened(path), about


def mode_of(network) -> str:
  """'float', 'quantised', 'unsigned', 'signed' or 'settled'."""
  neuron = network.neuron
  if not network.spiking:
    return 'float' if isinstance(neuron, Relu) else 'quantised'
  return (
    'settled' if neuron.settle else 'signed' if neuron.signed else 'unsigned'
  )


def _checked(network, variables, format, image_shape):
  """`image_shape` as a tuple; UserError for what no format can write."""
  check_network(network, variables)
  if not isinstance(format, str) or format not in FORMATS:
    raise UserError(f'format={format!r}: the formats are {", ".join(FORMATS)}')
  try:
    shape = tuple(image_shape)
  except TypeError:
    shape = ()
  whole = all(
    isinstance(x, numbers.Integral) and not isinstance(x, bool) and x > 0
    for x in shape
  )
  if not shape or not whole:
    raise UserError(
      f'image_shape={image_shape!r}, but it must be whole numbers, (H, W, C)'
    )
  shape = tuple(map(int, shape))
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  try:
    jax.eval_shape(functools.partial(network.apply, variables), images)
  except UserError:
    raise
  except Exception as error:  # whatever a function makes of other images
    raise UserError(
      f'image_shape={shape}: the network does not run on such images '
      f'({told(error)}); give the shape of those that it was made for'
    ) from error
  return shape


def _only_tables(network, format):
  mode = mode_of(network)
  if isinstance(network, FunctionNetwork):
    raise UserError(
      f'format={format!r}: a network of a function has no table of layers; '
      "export it with format='stablehlo'"
    )
  wanted = {'qonnx': 'quantised', 'nir': 'unsigned'}.get(format, mode)
  if mode == wanted:
    return
  if format == 'qonnx':
    raise UserError(
      f"format='qonnx': the network is {mode}, but Quant nodes say quantised "
      "ones only; give the one with QuantRelu neurons, or format='onnx'"
    )
  raise UserError(
    f"format='nir': the network is {mode}, but NIR's neurons take no spike "
    "back and know no T; give fs.to_spiking(network, 'unsigned'), or "
    "format='onnx'"
  )


def _described(network):
  neuron = network.neuron
  about = {
    'model': network.model,
    'task': network.task,
    'mode': mode_of(network),
    'bits': network.bits,
    'classes': list(network.classes),
    'mean': list(network.mean),
    'std': list(network.std),
    'units': {
      'images': '(pixel / 255 - mean) / std, channels last',
      'level': 'theta / T',
      'spike': 'theta',
    },
  }
  if network.spiking:
    about['T'] = neuron.steps
    about['neuron'] = {
      name: getattr(neuron, name)
      for name in ('signed', 'negative_threshold', 'max_count', 'settle')
    }
  elif not isinstance(neuron, Relu):
    about['T'] = 2**neuron.bits - 1
  if network.anchors:
    about |= {'anchors': network.anchors, 'overlap': network.overlap}
  return about


def _thetas(network, variables):
  thetas = network.thetas(variables).items()
  return {name: {'theta': np.squeeze(theta).tolist()} for name, theta in thetas}


def _need(format):
  package = _PACKAGES[format]
  try:
    importlib.import_module(package)
  except ImportError as error:
    raise UserError(
      f'format={format!r} needs the package {package} ({error}); install it '
      "with: pip install 'fastsnn_jax[export]'"
    ) from None


def _module(format):
  _need(format)
  name = 'nir_file' if format == 'nir' else 'onnx_file'
  return importlib.import_module(f'fastsnn_jax.deployment.{name}')


def _path(path):
  try:
    name = os.fspath(path)
  except TypeError:
    name = ''
  if not isinstance(name, str) or not name or '\0' in name:
    raise UserError(f'path={path!r}: no file can be there; name one')
  return pathlib.Path(name).expanduser()


def _writable(path):
  path = _path(path)
  if path.is_dir():
    raise UserError(f'{path}: it is a directory; name a file in it')
  if not path.parent.is_dir():
    raise UserError(f'{path}: there is no directory {path.parent}; make it')
  return path


def _beside(path):
  return path.with_name(f'{path.name}.json')
