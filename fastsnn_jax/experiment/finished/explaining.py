"""Cost, early exit and diagnosis of a conversion, for its report."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from fastsnn_jax import distributed, tasks
from fastsnn_jax.checkpoint import networks
from fastsnn_jax.errors import check_whole
from fastsnn_jax.evaluation.anytime import exit_curve
from fastsnn_jax.evaluation.costs.cost import cost, neurobench
from fastsnn_jax.evaluation.diagnosis.diagnose import diagnose
from fastsnn_jax.experiment import workdir as files
from fastsnn_jax.experiment.config import Conversion

_COSTED, _DIAGNOSED = 20, 100  # test images


class Explained:
  """Collects the three parts of the report, network by network.

  `held_out()` gives the images that choose when to exit.

  Attributes:
    results: 'cost', 'early_exit' and 'diagnosis', as `report.explained` has
      them.
    counts: {network: NeuroBench's keys}, for neurobench.json.
  """

  def __init__(self, test, held_out=None, batch=100):
    self.test, self.held_out, self.batch = test, held_out, batch
    self.results = {'cost': [], 'early_exit': [], 'diagnosis': []}
    self.counts = {}

  def shown(self, task, count):
    """So many test images as the network is shown them."""
    few = min(count, len(self.test))
    batch = next(self.test.batches(few, shared=False))
    return np.asarray(jax.jit(task.present)(jnp.asarray(batch['image'])))

  def add_float(self, network, variables):
    if distributed.first():
      images = self.shown(tasks.for_network(network), _COSTED)
      found = cost(network, jax.device_get(variables), images)
      self._costs(found, {'bits': 32, 'network': 'float'})

  def add(self, ann, variables, network, weights, task, name):
    """The kept spiking network `name` beside its quantised twin."""
    about = {'bits': ann.neuron.bits, 'T': network.neuron.steps}
    variables, weights = jax.device_get((variables, weights))
    if distributed.first():
      found = cost(network, weights, self.shown(task, _COSTED))
      self._costs(found['quantised'], {**about, 'network': 'quantised'})
      self._costs(found, {**about, 'network': f'spiking, {name}'})
      images = self.shown(task, _DIAGNOSED)
      seen = diagnose(ann, variables, network, weights, images)
      parts = {'first': seen.first, 'sites': seen.sites, 'words': seen.words}
      entry = {**about, 'network': name, **parts}
      self.results['diagnosis'].append(entry)
    about['network'] = name
    if self.held_out is not None and hasattr(task, 'margin'):
      held_out = self.held_out()
      if not task.labelled(held_out) or not task.labelled(self.test):
        return
      options = {'task': task, 'batch': self.batch}
      given = network, weights
      chosen = exit_curve(*given, held_out, **options)['chosen']
      curve = exit_curve(*given, self.test, **options)
      self.results['early_exit'].append({**about, **curve, 'chosen': chosen})

  def _costs(self, found, about):
    title = f'{about["bits"]} bits, {about["network"]}'
    self.counts[title] = neurobench(found)
    operations = found['SynapticOperations']
    keys = 'SynOps', 'spikes', 'packed_footprint', 'firing_rate'
    self.results['cost'].append(
      {
        **about,
        'macs': operations['Effective_MACs'],
        'acs': operations['Effective_ACs'],
        **{key: found.get(key) for key in (*keys, 'break_even_rate', 'words')},
        **{k: found['energy'][k] for k in ('operations', 'neurons', 'memory')},
        'sites': found['sites'],
      }
    )

  def save(self, directory):
    """Writes neurobench.json."""
    text = json.dumps(self.counts, indent=2)
    (directory / 'neurobench.json').write_text(text + '\n')


def diagnose_workdir(workdir, bits, *, images=256, data_path=None):
  """Diagnoses snn{bits} beside ann{bits} of a workdir, on test images.

  Writes report/diagnosis-{bits}-bits.txt and .png, and gives the `Diagnosis`.
  UserError for networks that are not there.
  """
  from fastsnn_jax.report import explained  # it loads matplotlib

  check_whole('--images', images, 1)
  workdir = files.at(workdir)
  experiment = files.experiment_of(workdir)
  settings = Conversion(data_path=data_path)
  config = dataclasses.replace(experiment, data=settings.of(experiment.data))
  files.trained_bits(workdir, (bits,))
  ann, variables = networks.load(workdir / f'ann{bits}')
  spiking, weights = networks.load(workdir / f'snn{bits}')
  task = tasks.for_network(ann)
  dataset = files.open_data(config)
  shown = Explained(dataset.test).shown(task, images)
  found = diagnose(ann, variables, spiking, weights, shown)
  report = workdir / 'report'
  report.mkdir(exist_ok=True)
  path = report / f'diagnosis-{bits}-bits'
  path.with_suffix('.txt').write_text(f'{found}\n')
  entry = {'bits': bits, 'T': spiking.neuron.steps, 'network': 'spiking'}
  entry |= {'first': found.first, 'sites': found.sites}
  explained.save(path.with_suffix('.png'), explained.diagnosis, [entry])
  return found
