"""ImageNet weights of torchvision's ResNet-34 as the trunk of a detector or a
segmenter (reference behaviour D4, D7 and S3.2)."""

import re

from fastsnn_jax.errors import UserError
from fastsnn_jax.nn.network import Network
from fastsnn_jax.torch_interop.names import COUNTER
from fastsnn_jax.torch_interop.state_dict import load_torch, save_torch
from fastsnn_jax.torch_interop.wrappers import state_dict

_RULES = (
  (r'^conv1\.', 'layer0.block.0.'),
  (r'^bn1\.', 'layer0.block.1.'),
  (r'^(layer\d\.\d+)\.conv(\d)\.', r'\1.part\2.block.0.'),
  (r'^(layer\d\.\d+)\.bn(\d)\.', r'\1.part\2.block.1.'),
  (r'^(layer\d\.\d+)\.downsample\.', r'\1.downsample.block.'),
)


def with_trunk(variables, network: Network, source):
  """Variables with torchvision's ResNet-34 in the place of their trunk.

  The stem's 7 x 7 kernel is copied although its stride is 4 here, with no
  pooling, as in the official code; a shortcut that the official code leaves out
  by mistake (reference behaviour S-Q3) is copied too. Heads and read-out stay.

  `source` is torchvision's state_dict, or a file as for `load_torch`.
  UserError for a file of something else, or a network without such a trunk.
  """
  model, anchors = network.model, network.anchors or None
  ours = save_torch(variables, model, network.bits, anchors=anchors)
  prefix = next(iter(ours)).partition('layer0')[0]
  theirs = {}
  for key, value in state_dict(source, 'conv1.weight').items():
    if key.startswith('fc.') or key.endswith(COUNTER):
      continue
    name = key
    for pattern, official in _RULES:
      name = re.sub(pattern, official, name)
    if name == key:
      raise UserError(
        f"{key!r} is no key of torchvision's ResNet-34; give its state_dict"
      )
    theirs[prefix + name] = key, value
  wanted = f'{prefix}layer4.2.part2.block.0.weight'
  if wanted not in ours or wanted not in theirs:
    where = f'model {model}' if wanted not in ours else 'the file'
    raise UserError(
      f'{where} has no ResNet-34 trunk; pretrained weights go into '
      'yolov2_resnet34 and deeplabv3_resnet34, from a ResNet-34'
    )
  for name, (key, value) in theirs.items():
    expected = ours[name].shape if name in ours else 'no such array'
    if value.shape != expected:
      raise UserError(
        f'{key!r} has shape {value.shape}, but {model} has {expected}; is it a '
        'ResNet-34, and are the images RGB?'
      )
    ours[name] = value.astype(ours[name].dtype)
  return load_torch(ours, model, network.bits, anchors=anchors)
