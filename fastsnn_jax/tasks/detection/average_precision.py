"""VOC's average precision, on the host and in NumPy.

It is no sum of per-image numbers, for it sorts the detections of all images.
But which object a detection hits is decided within its image, so that part is
done for all images at once.
"""

import numpy as np

from fastsnn_jax.tasks.detection.boxes import iou_on_host

_RECALLS = np.arange(0, 1.1, 0.1)  # 0.30000000000000004, as in VOC's own code
_CHUNK = 64  # images whose pairs of boxes are in memory at a time


def voc(predictions, truth, classes, *, overlap=0.5, rounded=False):
  """Average precision of every class, and their mean.

  A detection is of the object of its class in its image that it overlaps most.
  By falling score, it is a hit if their IoU is over `overlap` and the object
  was not hit before; it does not count if the object is difficult; else it is
  a miss. Difficult objects need not be found. Equal scores keep their order.

    'area'     integral of the precision's falling envelope over recall
    '11point'  mean of the envelope at recalls 0, 0.1, …, 1

  Args:
    predictions: arrays over I images with K places each: 'boxes' [I, K, 4],
      'scores' [I, K] and 'classes' [I, K], -1 where there is none.
    truth: 'boxes' [I, G, 4] in the same shares of the image, 'label' [I, G], -1
      where there is none, 'difficult' [I, G] if any, 'crowd' [I, G] if any,
      which counts as difficult, and for `rounded` 'size'
      [I, 2], (width, height) in pixels.
    classes: their number.
    overlap: IoU that a hit has to be over.
    rounded: scores to 3 decimals and corners to 1 in pixels, as the official
      code prints them before it reads them again.

  Returns:
    {'area', '11point', 'objects', 'detections', 'curves'}: lists over classes,
    the last of (recall, precision) after each detection; and 'mean_area',
    'mean_11point' over the classes that have objects. A class without objects
    has NaN; one without detections has 0.

  >>> box = np.array([[[0.1, 0.1, 0.5, 0.5]]])
  >>> found = {'boxes': box, 'scores': np.ones((1, 1)), 'classes': [[1]]}
  >>> voc(found, {'boxes': box, 'label': [[1]]}, 2)['area']
  [nan, 1.0]
  """
  label = np.asarray(truth['label'])
  difficult = np.zeros(label.shape, bool)
  for mark in ('difficult', 'crowd'):
    difficult |= np.asarray(truth.get(mark, False), bool)
  kinds = np.asarray(predictions['classes'])
  scores = np.asarray(predictions['scores'], np.float64)
  boxes = np.asarray(predictions['boxes'], np.float64)
  objects = np.asarray(truth['boxes'], np.float64)
  if label.shape[1] == 0:  # a place for no object, that one may point at
    label, difficult = (np.full((len(label), 1), x) for x in (-1, False))
    objects = np.zeros((len(label), 1, 4))
  if rounded:
    # Pixels counted from 1, for which the objects' corners are as in the files.
    scale = np.tile(np.asarray(truth['size'], np.float64), 2)[:, None]
    boxes, objects = boxes * scale + 1, objects * scale + 1
    objects = np.round(objects, 3)  # from float32 shares
    boxes, scores = _printed(boxes, 1), _printed(scores, 3)
  target, best = _most_overlapped(boxes, kinds, objects, label)

  curves, counts, found = [], [], []
  for c in range(classes):
    image, place = np.nonzero(kinds == c)
    order = np.argsort(-scores[image, place], kind='stable')
    image, place = image[order], place[order]
    aim = target[image, place]
    near = best[image, place] > overlap
    ignored = near & difficult[image, aim]
    candidate = np.flatnonzero(near & ~ignored)
    which = image[candidate] * label.shape[1] + aim[candidate]
    _, first = np.unique(which, return_index=True)
    hit = np.zeros(len(image), bool)
    hit[candidate[first]] = True
    total = int(np.sum((label == c) & ~difficult))
    counts.append(total)
    found.append(len(image))
    curves.append(_curve(hit, ~hit & ~ignored, total))
  result = {'objects': counts, 'detections': found, 'curves': curves}
  for name, summary in (('area', _area), ('11point', _eleven)):
    values = [
      summary(*pair) if total else float('nan')
      for pair, total in zip(curves, counts, strict=True)
    ]
    result[name] = values
    known = [
      value for value, total in zip(values, counts, strict=True) if total
    ]
    result[f'mean_{name}'] = float(np.mean(known)) if known else 0.0
  return result


def _curve(hits, misses, total):
  """(recall, precision) after each detection, by falling score.

  Args:
    hits, misses: [D], bool; a detection may be neither.
    total: objects there are to find.
  """
  hits, misses = np.cumsum(hits), np.cumsum(misses)
  tiny = np.finfo(np.float64).eps
  return hits / max(total, 1), hits / np.maximum(hits + misses, tiny)


def _most_overlapped(boxes, kinds, objects, label):
  """The object of its class that each detection overlaps most, and the IoU."""
  target = np.zeros(kinds.shape, int)
  best = np.full(kinds.shape, -1.0)
  for start in range(0, len(kinds), _CHUNK):
    part = slice(start, start + _CHUNK)
    same = kinds[part, :, None] == label[part, None]
    iou = iou_on_host(boxes[part, :, None], objects[part, None])
    iou = np.where(same, iou, -1)
    target[part] = np.argmax(iou, -1)
    best[part] = np.max(iou, -1)
  return target, best


def _area(recall, precision):
  recall = np.concatenate([[0], recall, [1]])
  precision = np.concatenate([[0], precision, [0]])
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  return float(np.sum(np.diff(recall) * envelope[1:]))


def _eleven(recall, precision):
  best = [np.max(precision, initial=0, where=recall >= r) for r in _RECALLS]
  return float(np.mean(best))


def _printed(x, decimals):
  """As text and back; NumPy's rounding differs where a half is inexact."""
  flat = [float(f'{value:.{decimals}f}') for value in np.ravel(x)]
  return np.reshape(flat, np.shape(x))
