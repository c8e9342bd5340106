"""ONNX and QONNX files of a table of layers."""

import onnx

from fastsnn_jax.deployment.nodes import walk
from fastsnn_jax.deployment.one_step import OneStep
from fastsnn_jax.deployment.quantised import Qonnx, Quantised
from fastsnn_jax.version import __version__


def write(network, variables, path, format, image_shape, sites) -> dict:
  """Writes the file; what is to be told of it."""
  kind = Qonnx if format == 'qonnx' else Quantised
  make = (OneStep if network.spiking else kind)(network, image_shape, sites)
  walk(network, variables, image_shape, make)
  model = make.graph.model(network.model or 'network', 'fastsnn', __version__)
  path.write_bytes(model.SerializeToString())
  about = {
    'opset': make.graph.opset,
    'ir_version': model.ir_version,
    'versions': {'onnx': onnx.__version__},
    **make.graph.described(),
    'sites': make.known,
  }
  if network.spiking:
    about['states'] = make.states
  return about
