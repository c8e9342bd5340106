"""Tables of the YOLOv2 detectors (reference behaviour D1).

Activations only are quantised, at every bit width. The read-out is a map with a
row of channels per cell: for A anchors and C classes, A objectness logits, then
A times C class logits, then A times (tx, ty, tw, th).
"""

import dataclasses
import functools
import math

from fastsnn_jax.architectures.resnet import chain, resnet34, row
from fastsnn_jax.nn.layers import Conv
from fastsnn_jax.nn.synapses import Chain, Concat, SpaceToDepth
from fastsnn_jax.nn.tables.table import Layer
from fastsnn_jax.nn.weights import torch_bias, torch_uniform

# (width, height) in cells of 32 pixels, at every image size.
VOC_ANCHORS = (
  *((1.19, 1.98), (2.79, 4.59), (4.53, 8.92), (8.06, 5.29), (10.32, 10.65)),
)
COCO_ANCHORS = (
  *((0.53, 0.79), (1.71, 2.36), (2.89, 6.44), (6.33, 3.79), (9.03, 9.74)),
)
# In cells of 16 pixels.
SMALL_ANCHORS = ((0.8, 1.1), (1.4, 1.9), (2.4, 3.0))


def anchors_for(classes: int) -> tuple[tuple[float, float], ...]:
  """The official anchors: COCO's for its 80 classes, VOC's for all else."""
  return COCO_ANCHORS if classes == 80 else VOC_ANCHORS


@dataclasses.dataclass(frozen=True)
class RareObjects:
  """PyTorch's bias, but each anchor starts out sure to one in a hundred: else
  the many empty boxes would make up all of the first losses."""

  anchors: int

  def __call__(self, key, kernel_shape):
    prior = -math.log(99)
    return torch_bias(key, kernel_shape).at[: self.anchors].set(prior)


_row = functools.partial(row, kernel_init=torch_uniform)
_chain = functools.partial(chain, kernel_init=torch_uniform)


def _passed_through(name, features, fine, coarse):
  """A convolution over the coarse map and the fine one's pixels as channels."""
  joined = Concat((SpaceToDepth(2), None))
  synapse = Chain((joined, Conv(features, kernel_init=torch_uniform)))
  return Layer(name, synapse, (fine, coarse))


def _prediction(classes, anchors, inputs, bias_init=torch_bias):
  outputs, last = len(anchors) * (5 + classes), {'kernel': 1, 'norm': False}
  return _row('pred', outputs, inputs, **last, bias_init=bias_init)


def yolov2_tiny(bits, classes, anchors):
  """Eight 3 x 3 convolutions; the first five halve the map."""
  features, strides = (16, 32, 64, 128, 256, 512, 1024), (2, 2, 2, 2, 2, 1, 1)
  return [
    *_chain(features, strides),
    _row('head', 1024, 'layer7'),
    _prediction(classes, anchors, 'head'),
  ]


def yolov2_resnet34(bits, classes, anchors):
  """ResNet-34 with a stem of stride 4; its third stage is passed through."""
  return [
    *resnet34(),
    _row('head1', 1024, 'layer4.2.part2', kernel=1),
    _row('head2', 1024, 'head1'),
    _row('head3', 1024, 'head2'),
    _row('route_layer', 128, 'layer3.5.part2', kernel=1),
    _passed_through('head4', 1024, 'route_layer', 'head3'),
    _prediction(classes, anchors, 'head4', RareObjects(len(anchors))),
  ]


def small_yolo(bits, classes, anchors):
  """Ours, for small images: cells of 16 pixels, and one map passed through."""
  return [
    *_chain((16, 32, 64, 128, 128), (2, 2, 2, 2, 1)),
    _row('route_layer', 32, 'layer3', kernel=1),
    _passed_through('head', 128, 'route_layer', 'layer5'),
    _prediction(classes, anchors, 'head', RareObjects(len(anchors))),
  ]
