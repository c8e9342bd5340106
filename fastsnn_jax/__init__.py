"""Fast spiking networks from quantised ones, as pure JAX functions."""

from fastsnn_jax.architectures import build, models
from fastsnn_jax.architectures import register as register_model
from fastsnn_jax.checkpoint.networks import load
from fastsnn_jax.conversion.finetune import Tuning, finetune
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.data.named import register as register_dataset
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation.compare import compare
from fastsnn_jax.evaluation.evaluate import evaluate
from fastsnn_jax.experiment.config import (
  Compute,
  Conversion,
  Data,
  Experiment,
  Stage,
)
from fastsnn_jax.experiment.convert import convert
from fastsnn_jax.experiment.train import train
from fastsnn_jax.experiment.workdir import save
from fastsnn_jax.inference import Detections, classify, detect, segment
from fastsnn_jax.nn.integrate_and_fire import integrate_and_fire
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.network import Layer, Network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.quantizers import (
  apot_levels,
  quantize_activation,
  quantize_weight,
  quantize_weight_8bit,
)
from fastsnn_jax.nn.synapses import (
  Chain,
  Concat,
  GlobalAveragePool,
  MaxPool,
  Residual,
  SpaceToDepth,
)
from fastsnn_jax.nn.weights import Apot, EightBit
from fastsnn_jax.tasks import Task
from fastsnn_jax.tasks import register as register_task
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch
from fastsnn_jax.version import __version__

__all__ = [
  'Apot',
  'Chain',
  'Compute',
  'Concat',
  'Conv',
  'Conversion',
  'Data',
  'Dataset',
  'Dense',
  'Detections',
  'EightBit',
  'Experiment',
  'GlobalAveragePool',
  'IntegrateAndFire',
  'Layer',
  'MaxPool',
  'Network',
  'QuantRelu',
  'Relu',
  'Residual',
  'SpaceToDepth',
  'Stage',
  'Task',
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
  'register_dataset',
  'register_model',
  'register_task',
  'save',
  'save_torch',
  'segment',
  'to_spiking',
  'train',
]
