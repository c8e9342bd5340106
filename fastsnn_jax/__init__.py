"""Fast spiking networks from quantised ones, as pure JAX functions."""

from fastsnn_jax.architectures import build, models
from fastsnn_jax.architectures import register as register_model
from fastsnn_jax.checkpoint.networks import load
from fastsnn_jax.conversion.finetune import Tuning, finetune
from fastsnn_jax.conversion.to_spiking import to_spiking
from fastsnn_jax.data.named import register as register_dataset
from fastsnn_jax.data.own import Dataset
from fastsnn_jax.deployment.write import export, load_export
from fastsnn_jax.errors import UserError
from fastsnn_jax.evaluation.anytime import anytime, exit_curve
from fastsnn_jax.evaluation.compare import compare
from fastsnn_jax.evaluation.costs.cost import cost
from fastsnn_jax.evaluation.costs.energy import EnergyModel
from fastsnn_jax.evaluation.diagnosis.diagnose import Diagnosis, diagnose
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
from fastsnn_jax.nn.folded.fold import fold
from fastsnn_jax.nn.integrate_and_fire import integrate_and_fire
from fastsnn_jax.nn.layers import Conv, Dense
from fastsnn_jax.nn.network import Network
from fastsnn_jax.nn.neurons import IntegrateAndFire, QuantRelu, Relu
from fastsnn_jax.nn.quantizers import (
  apot_levels,
  quantize_activation,
  quantize_weight,
  quantize_weight_8bit,
)
from fastsnn_jax.nn.synapses import (
  AveragePool,
  Chain,
  Concat,
  GlobalAveragePool,
  MaxPool,
  Residual,
  SpaceToDepth,
)
from fastsnn_jax.nn.tables.table import Layer
from fastsnn_jax.nn.weights import Apot, EightBit
from fastsnn_jax.tasks import Task
from fastsnn_jax.tasks import register as register_task
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch
from fastsnn_jax.tracing.calibrate import calibrate
from fastsnn_jax.tracing.explain import explain
from fastsnn_jax.tracing.function import FunctionNetwork
from fastsnn_jax.tracing.traced import from_function
from fastsnn_jax.version import __version__

__all__ = ['UserError', '__version__']
__all__ += ['Compute', 'Conversion', 'Data', 'Experiment', 'Stage', 'Tuning']
__all__ += ['Dataset', 'Task', 'register_dataset', 'register_task']
__all__ += ['Apot', 'AveragePool', 'Chain', 'Concat', 'Conv', 'Dense']
__all__ += ['EightBit', 'GlobalAveragePool', 'IntegrateAndFire', 'Layer']
__all__ += ['MaxPool', 'Network', 'QuantRelu', 'Relu', 'Residual']
__all__ += ['SpaceToDepth']
__all__ += ['apot_levels', 'integrate_and_fire', 'quantize_activation']
__all__ += ['quantize_weight', 'quantize_weight_8bit']
__all__ += ['build', 'load', 'load_torch', 'models', 'register_model', 'save']
__all__ += ['compare', 'convert', 'evaluate', 'finetune', 'to_spiking', 'train']
__all__ += ['Diagnosis', 'EnergyModel', 'anytime', 'cost', 'diagnose']
__all__ += ['exit_curve']
__all__ += ['FunctionNetwork', 'calibrate', 'explain', 'from_function']
__all__ += ['Detections', 'classify', 'detect', 'fold', 'save_torch']
__all__ += ['export', 'load_export', 'segment']
