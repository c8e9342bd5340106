"""COCO's twelve numbers, by its own code, pycocotools."""

import contextlib
import io

import numpy as np

from fastsnn_jax.errors import UserError
from fastsnn_jax.tasks.detection.boxes import spared

# In the order in which pycocotools gives them.
NAMES = (
  *('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large'),
  *('AR_1', 'AR_10', 'AR_100', 'AR_small', 'AR_medium', 'AR_large'),
)


def tools():
  """pycocotools' two classes; raises a UserError where it is not installed."""
  try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
  except ImportError as error:
    raise UserError(
      f"COCO's metrics need pycocotools ({error}); install it with: "
      "pip install 'fastsnn_jax[detection]'"
    ) from error
  return COCO, COCOeval


def coco(predictions, truth) -> dict[str, float]:
  """Average precision and recall, over classes and IoU 0.5, 0.55, …, 0.95.

  By falling score, a detection takes the object of its class in its image that
  it overlaps most of those not taken, if their IoU is at least the threshold.
  AP is the mean of the precision's falling envelope at recalls 0, 0.01, …, 1,
  AR the share of objects that are found.

    AP50, AP75              at that IoU alone
    _small, _medium, _large objects below 32² pixels, below 96², and above
    AR_1, AR_10             with so many detections of a class in an image; all
                            others are with 100

  A crowd need not be found, and what lies in it does not count; difficult
  objects are taken for crowds. Corners are not rounded (D5).

  Args:
    predictions, truth: as of `average_precision.voc`; `truth` has 'size', and
      may have 'area' [I, G], of the object and not of its box, in pixels.

  Returns:
    {name: value} of `NAMES`; NaN where there is no object to find.

  Raises:
    UserError: pycocotools is not installed.

  >>> box = np.array([[[0.1, 0.1, 0.5, 0.5]]])
  >>> found = {'boxes': box, 'scores': np.ones((1, 1)), 'classes': [[1]]}
  >>> truth = {'boxes': box, 'label': [[1]], 'size': [[100, 100]]}
  >>> numbers = coco(found, truth)
  >>> [round(numbers[name], 3) for name in ('AP', 'AP_medium', 'AP_large')]
  [1.0, 1.0, nan]
  """
  COCO, COCOeval = tools()
  size = np.asarray(truth['size'], np.float64)
  label = np.asarray(truth['label'])
  kinds = np.asarray(predictions['classes'])
  own = {'area': np.asarray(truth['area'], float)} if 'area' in truth else {}
  crowd = spared(truth).astype(int)
  objects = _rows(truth['boxes'], label, size, iscrowd=crowd, **own)
  scores = np.asarray(predictions['scores'], float)
  detections = _rows(predictions['boxes'], kinds, size, score=scores)
  index = {
    'images': [{'id': i} for i in range(len(size))],
    'categories': [{'id': i} for i in np.unique(label[label >= 0]).tolist()],
  }
  with contextlib.redirect_stdout(io.StringIO()):
    sides = COCO(), COCO()
    for side, rows in zip(sides, (objects, detections), strict=True):
      side.dataset = {**index, 'annotations': rows}
      side.createIndex()
    judge = COCOeval(*sides, 'bbox')
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
  return {
    name: float(value) if value >= 0 else float('nan')  # -1: nothing to find
    for name, value in zip(NAMES, judge.stats, strict=True)
  }


def _rows(boxes, kinds, size, **columns):
  """COCO's annotations of what is there, [N, K] each, in order."""
  scale = np.tile(size, 2)[:, None]
  corners = np.asarray(boxes, np.float64) * scale
  there = kinds >= 0
  image = np.nonzero(there)[0]
  low, high = corners[there][:, :2], corners[there][:, 2:]
  columns = {
    'image_id': image,
    'category_id': kinds[there],
    'bbox': np.concatenate([low, high - low], 1),
    'area': np.prod(high - low, 1),
    **{key: value[there] for key, value in columns.items()},
    # From 1: pycocotools takes 0 for no match.
    'id': np.arange(1, len(image) + 1),
  }
  values = zip(*(value.tolist() for value in columns.values()), strict=True)
  return [dict(zip(columns, row, strict=True)) for row in values]
