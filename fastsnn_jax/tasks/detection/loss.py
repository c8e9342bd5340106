"""The loss of a YOLOv2 detector (reference behaviour D3.4)."""

import jax
import jax.numpy as jnp

from fastsnn_jax.tasks.detection import boxes as geometry
from fastsnn_jax.tasks.detection.targets import assign

# exp(tw) beyond this would only overflow: it is millions of cells.
_WIDEST = 15.0


def terms(outputs, batch, *, anchors, stride, conflict='last'):
  """The four terms of the loss, scalars, each summed over the real rows.

  The sums are over the boxes that answer for an object, but for the second of
  `objectness`, which is over the empty ones; p is a softmax and u the IoU of a
  box with its object:

    objectness_loss  5 sum (sigmoid(o) - u)^2 + sum sigmoid(o)^2, u constant
    class_loss       -sum log p(label)
    box_loss         sum weight (BCE(tx) + BCE(ty) + (Δtw)^2 + (Δth)^2)
    iou_loss         sum (1 - u)^2 / 2

  Args:
    outputs: [B, h, w, A (5 + C)].
    batch: 'boxes' [B, G, 4], 'label' [B, G] (-1: no object) and 'mask' [B].
    anchors, stride, conflict: see `targets.assign`.
  """
  grid = outputs.shape[1:3]
  settings = {'anchors': anchors, 'stride': stride, 'conflict': conflict}
  target = assign(batch['boxes'], batch['label'], grid=grid, **settings)
  objectness, logits, offsets = geometry.split(outputs, len(anchors))
  real = batch['mask'][:, None] > 0
  positive = (target.objectness == 1) & real
  negative = (target.objectness == 0) & real

  # Only what answers for an object may reach an exp or a square: elsewhere
  # the gradient of a finite loss would be 0 times inf.
  offsets = jnp.where(positive[..., None], offsets, 0)
  place, size = offsets[..., :2], offsets[..., 2:]
  sane = jnp.concatenate([place, jnp.minimum(size, _WIDEST)], -1)
  overlap = geometry.iou(
    geometry.decode(sane, grid, anchors), target.boxes.astype(offsets.dtype)
  )

  sure = jax.nn.sigmoid(objectness)
  missed = jnp.square(sure - jax.lax.stop_gradient(overlap))
  label = jnp.clip(target.label, 0, logits.shape[-1] - 1)
  log_p = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_p, label[..., None], -1)[..., 0]
  # Binary cross entropy of a logit x with t: softplus(x) - x t.
  off = jax.nn.softplus(place) - place * target.offsets[..., :2]
  off += jnp.square(size - target.offsets[..., 2:])

  def total(values, where=positive):
    return jnp.sum(jnp.where(where, values, 0))

  return {
    'objectness_loss': 5 * total(missed) + total(jnp.square(sure), negative),
    'class_loss': -total(picked),
    'box_loss': total(target.weight * jnp.sum(off, -1)),
    'iou_loss': total(jnp.square(1 - overlap) / 2),
  }


def loss(outputs, batch, **settings):
  """(mean over the real rows of the sum of `terms`, which has the arguments;
  {'loss': that sum over them, each term, 'count': their number})."""
  parts = terms(outputs, batch, **settings)
  total, count = sum(parts.values()), jnp.sum(batch['mask'])
  # A device may have no real row in the last batch of an epoch.
  sums = {'loss': total, **parts, 'count': count}
  return total / jnp.maximum(count, 1), sums
