"""One time step of a spiking network as an ONNX graph; its caller has time.

The sums of spikes are of whole numbers, and the scales follow behind them, as
in a folded network: so the spikes are the same.
"""

import numpy as np

from fastsnn_jax.deployment.nodes import Value
from fastsnn_jax.deployment.operators import Operators
from fastsnn_jax.errors import UserError


class OneStep(Operators):
  """Inputs are images, the number of the step from 1, voltages and counts;
  outputs are the answer so far, spikes fired, new voltages and counts."""

  def __init__(self, network, image_shape, sites):
    super().__init__(network, image_shape, sites)
    self.rule, graph = network.neuron, self.graph
    step, steps = graph.input('step', np.int64, []), np.int64(self.rule.steps)
    lit = graph.node('LessOrEqual', step, steps)
    self.lit = graph.node('Cast', lit, to=1)  # 1 while images are shown
    self.parts = graph.node('Cast', graph.node('Min', step, steps), to=1)
    self.fired, self.states = [], []

  def image(self, read_out=False):
    if read_out:
      return super().image()
    shown = self.graph.node('Mul', self.pixels.name, self.lit)
    return self.turned_in(self.pixels._replace(name=shown))

  def weighted(self, x, weights, shape):
    graph = self.graph
    if weights.whole:
      kernel = graph.whole(self.laid_out(weights.kernel, weights, x))
      kernel = graph.node('DequantizeLinear', kernel, np.float32(1))
    else:
      kernel = self.laid_out(weights.kernel, weights, x)
    y = self.product(x, kernel, weights)
    scale = weights.scale * np.float32(x.unit)
    y = graph.node('Mul', y, self.along(scale, weights))
    offset = self.along(weights.offset, weights)
    if not self.last:
      offset = graph.node('Mul', offset, self.lit)
    return Value(graph.node('Add', y, offset), shape)

  def largest(self, x, window, shape):
    raise UserError(
      'MaxPool needs the sums of all steps so far, which a graph of one step '
      'has not; use fs.AveragePool, or export the quantised network'
    )

  def neuron(self, current, theta):
    graph, rule, shape = self.graph, self.rule, current.shape
    theta, whole = np.float32(theta), {'to': 6}  # int32
    current = self.floats(current)  # of a row that only pools
    states = [
      self._state(f'{kind}/{self.name}', dtype, shape, initial)
      for kind, dtype, initial in (
        ('voltage', np.float32, float(theta / 2)),
        ('count', np.int32, 0),
      )
    ]
    voltage, count = (state['input'] for state in states)
    voltage = graph.node('Add', voltage, self.turned_out(current))
    fire = graph.node('GreaterOrEqual', voltage, theta)
    if rule.max_count is not None:
      room = graph.node('Less', count, np.int32(rule.max_count))
      fire = graph.node('And', fire, room)
    lower = graph.node('Sub', voltage, theta)
    voltage = graph.node('Where', fire, lower, voltage)
    spike = graph.node('Cast', fire, **whole)
    count = graph.node('Add', count, spike)
    if rule.signed:
      low = np.float32(rule.negative_threshold)
      back = graph.node('LessOrEqual', voltage, low)
      some = graph.node('Greater', count, np.int32(0))
      back = graph.node('And', back, some)
      higher = graph.node('Add', voltage, theta)
      voltage = graph.node('Where', back, higher, voltage)
      back = graph.node('Cast', back, **whole)
      count = graph.node('Sub', count, back)
      spike = graph.node('Sub', spike, back)
    for state, value in zip(states, (voltage, count), strict=True):
      self._after(state, value, shape)
    axes = np.arange(1, len(shape) + 1)
    size = graph.node('Abs', spike)
    self.fired.append(graph.node('ReduceSum', size, axes, keepdims=0))
    self.known[self.name] = {'shape': list(shape), 'theta': float(theta)}
    if self.sites:
      train = graph.node('Cast', spike, to=3)  # int8
      graph.output(self.name, train, np.int8, ['N', *shape])
    mean = graph.node('Div', graph.node('Cast', count, to=1), self.parts)
    spike = graph.node('Cast', spike, to=1)
    both = (Value(x, shape, float(theta)) for x in (spike, mean))
    return tuple(map(self.turned_in, both))

  def _state(self, name, dtype, shape, initial):
    shape = ['N', *shape]
    self.graph.input(name, dtype, shape)
    state = {'input': name, 'output': f'{name}/next', 'initial': initial}
    self.states.append({**state, 'shape': shape, 'dtype': np.dtype(dtype).name})
    return self.states[-1]

  def _after(self, state, value, shape):
    self.graph.output(
      state['output'], value, np.dtype(state['dtype']), ['N', *shape]
    )

  def output(self, current):
    super().output(current)
    total, *rest = self.fired
    for one in rest:
      total = self.graph.node('Add', total, one)
    self.graph.output('fired', total, np.int32, ['N'])
