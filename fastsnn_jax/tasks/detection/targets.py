"""Which of a detector's boxes answers for which object."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.boxes import at_origin, iou

CONFLICTS = ('last', 'positive')
_SIMILAR = 0.5  # IoU with an object from which an anchor is not called empty


class Targets(NamedTuple):
  """What each of N boxes ought to say; of use where objectness is 1."""

  objectness: jax.Array  # [B, N]; 1 for an object, 0 for none, -1: left alone
  label: jax.Array  # [B, N]
  offsets: jax.Array  # [B, N, 4], (tx, ty, tw, th), the first two after sigmoid
  weight: jax.Array  # [B, N], 2 - share of the image: small boxes count too
  boxes: jax.Array  # [B, N, 4]


def assign(boxes, label, *, grid, anchors, stride, conflict='last') -> Targets:
  """Targets from padded objects, on the device.

  The cell that holds an object's centre answers for it, with the anchor whose
  shape is most like the object's. Other anchors of the cell with IoU > 0.5 are
  left alone. Objects of less than a pixel, or with a centre outside the image,
  are left out.

  Args:
    boxes: [B, G, 4], objects in the data's order.
    label: [B, G], classes, -1 where there is no object.
    grid: (h, w), cells of the read-out.
    anchors: A times (width, height), in cells.
    stride: side of a cell in pixels.
    conflict: 'last': what is written later stands, so that an object may make
      another's anchor be left alone (D-Q7); 'positive': it may not.

  Raises:
    UserError: another `conflict`.

  >>> boxes = jnp.array([[[0.5, 0.5, 1.0, 1.0]]])
  >>> made = assign(boxes, jnp.array([[7]]), grid=(2, 2), anchors=((1, 1),),
  ...               stride=32)
  >>> made.objectness.tolist(), made.label.tolist()
  ([[0.0, 0.0, 0.0, 1.0]], [[0, 0, 0, 7]])
  """
  if conflict not in CONFLICTS:
    raise UserError(f'conflict={conflict!r}: it is {" or ".join(CONFLICTS)}')
  dtype = jnp.promote_types(boxes.dtype, jnp.float32)
  boxes, anchors = boxes.astype(dtype), jnp.asarray(anchors, dtype)
  height, width = grid
  scale = jnp.array([width, height], dtype)  # cells to an image

  def place(table, truth):
    box, label = truth
    size = (box[2:] - box[:2]) * scale
    centre = (box[:2] + box[2:]) / 2 * scale
    inside = jnp.all((centre >= 0) & (centre < scale))
    real = (label >= 0) & jnp.all(size * stride >= 1) & inside
    size = jnp.where(real, size, 1)
    column, row = cell = jnp.where(inside, jnp.floor(centre), 0).astype(int)

    similar = iou(at_origin(size)[None], at_origin(anchors))
    best = jnp.arange(len(anchors)) == jnp.argmax(similar)

    here = row * width + column
    old = table[here]
    weight, shape = 2 - jnp.prod(size / scale), jnp.log(size[None] / anchors).T
    at = centre - cell.astype(dtype)
    new = (jnp.ones((), dtype), label.astype(dtype), *at, *shape, weight, *box)
    new = jnp.stack(jnp.broadcast_arrays(*new), -1)
    alone = (similar > _SIMILAR) & ~best
    if conflict == 'positive':
      alone &= old[:, 0] != 1
    left = old.at[:, 0].set(-1).at[:, 6].set(-1)
    changed = jnp.where(alone[:, None], left, old)
    changed = jnp.where(best[:, None], new, changed)
    return table.at[here].set(jnp.where(real, changed, old)), None

  def image(boxes, label):
    # The numbers of `Targets` for each anchor of each cell.
    empty = jnp.zeros((height * width, len(anchors), 11), dtype)
    table, _ = jax.lax.scan(place, empty, (boxes, label))
    return table.reshape(-1, 11)

  table = jax.vmap(image)(boxes, label)
  return Targets(
    objectness=table[..., 0],
    label=table[..., 1].astype(jnp.int32),
    offsets=table[..., 2:6],
    weight=table[..., 6],
    boxes=table[..., 7:],
  )
