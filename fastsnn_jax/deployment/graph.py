"""An ONNX graph that is being built: nodes, constants, inputs and outputs."""

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

# Whole numbers of a kernel are kept in the smallest of these, with the opset
# from which dequantisation takes it.
_WHOLE = (
  (ml_dtypes.int2, -2, 1, 25),
  (ml_dtypes.int4, -8, 7, 21),
  (np.int8, -128, 127, 21),
  (np.int16, -(2**15), 2**15 - 1, 21),
)
_IR = {13: 8, 21: 10, 25: 13}


class Graph:
  """Nodes in the order in which they run; names are made here.

  A node is called after its row. What lies between nodes has numbers: names
  would take a fifth of the file of a ResNet-20 of 2 bits.
  """

  def __init__(self, opset, domains=()):
    self.opset, self.domains = opset, domains
    self.nodes, self.constants = [], {}
    self.inputs, self.outputs, self._taken = [], [], set()
    self.scope, self._tensors = '', 0

  def unique(self, name):
    found, count = name, 2
    while found in self._taken:
      found, count = f'{name}_{count}', count + 1
    self._taken.add(found)
    return found

  def tensor(self):
    self._tensors += 1
    return f'/{self._tensors}'

  def node(self, kind, *inputs, **attributes):
    """The name of a node's output; inputs that are no names are constants."""
    names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
    name, output = self.unique(f'{self.scope}/{kind}'), self.tensor()
    self.nodes.append(
      helper.make_node(kind, names, [output], name, **attributes)
    )
    return output

  def constant(self, value):
    value = np.asarray(value)
    key = value.dtype.str, value.dtype.name, value.shape, value.tobytes()
    if key not in self.constants:
      self.constants[key] = numpy_helper.from_array(value, self.tensor())
    return self.constants[key].name

  def whole(self, kernel):
    """A constant in the smallest type of whole numbers that holds it."""
    low, high = kernel.min(initial=0), kernel.max(initial=0)
    for dtype, least, most, opset in _WHOLE:
      if least <= low and high <= most:
        self.opset = max(self.opset, opset)
        return self.constant(kernel.astype(dtype))
    raise AssertionError('kernels have at most 16 bits')

  def input(self, name, dtype, shape):
    return self._declared(self.inputs, self.unique(name), dtype, shape)

  def output(self, name, value, dtype, shape):
    """Gives a tensor the name of an output."""
    name = self.unique(name)
    self.nodes.append(helper.make_node('Identity', [value], [name], name))
    return self._declared(self.outputs, name, dtype, shape)

  def _declared(self, where, name, dtype, shape):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    where.append(helper.make_tensor_value_info(name, kind, shape))
    return name

  def described(self):
    """{'inputs': …, 'outputs': …}: names, types and shapes."""

    def one(info):
      kind = info.type.tensor_type
      return {
        'name': info.name,
        'dtype': helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        'shape': [d.dim_param or d.dim_value for d in kind.shape.dim],
      }

    return {
      'inputs': [one(x) for x in self.inputs],
      'outputs': [one(x) for x in self.outputs],
    }

  def _needed(self):
    """(nodes, constants) that the outputs depend on."""
    needed, nodes = {x.name for x in self.outputs}, []
    for node in reversed(self.nodes):
      if needed & {*node.output}:
        needed |= {*node.input}
        nodes.insert(0, node)
    return nodes, [x for x in self.constants.values() if x.name in needed]

  def model(self, name, producer, version):
    nodes, constants = self._needed()
    graph = helper.make_graph(nodes, name, self.inputs, self.outputs, constants)
    sets = [helper.make_opsetid('', self.opset)]
    sets += [helper.make_opsetid(domain, 1) for domain in self.domains]
    model = helper.make_model(
      graph,
      opset_imports=sets,
      ir_version=_IR[self.opset],
      producer_name=producer,
      producer_version=version,
    )
    onnx.checker.check_model(model)
    return model
