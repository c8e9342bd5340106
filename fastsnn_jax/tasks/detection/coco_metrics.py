"""COCO's twelve numbers, by its own code, pycocotools."""

import contextlib
import io

import numpy as np

from fastsnn_jax.errors import UserError

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

    AP50, AP75            at that IoU alone
    _small, medium, large objects below 32² pixels, below 96², and above
    AR_1, AR_10, AR_100   with so many detections of a class in an image

  All but AR_1 and AR_10 are with the 100 best ones. A crowd need not be found,
  and what lies in it does not count; difficult objects are taken for crowds.
  Corners are not rounded (reference behaviour D5).

  Args:
    predictions: arrays over N images with K places each: 'boxes' [N, K, 4] in
      shares of the image, 'scores' [N, K] and 'classes' [N, K], -1 where there
      is none.
    truth: 'boxes' [N, G, 4], 'label' [N, G], -1 where there is none, 'size'
      [N, 2], (width, height) in pixels, and [N, G] each 'crowd', 'difficult'
      and 'area' if there are any; area, in pixels, is that of the object, else
      of its box.

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
  crowd = np.zeros(label.shape, bool)
  for key in ('crowd', 'difficult'):
    crowd |= np.asarray(truth.get(key, False), bool)
  objects = _rows(truth['boxes'], label, size, iscrowd=crowd.astype(int))
  if 'area' in truth:
    areas = np.asarray(truth['area'], np.float64)[label >= 0]
    for item, area in zip(objects, areas.tolist(), strict=True):
      item['area'] = area
  scores = np.asarray(predictions['scores'], np.float64)
  detections = _rows(predictions['boxes'], kinds, size, score=scores)
  index = {
    'images': [{'id': i} for i in range(len(size))],
    'categories': [{'id': i} for i in np.unique(label[label >= 0]).tolist()],
  }
  with contextlib.redirect_stdout(io.StringIO()):
    sides = []
    for rows in (objects, detections):
      sides.append(COCO())
      sides[-1].dataset = {**index, 'annotations': rows}
      sides[-1].createIndex()
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
