"""Mending of boxes against a loop over them, and records as arrays."""

import collections
import math
import threading

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pictures import encode, smooth

import fastsnn_jax as fs
from fastsnn_jax.data import decode, records, squares

CLASSES = {'cat': 0, 'dog': 1}
NUMBERS = st.one_of(
  st.integers(-3, 24),
  st.integers(-24, 192).map(lambda x: x / 8),
  st.just(math.nan),
)
OBJECTS = st.lists(
  st.builds(
    records.Object,
    name=st.sampled_from(['cat', ' Dog', 'zebra', '']),
    corners=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    difficult=st.booleans(),
    crowd=st.booleans(),
    area=st.sampled_from([None, math.nan, 0.0, 7.5]),
  ),
  max_size=5,
)


def oracle(objects, size, whole, short):
  """([(box, label, difficult, crowd, area)], repairs), one by one."""
  width, height = size
  kept, repairs = [], collections.Counter(bare=not objects)
  for name, (x1, y1, x2, y2), difficult, crowd, area in objects:
    name = name.strip().lower()
    if name not in CLASSES:
      repairs['unknown'] += 1
      continue
    if any(math.isnan(x) for x in (x1, y1, x2, y2)):
      repairs['no_box'] += 1
      continue
    repairs['fractional'] += whole and any(x % 1 for x in (x1, y1, x2, y2))
    repairs['swapped'] += x2 < x1 or y2 < y1
    sides = []
    out = False
    for a, b, length in ((x1, x2, width), (y1, y2, height)):
      a, b = min(a, b), max(a, b)
      out |= a < 0 or a > length or b < 0 or b > length
      first = min(max(a, 0), length)
      if short:  # the official code's rule
        last = min(length - 1, first + max(0, b - a - 1))
      else:
        last = min(max(b, 0), length)
      sides.append(np.float32([first / length, last / length]))
    repairs['outside'] += out
    (x1, x2), (y1, y2) = sides
    if area is None or math.isnan(area) or area <= 0:
      area = float(x2 - x1) * width * float(y2 - y1) * height
    if x2 <= x1 or y2 <= y1:
      repairs['empty'] += 1
      continue
    kept.append(((x1, y1, x2, y2), CLASSES[name], difficult, crowd, area))
  return kept, repairs


@given(objects=OBJECTS, whole=st.booleans(), short=st.booleans())
def test_mending_by_a_loop_over_objects(objects, whole, short):
  size = (20, 10)
  repairs = records.new_repairs()
  record = records.with_boxes(
    b'', size, objects, CLASSES, repairs, whole=whole, short=short
  )
  kept, expected = oracle(objects, size, whole, short)
  assert {k: len(v) for k, v in repairs.items()} == +expected
  assert record.boxes.shape == (len(kept), 4)
  assert record.label.tolist() == [item[1] for item in kept]
  assert record.difficult.tolist() == [item[2] for item in kept]
  assert record.crowd.tolist() == [item[3] for item in kept]
  boxes = np.reshape([item[0] for item in kept], (-1, 4))
  np.testing.assert_allclose(record.boxes, boxes, atol=1e-7)
  areas = [item[4] for item in kept]
  np.testing.assert_allclose(record.area, areas, rtol=1e-4)
  assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
  assert record.boxes.dtype == record.area.dtype == np.float32
  assert record.label.dtype == np.int32
  assert len(records.lines(repairs)) == len(repairs)


def test_rounding_of_a_border_is_not_outside():
  repairs = records.new_repairs()
  corners = (-1e-9, 0, 20 * float(np.nextafter(np.float32(1), 2)), 10)
  found = [records.Object('cat', corners)]
  record = records.with_boxes(b'', (20, 10), found, CLASSES, repairs)
  assert not repairs
  assert record.boxes.tolist() == [[0, 0, 1, 1]]


def pictures_with_objects(tmp_path):
  """Paths of pictures and functions that give them, and what they show."""
  images = [smooth(12 + i, 30 - i, seed=i) for i in range(18)]
  files = [encode(image) for image in images]
  pictures = []
  for i, file in enumerate(files):
    path = tmp_path / f'{i}.png'
    path.write_bytes(file)
    pictures.append(path if i % 3 == 0 else lambda file=file: file)
  none = records.new_repairs()
  corners = (0, 0, 5, 5)
  found = (
    records.Object('cat', corners, difficult=True),
    records.Object('dog', corners, crowd=True, area=3.5),
    records.Object('dog', corners),
  )
  result = [
    records.with_boxes(
      picture, image.shape[1::-1], found[: i % 4], CLASSES, none
    )
    for i, (picture, image) in enumerate(zip(pictures, images, strict=True))
  ]
  return result, files


@pytest.mark.parametrize('threads', [1, 5])
def test_pictures_from_paths_and_functions_in_order(
  tmp_path, threads, monkeypatch
):
  monkeypatch.setattr(records, 'cores', lambda: threads)
  found, files = pictures_with_objects(tmp_path)
  result = squares.box_arrays(found, 8)
  expected = [decode.resized(x, 8, lambda w, h: (0, 0, w, h)) for x in files]
  np.testing.assert_array_equal(result['image'], expected)
  assert result['size'].tolist() == [[30 - i, 12 + i] for i in range(18)]
  assert [records.encoded(item.picture) for item in found] == files


def test_pictures_are_decoded_side_by_side(monkeypatch):
  monkeypatch.setattr(records, 'cores', lambda: 2)
  barrier = threading.Barrier(2, timeout=20)  # breaks if one waits alone
  file = encode(PIL.Image.new('RGB', (4, 4)))

  def picture():
    barrier.wait()
    return file

  record = records.with_boxes(
    picture, (4, 4), [], CLASSES, records.new_repairs()
  )
  assert squares.box_arrays([record] * 4, 4)['image'].shape[0] == 4


def test_what_training_leaves_out(tmp_path):
  found, _ = pictures_with_objects(tmp_path)
  whole = squares.box_arrays(found[:4], 4)
  assert whole['label'].tolist() == [
    [-1, -1, -1],
    [0, -1, -1],
    [0, 1, -1],
    [0, 1, 1],
  ]
  assert whole['difficult'][3].tolist() == [True, False, False]
  assert whole['crowd'][3].tolist() == [False, True, False]
  assert whole['area'][3].tolist() == pytest.approx([25, 3.5, 25], rel=1e-6)
  easy = squares.box_arrays(found[:4], 4, difficult=False)
  assert easy['label'].tolist() == [[-1, -1], [-1, -1], [1, -1], [1, 1]]
  assert squares.box_arrays([], 4)['boxes'].shape == (0, 1, 4)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
  none = records.new_repairs()

  class Broken:
    def __call__(self):
      return b'no picture'

    def __str__(self):
      return 'the third of test'

  for picture, message in (
    (Broken(), 'the third of test cannot be decoded'),
    (tmp_path / 'gone.png', 'gone.png cannot be read'),
  ):
    good = records.with_boxes(
      lambda: encode(PIL.Image.new('L', (4, 4))), (4, 4), [], CLASSES, none
    )
    bad = records.with_boxes(picture, (4, 4), [], CLASSES, none)
    with pytest.raises(fs.UserError, match=message):
      squares.box_arrays([good, bad], 4)
