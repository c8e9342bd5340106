"""Fast spiking networks from quantised ones, as pure JAX functions."""

from fastsnn_jax.conversion import to_spiking
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation import compare, evaluate
from fastsnn_jax.experiment import convert, train
from fastsnn_jax.finetuning import Tuning, finetune
from fastsnn_jax.models import build, models
from fastsnn_jax.network import Layer, Network
from fastsnn_jax.neurons import (
  IntegrateAndFire,
  QuantRelu,
  Relu,
  integrate_and_fire,
)
from fastsnn_jax.predicting import Detections, classify, detect, segment
from fastsnn_jax.quantize import (
  apot_levels,
  quantize_activation,
  quantize_weight,
  quantize_weight_8bit,
)
from fastsnn_jax.storage import load, save
from fastsnn_jax.torch_import import load_torch, save_torch
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
