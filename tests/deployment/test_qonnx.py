"""qonnx's own executor and clean-up take our Quant nodes."""

import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model
from support.deployment import agrees, drawn, images_of
from support.models import tiny_resnet

import fastsnn_jax as fs


def test_levels_are_ours(tmp_path):
  network = fs.Network(tuple(tiny_resnet(3, 4)), fs.QuantRelu(3))
  images = images_of(16, 8, 8, 3)
  variables = drawn(network, images)
  path = tmp_path / 'net.onnx'
  about = fs.export(
    *(network, variables, path),
    **{'format': 'qonnx', 'image_shape': (8, 8, 3), 'sites': True},
  )
  model = ModelWrapper(str(path))
  model.set_tensor_shape('images', list(images.shape))  # its executor's need
  model = cleanup_model(model)
  (entry,) = (x.name for x in model.graph.input)
  found = execute_onnx(model, {entry: np.asarray(images)})
  names = [x['name'] for x in about['outputs']]
  got = {
    name: found[x.name]
    for name, x in zip(names, model.graph.output, strict=True)
  }
  agrees(network, variables, images, got)
  grids = [x for x in model.graph.node if x.op_type == 'Quant']
  widths = {float(model.get_initializer(x.input[3])) for x in grids}
  assert widths == {3, 4, 8}  # levels, APoT weights up to 4 / 4, the ends
