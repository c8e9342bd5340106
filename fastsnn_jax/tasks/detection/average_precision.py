"""VOC's average precision, on the host and in NumPy.

It sorts the detections of all images; but which object a detection hits is
decided within its image, for all images at once.
"""

import numpy as np

from fastsnn_jax.tasks.detection.boxes import iou_on_host, spared

_RECALLS = np.arange(0, 1.1, 0.1)  # 0.30000000000000004, as in VOC's own code
_TINY = np.finfo(np.float64).eps
_CHUNK = 64  # images whose pairs of boxes are in memory at a time


def voc(predictions, truth, classes, *, overlap=0.5, rounded=False):
  """Average precision of every class, and their mean.

  A detection is of the object of its class in its image that it overlaps most.
  By falling score, it is a hit if their IoU is over `overlap` and the object
  was not hit before; it does not count if the object is difficult or a crowd,
  which need not be found; else it is a miss. Equal scores keep their order.

  Args:
    predictions: arrays over I images with K places each: 'boxes' [I, K, 4],
      'scores' [I, K] and 'classes' [I, K], -1 where there is none.
    truth: 'boxes' [I, G, 4] in the same shares of the image, 'label' [I, G], -1
      where there is none; if there are any 'difficult', 'crowd' [I, G]; and for
      `rounded` 'size' [I, 2], (width, height) in pixels.
    classes: their number.
    overlap: IoU that a hit has to be over.
    rounded: scores to 3 decimals and corners to 1 in pixels (D-Q9).

  Returns:
    Lists over classes: 'area', the integral of the precision's falling envelope
    over recall, and '11point', its mean at recalls 0, 0.1, …, 1 (NaN without
    objects, 0 without detections); 'objects', 'detections', their numbers;
    'curves', (recall, precision) after each detection. And 'mean_area' and
    'mean_11point' over the classes that have objects.

  >>> box = np.array([[[0.1, 0.1, 0.5, 0.5]]])
  >>> found = {'boxes': box, 'scores': np.ones((1, 1)), 'classes': [[1]]}
  >>> voc(found, {'boxes': box, 'label': [[1]]}, 2)['area']
  [nan, 1.0]
  """
  label = np.asarray(truth['label'])
  difficult = spared(truth)
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

  curves, counts = [], []
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
    counts.append(int(np.sum((label == c) & ~difficult)))
    hits, judged = np.cumsum(hit), np.cumsum(hit | ~ignored)
    curves.append((hits / max(counts[-1], 1), hits / np.maximum(judged, _TINY)))
  found = [len(recall) for recall, _ in curves]
  result = {'objects': counts, 'detections': found, 'curves': curves}
  for name, summary in (('area', _area), ('11point', _eleven)):
    rows = zip(curves, counts, strict=True)
    result[name] = [summary(*x) if total else np.nan for x, total in rows]
    known = [x for x in result[name] if not np.isnan(x)]
    result[f'mean_{name}'] = float(np.mean(known or 0))
  return result


def _most_overlapped(boxes, kinds, objects, label):
  """The object of its class that each detection overlaps most, and the IoU."""
  target, best = np.zeros(kinds.shape, int), np.zeros(kinds.shape)
  for start in range(0, len(kinds), _CHUNK):
    part = slice(start, start + _CHUNK)
    same = kinds[part, :, None] == label[part, None]
    iou = iou_on_host(boxes[part, :, None], objects[part, None])
    iou = np.where(same, iou, -1)
    target[part], best[part] = np.argmax(iou, -1), np.max(iou, -1)
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
