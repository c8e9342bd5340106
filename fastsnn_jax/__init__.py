"""Fast spiking networks from quantised ones, as pure JAX functions."""

from fastsnn_jax.architectures import build, models
from fastsnn_jax.checkpoint.networks import load, save
from fastsnn_jax.conversion.finetune import Tuning, finetune
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation.evaluate import compare, evaluate
from fastsnn_jax.experiment.train import convert, train
from fastsnn_jax.inference import Detections, classify, detect, segment
from fastsnn_jax.nn.integrate_and_fire import integrate_and_fire
from fastsnn_jax.nn.network import Layer, Network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.quantizers import (
  apot_levels,
  quantize_activation,
  quantize_weight,
  quantize_weight_8bit,
)
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch
from fastsnn_jax.version import __version__

__all__ = [
  'Detections',
  'IntegrateAndFire',
  'Layer',
  'Network',
  'QuantRelu',
  'Relu',
  'Tuning',
  'UserError',
  '__version__',
  'apot_levels',
  'build',
  'classify',
  'compare',
  'convert',
  'detect',
  'evaluate',
  'finetune',
  'integrate_and_fire',
  'load',
  'load_torch',
  'models',
  'quantize_activation',
  'quantize_weight',
  'quantize_weight_8bit',
  'save',
  'save_torch',
  'segment',
  'to_spiking',
  'train',
]
