"""Masks as indices, what is left out or mended, and squares of them."""

import pathlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.masks import mask, palette
from support.pictures import encode, smooth

import fastsnn_jax as fs
from fastsnn_jax.data import decode, records, squares

CLASSES = ('sky', 'road', 'car')


# ------------------------------------------------------------------ indices


@pytest.mark.parametrize('write', [palette, encode, decode.index_png])
def test_masks_are_read_as_indices(write):
  labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
  got = decode.indices(write(labels))
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, labels)


def test_palettes_of_few_bits_and_with_transparency_are_indices_too():
  labels = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
  for options in ({'bits': 1}, {'bits': 4}, {'transparency': 0}):
    encoded = palette(labels, **options)
    assert encoded[24] == options.get('bits', encoded[24])
    np.testing.assert_array_equal(decode.indices(encoded), labels)


@pytest.mark.parametrize(
  ('image', 'form', 'kind'),
  [
    (smooth(4, 5), 'PNG', 'PNG of 8-bit RGB'),
    (np.dstack([smooth(4, 5), smooth(4, 5)[..., :1]]), 'PNG', '8-bit RGBA'),
    (np.zeros((4, 5), np.uint16), 'PNG', 'PNG of 16-bit grey'),
    (np.zeros((4, 5), bool), 'PNG', 'PNG of 1-bit grey'),
    (smooth(4, 5)[..., 0], 'JPEG', 'a JPEG'),
    (smooth(4, 5)[..., 0], 'GIF', 'a GIF'),
  ],
)
def test_other_pictures_are_no_indices(image, form, kind):
  with pytest.raises(decode.NotIndices, match=kind):
    decode.indices(encode(image, form))


def test_what_is_no_picture_has_no_indices():
  whole = palette(mask(40, 40, 3))
  for encoded in (b'', b'text', whole[:20], whole[: len(whole) // 2]):
    with pytest.raises(decode.Undecodable):
      decode.indices(encoded)


# ------------------------------------------------------------------- looking


def files(tmp_path, picture, labels):
  """Paths of a picture and its mask, with such bytes in them."""
  result = []
  for name, content in (('a.jpg', picture), ('a.png', labels)):
    path = tmp_path / name
    if content is not None:
      path.write_bytes(content)
    result.append(None if content is None else path)
  return 'a', *result


PICTURE = encode(smooth(6, 8))
LABELS = mask(8, 6, 3)


@pytest.mark.parametrize(
  ('picture', 'labels', 'repair', 'where'),
  [
    (PICTURE, palette(LABELS), None, None),
    (None, palette(LABELS), 'gone', 'a'),
    (PICTURE, None, 'no_mask', 'a.jpg'),
    (b'text', palette(LABELS), 'unreadable', 'a.jpg'),
    (PICTURE, b'text', 'unreadable', 'a.png'),
    (PICTURE, palette(LABELS)[:60], 'unreadable', 'a.png'),
    (PICTURE, palette(LABELS.T), 'mask_size', 'a.png, 6 x 8 and not 8 x 6'),
    (PICTURE, palette(LABELS | 4), 'no_class', 'a.png, 4 with 3 classes'),
  ],
)
def test_what_is_wrong_is_counted_with_its_place(
  tmp_path, picture, labels, repair, where
):
  repairs = records.new_repairs()
  pairs = [files(tmp_path, picture, labels)]
  good = records.with_masks(pairs, CLASSES, repairs)
  kept = repair in (None, 'no_class')
  assert [record.size for record in good] == [(8, 6)] * kept
  assert list(repairs) == [repair] * bool(repair)
  if repair == 'no_class':
    where = 'with 3 classes'
  if repair:
    (line,) = records.lines(repairs)
    assert line.startswith('1 ')
    assert line.endswith(f'{where})')
    assert line.count('first: ') == 1


def test_classes_of_no_pixel_are_named():
  def notes(*labels, classes=CLASSES, **repairs):
    path = pathlib.Path('a.png')
    train = [records.Record(path, (2, 2), bytes(x), mask=path) for x in labels]
    return records.notes(records.Records(train, [], classes, repairs))

  assert notes([0, 2], [1]) == ()
  assert notes([0], [0], no_mask=['b.png']) == (
    '1 pictures without a mask left out (first: b.png)',
    "no training mask has the index of 'road', 'car'; 255 means ignored",
  )
  (note,) = notes([1], classes=[f'c{i}' for i in range(9)])
  assert note.endswith(
    "'c0', 'c2', 'c3', 'c4', 'c5' and 3 more classes; 255 means ignored"
  )


@given(st.integers(1, 255), st.integers(0, 99))
def test_labels_of_a_mask(classes, seed):
  labels = np.random.default_rng(seed).choice([*range(30), 255], (5, 4))
  found = records.labels_in(labels, classes)
  assert list(found) == sorted({x for x in labels.flat if x < classes})


def test_the_first_in_order_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'cores', lambda: 8)
  repairs = records.new_repairs()
  pairs = [(str(i), tmp_path / f'{i}.jpg', None) for i in range(30)]
  assert not records.with_masks(pairs, CLASSES, repairs)
  assert records.lines(repairs) == [
    f'30 pictures without a mask left out (first: {tmp_path / "0.jpg"})'
  ]
  with pytest.raises(fs.UserError, match=r'list\.txt has no .*30 pictures'):
    records.check([], CLASSES, 'list.txt', 'layout', repairs)


def test_a_coloured_mask_is_refused_by_name(tmp_path):
  pairs = [files(tmp_path, PICTURE, encode(smooth(6, 8)))]
  with pytest.raises(fs.UserError, match=r'a\.png is a PNG of 8-bit RGB; .*8-'):
    records.with_masks(pairs, CLASSES, records.new_repairs())


@pytest.mark.parametrize('count', [0, 256])
def test_as_many_classes_as_a_mask_can_tell_apart(count):
  with pytest.raises(fs.UserError, match=f'{count} classes'):
    records.mask_classes(['x'] * count)
  assert len(records.mask_classes(['x'] * 255)) == 255


# ------------------------------------------------------------------- squares


@given(st.integers(1, 2000), st.integers(1, 64))
def test_the_fitting_size_is_the_least(largest, stride):
  size = squares.fitting_size(largest, stride)
  fits = [
    side for side in range(largest, size + 1) if side % stride == 1 % stride
  ]
  assert fits == [size]


def test_sides_of_the_official_code():
  # Reference behaviour S1.4 and S4: VOC is at most 500, COCO 640.
  assert [squares.fitting_size(500, s) for s in (8, 16)] == [505, 513]
  assert [squares.fitting_size(640, s) for s in (8, 16)] == [641, 641]
  sizes = [(9, 30), (40, 2), (7, 7)]
  rows = [records.Record(pathlib.Path('x'), size) for size in sizes]
  assert squares.side_for(rows, 8) == 41
  assert squares.side_for(rows, 8, 49) == 49
  for size in (0, 40, 48, 50):
    with pytest.raises(fs.UserError, match=f'size={size} does not fit .* 8;'):
      squares.side_for(rows, 8, size)
  match = r'size=33: x has 40 x 2 pixels.*least size that fits is 41'
  with pytest.raises(fs.UserError, match=match):
    squares.side_for(rows, 8, 33)


def records_of(tmp_path, sizes):
  """(records, pictures, labels), half of the masks as functions."""
  rows, pictures, labels = [], [], []
  for i, (width, height) in enumerate(sizes):
    pictures.append(smooth(height, width, seed=i))
    labels.append(mask(width, height, 3, seed=i))
    path = tmp_path / f'{i}.png'
    path.write_bytes(encode(pictures[-1]))
    if i % 2:
      source = tmp_path / f'{i}_mask.png'
      source.write_bytes(palette(labels[-1]))
    else:
      source = labels[-1].astype(np.int64).copy
    rows.append(records.Record(path, (width, height), mask=source))
  return rows, pictures, labels


def test_arrays_are_padded_at_the_bottom_and_on_the_right(tmp_path):
  sizes = [(5, 9), (9, 4), (2, 2), (9, 9), (3, 2)]
  rows, pictures, labels = records_of(tmp_path, sizes)
  repairs = records.new_repairs()
  settings = {'classes': 3, 'repairs': repairs}
  whole = squares.mask_arrays(rows, 9, (1, 2, 3), **settings)
  assert not repairs
  assert {k: (v.shape, v.dtype.name) for k, v in whole.items()} == {
    'image': ((5, 9, 9, 3), 'uint8'),
    'label': ((5, 9, 9), 'uint8'),
    'size': ((5, 2), 'int32'),
  }
  assert whole['size'].tolist() == [list(size) for size in sizes]
  for i, (width, height) in enumerate(sizes):
    image, label = np.full((9, 9, 3), (1, 2, 3)), np.full((9, 9), 255)
    image[:height, :width] = pictures[i]
    label[:height, :width] = labels[i]
    np.testing.assert_array_equal(whole['image'][i], image)
    np.testing.assert_array_equal(whole['label'][i], label)
  fewer = squares.mask_arrays(rows, 9, 0, **settings | {'classes': 2})
  expected = np.where(whole['label'] < 2, whole['label'], 255)
  np.testing.assert_array_equal(fewer['label'], expected)
  with pytest.raises(fs.UserError, match=r'0\.png has 5 x 9 .* that fits is 9'):
    squares.side_for(rows[:1], 1, 8)


def test_damage_that_shows_late_is_left_out(tmp_path):
  rows, pictures, _ = records_of(tmp_path, [(8, 6)] * 4)
  rows[0].picture.write_bytes(encode(pictures[0])[:80])
  rows[1].mask.unlink()
  PIL.Image.new('RGB', (6, 8)).save(rows[3].picture)
  repairs = records.new_repairs()
  settings = {'classes': 3, 'repairs': repairs}
  got = squares.mask_arrays(rows, 8, 0, **settings)
  np.testing.assert_array_equal(got['image'][:, :6], [pictures[2]])
  assert [len(value) for value in got.values()] == [1, 1, 1]
  names = [str(rows[i].picture) for i in (0, 1, 3)]
  assert repairs == {'unreadable': names}
  with pytest.raises(fs.UserError, match=r'none of 2 .*0\.png'):
    squares.mask_arrays(rows[:2], 8, 0, **settings)
