"""Data as people have them: encodings, names, pictures turned, ids and sizes.

Each kind of fault has some of its members here.
"""

import codecs
import dataclasses
import json
import math
import os
import time
import zlib

import numpy as np
import PIL.Image
import pytest
from support import coco as coco_files
from support import voc as voc_files
from support.masks import mask
from support.masks import write as write_masks
from support.pictures import encode, smooth, write_named
from support.voc import red

import fastsnn_jax as fs
from fastsnn_jax.data import decode, named, records, squares
from fastsnn_jax.data.readers import coco, finder, folder, text, voc
from fastsnn_jax.experiment.config import Data
from fastsnn_jax.tasks.classification.data import open_data as open_classes
from fastsnn_jax.tasks.detection.data import open_data as open_boxes
from fastsnn_jax.tasks.segmentation.data import open_data as open_masks

CAT = coco_files.CAT | {'segmentation': [[0, 0, 10, 0, 10, 5, 0, 5]]}


@dataclasses.dataclass
class Model:
  """As much of a model as masks need."""

  stride: int = 1
  size: int = 20


def boxes(root, names=('a', 'b'), xml=None):
  """A directory in VOC's layout whose two splits have the same pictures."""
  pictures = dict.fromkeys(names, xml or [voc_files.CAT])
  return voc_files.write(root, {'train': pictures, 'val': pictures})


def named_xml(name):
  """An annotation that says no size, of one object."""
  return voc_files.annotation([(name, *voc_files.CAT[1:])], size=None)


def outlines(root, edit=None, count=3):
  """A directory in COCO's layout; `edit` changes the training split's JSON."""
  pictures = {f'p{i}': [{'id': i, **CAT}] for i in range(count)}
  path = coco_files.write(root, 'train', pictures)
  coco_files.write(root, 'val', {'v': [CAT]})
  if edit:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
  return root


def lines(found):
  return ' '.join(records.lines(found.repairs))


# --------------------------------------------------------------------- text


@pytest.mark.parametrize('coding', ['utf-16', 'utf-16-le', 'utf-32'])
def test_utf_16_is_told(tmp_path, coding):
  path = tmp_path / 'classes.txt'
  path.write_bytes('cat\ndog\n'.encode(coding))
  with pytest.raises(fs.UserError, match='but looks like UTF-16; write it'):
    text.lines(path)


def test_lists_put_together_have_several_marks(tmp_path):
  path = tmp_path / 'list.txt'
  path.write_bytes(codecs.BOM_UTF8 + b'a\r\n' + codecs.BOM_UTF8 + b'b\r\n')
  assert text.listed(path, '') == ['a', 'b']


@pytest.mark.parametrize(
  ('declared', 'coding', 'name'),
  [
    ('gb2312', 'gbk', '镕'),  # which only GBK has
    ('GB18030', 'gb18030', '猫'),
    ('Big5', 'big5', '貓'),
    ('EUC-JP', 'euc-jp', '猫'),
    ('Shift_JIS', 'cp932', '①'),
    ('euc-kr', 'euc-kr', '고양이'),
    ('windows-1251', 'cp1251', 'кот'),
    ('ISO-8859-1', 'latin-1', 'Vögel'),
    ('utf-16', 'utf-16', 'кот'),
    ('utf-16', 'utf-8', 'кот'),  # as .NET declares what it writes as UTF-8
    ('utf8mb4', 'utf-8-sig', 'кот'),
    ('hex', 'utf-8', 'cat'),
  ],
)
def test_annotations_in_the_encoding_that_they_declare(
  tmp_path, declared, coding, name
):
  content = f'<?xml version="1.0" encoding="{declared}"?>{named_xml(name)}'
  boxes(tmp_path)
  (tmp_path / 'Annotations/a.xml').write_bytes(content.encode(coding))
  found = voc.read_boxes(tmp_path)
  assert set(found.classes) == {'cat', name}
  assert not records.lines(found.repairs)


@pytest.mark.parametrize('declared', ['nonsense', 'utf-8', 'ascii', 'zip'])
def test_annotations_that_cannot_be_decoded_are_counted(tmp_path, declared):
  content = f'<?xml version="1.0" encoding="{declared}"?>{named_xml("Vögel")}'
  boxes(tmp_path)
  (tmp_path / 'Annotations/b.xml').write_bytes(content.encode('latin-1'))
  found = voc.read_boxes(tmp_path)
  assert len(found.train) == 1
  path = tmp_path / 'Annotations/b.xml'
  assert found.repairs == {'unreadable': [str(path)] * 2}


# -------------------------------------------------------------------- names


@pytest.mark.parametrize(
  'name', ['../x', 'a/../../x', '/etc/x', '..\\x', 'C:\\x', '\\x', '..', '']
)
def test_names_that_lead_out(name):
  assert not finder.inside(name)


@pytest.mark.parametrize('out', ['../../out', '{}/out', '..\\..\\out'])
def test_what_leads_out_is_left_out_and_counted(tmp_path, out):
  out = out.format(tmp_path)
  (tmp_path / 'out.png').write_bytes(encode(red()))
  (tmp_path / 'out.xml').write_text(named_xml('cat'))
  root = boxes(tmp_path / 'voc')
  with (root / 'ImageSets/Main/train.txt').open('a') as listed:
    listed.write(out)
  found = voc.read_boxes(root)
  assert len(found.train) == 2
  assert found.repairs == {'astray': [out]}
  masks = tmp_path / 'masks'
  write_masks(masks, {'train': {'a': mask(8, 6, 3)}, 'val': {}})
  for split in ('train', 'val'):
    listed = masks / f'ImageSets/Segmentation/{split}.txt'
    listed.write_text(f'a\n{out}\n')
  assert voc.read_masks(masks).repairs == {'astray': [out] * 2}
  name = f'{out}.png'
  root = outlines(
    tmp_path / 'coco', lambda x: x['images'][0].update(file_name=name)
  )
  for read in (coco.read_boxes, coco.read_masks):
    found = read(root)
    assert len(found.train) == 2
    assert found.repairs == {'astray': [name]}


@pytest.mark.parametrize('name', ['my cat 1', 'photo (3)', 'a  b', 'a.b', 'é'])
def test_names_with_spaces_and_the_like(tmp_path, name):
  labels = mask(8, 6, 3)
  write_masks(tmp_path, {'train': {name: labels, 'a': labels}, 'val': {}})
  listed = tmp_path / 'ImageSets/Segmentation'
  (listed / 'val.txt').write_text('a 1\n')  # a mark, as in VOC's own lists
  found = voc.read_masks(tmp_path)
  assert [x.picture.stem for x in found.train] == [name, 'a']
  assert [x.picture.stem for x in found.test] == ['a']
  assert not found.repairs
  (listed / 'val.txt').write_text('a 1\na 2\nmy dog\n')
  found = voc.read_masks(tmp_path)
  assert found.repairs == {
    'twice': [f'{listed / "val.txt"}, a'],
    'gone': ['my dog'],
  }


@pytest.mark.parametrize('ending', ['.bmp', '.TIF', '.WebP', '.jPg', '.ppm'])
def test_endings_in_any_case(tmp_path, ending):
  forms = {'.jPg': 'JPEG', '.TIF': 'TIFF', '.WebP': 'WEBP', '.bmp': 'BMP'}
  content = encode(red(), forms.get(ending, 'PPM'))
  boxes(tmp_path / 'voc')
  old = tmp_path / 'voc/JPEGImages/b.png'
  old.unlink()
  old.with_suffix(ending).write_bytes(content)
  xml = tmp_path / 'voc/Annotations/b.xml'
  xml.rename(xml.with_suffix('.XML'))
  assert len(voc.read_boxes(tmp_path / 'voc').train) == 2
  root = write_masks_with(tmp_path / 'masks', ending, content)
  assert len(voc.read_masks(root).train) == 1
  root = outlines(
    tmp_path / 'coco', lambda x: x['images'][0].update(file_name=f'x{ending}')
  )
  (root / f'train/x{ending.swapcase()}').write_bytes(content)
  assert len(coco.read_masks(root).train) == 3


def write_masks_with(root, ending, content):
  labels = mask(20, 10, 3)
  write_masks(root, {'train': {'a': labels}, 'val': {'a': labels}})
  old = root / 'JPEGImages/a.png'
  old.unlink()
  old.with_suffix(ending).write_bytes(content)
  old = root / 'SegmentationClass/a.png'
  old.rename(old.with_suffix('.PNG'))
  return root


@pytest.mark.parametrize('form', ['{}.bmp', 'JPEGImages\\{}', 'x/{}.TIFF'])
def test_lists_of_files_say_so_for_boxes_too(tmp_path, form):
  boxes(tmp_path)
  listed = tmp_path / 'ImageSets/Main/train.txt'
  listed.write_text(form.format('a'))
  with pytest.raises(fs.UserError, match=r'no ending: a\)\); a split'):
    voc.read_boxes(tmp_path)


def test_long_names_and_those_of_two_lines(tmp_path):
  name = 'x' * 400
  boxes(tmp_path / 'voc')
  listed = tmp_path / 'voc/ImageSets/Main/train.txt'
  listed.write_text(f'{name}\n{name}/a\na\n\x1b[31m\n')
  found = voc.read_boxes(tmp_path / 'voc')
  assert len(found.repairs['gone']) == 3
  two = 'a\n\x1b[31m\udc80' + name * 4
  root = outlines(
    tmp_path / 'coco', lambda x: x['images'][0].update(file_name=two)
  )
  (line,) = records.lines(coco.read_boxes(root).repairs)
  assert line.isprintable()
  assert len(line) < 700


# ------------------------------------------------------------ pictures turned

TURNS = {
  2: np.fliplr,
  3: lambda x: np.rot90(x, 2),
  4: np.flipud,
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, 1),
  7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
  8: lambda x: np.rot90(x, -1),
}


def marked(image, mark, form='PNG', **options):
  """As a camera writes it: turned, with a mark that turns it back."""
  exif = PIL.Image.Exif()
  exif[0x0112] = mark
  turned = np.ascontiguousarray(TURNS[mark](image))
  return encode(turned, form, exif=exif, **options)


@pytest.mark.parametrize('mark', TURNS)
@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_pictures_are_turned_by_exif(mark, form):
  image = smooth(16, 24)
  options = {
    'WEBP': {'lossless': True},
    'JPEG': {'quality': 100, 'subsampling': 0},
  }
  encoded = marked(image, mark, form, **options.get(form, {}))
  assert decode.size_of(encoded) == (24, 16)
  tolerance = 12 if form == 'JPEG' else 0
  parts = (lambda w, h: (0, 0, w, h)), (lambda w, h: (w - 8, 0, w, 8))
  for got, wanted in (
    (decode.whole(encoded), image),
    (decode.resized(encoded, 8, parts[1]), image[:8, -8:]),
  ):
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).max() <= tolerance
  assert decode.resized(encoded, 8, parts[0]).shape == (8, 8, 3)


def test_a_large_jpeg_that_is_decoded_small_is_turned_too():
  image = smooth(320, 480)
  got = decode.resized(marked(image, 6, 'JPEG'), 40)
  wanted = decode.resized(encode(image, 'JPEG'), 40)
  assert np.abs(got.astype(int) - wanted).mean() < 2


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('mark', TURNS)
def test_boxes_and_masks_lie_on_turned_pictures(tmp_path, mark, stream):
  settings = Data('own', stream=stream, size=None)
  root = boxes(tmp_path / 'voc')
  labels = np.zeros((10, 20), np.uint8)
  labels[:5, :10] = 1
  masks = tmp_path / 'masks'
  write_masks(masks, {'train': {'a': labels}, 'val': {'a': labels}})
  (root / 'JPEGImages/a.png').write_bytes(marked(red(), mark))
  (masks / 'JPEGImages/a.png').write_bytes(marked(red(), mark))
  found = open_boxes(dataclasses.replace(settings, path=str(root)), 20)
  batch = found.train.in_memory()
  row = batch['image'][0]
  assert (row[:9, :9] == (255, 0, 0)).all()
  assert not row[11:, 11:].any()
  np.testing.assert_allclose(batch['boxes'][0, 0], [0, 0, 0.5, 0.5])
  assert not found.notes
  found = open_masks(dataclasses.replace(settings, path=str(masks)), Model())
  batch = found.train.in_memory()
  np.testing.assert_array_equal(
    batch['image'][0, :10, :20, 0] > 0, batch['label'][0, :10, :20] == 1
  )


def test_classes_of_turned_pictures(tmp_path):
  for split in ('train', 'test'):
    path = tmp_path / split / 'cat/a.png'
    path.parent.mkdir(parents=True)
    path.write_bytes(marked(red(), 6))
  settings = Data('own', str(tmp_path), stream=True)
  (batch,) = open_classes(settings).test.batches(1)
  np.testing.assert_array_equal(batch['image'][0], red())


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_a_mark_that_is_none():
  for mark in (0, 1, 9, 77):
    exif = PIL.Image.Exif()
    exif[0x0112] = mark
    assert (decode.whole(encode(red(), exif=exif)) == red()).all()
  encoded = encode(red(), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff\xff\xffnonsense')
  assert decode.whole(encoded).shape == (10, 20, 3)


# ------------------------------------------------- bounds, damage, no pictures


@pytest.mark.filterwarnings('ignore:Image size')
def test_pictures_beyond_the_bound_are_not_decoded(tmp_path):
  head = encode(np.zeros((2, 2), np.uint8))
  large = (13_000).to_bytes(4, 'big')
  head = head[:16] + large * 2 + head[24:]  # its checksum is of no matter
  crc = zlib.crc32(head[12:29]).to_bytes(4, 'big')
  head = head[:29] + crc + head[33:]
  for read in (decode.whole, decode.indices, decode.size_of):
    with pytest.raises(decode.Undecodable, match='13000 x 13000 pixels, more'):
      read(head)
  labels = mask(8, 6, 3)
  write_masks(tmp_path, {'train': {'a': labels}, 'val': {'a': labels}})
  (tmp_path / 'SegmentationClass/b.png').write_bytes(head)
  (tmp_path / 'JPEGImages/b.png').write_bytes(head)
  (tmp_path / 'ImageSets/Segmentation/train.txt').write_text('b\na\n')
  found = voc.read_masks(tmp_path)
  assert len(found.train) == 1
  assert found.repairs['unreadable'][0].endswith('b.png')


def test_squares_that_no_memory_holds():
  record = records.Record(None, (10**6, 1), b'\1')
  with pytest.raises(fs.UserError, match=r'GB as 1 arrays.*--data\.stream'):
    squares.mask_arrays([record], 10**7, 0, classes=2, repairs={})
  with pytest.raises(fs.UserError, match='smaller size'):
    squares.box_arrays([record], 10**7)


def test_programs_are_not_started_for_pictures():
  eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
  with pytest.raises(decode.Undecodable, match='cannot identify'):
    decode.whole(eps)


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_truncated_pictures_among_boxes(tmp_path, form, split):
  boxes(tmp_path, 'abc')
  path = tmp_path / 'JPEGImages/b.png'
  content = encode(smooth(10, 20), form)
  path.write_bytes(content[: len(content) * 2 // 3])
  (tmp_path / f'ImageSets/Main/{split}.txt').write_text('a\nc\n')
  found = open_boxes(Data('own', str(tmp_path)), 20)
  other = found.train if split == 'val' else found.test
  assert len(other['label']) == len(other['boxes']) == 2
  (note,) = found.notes
  assert note.startswith('1 pictures left out that')
  assert note.endswith(f'{path})')


@pytest.mark.parametrize('what', ['pipe', 'device', 'broken', 'itself'])
def test_what_is_no_file_is_never_opened(tmp_path, what):
  write_named(tmp_path / 'classes', *CLASSES)
  boxes(tmp_path / 'voc')
  for path in (
    tmp_path / 'classes/train/cat/x.png',
    tmp_path / 'voc/JPEGImages/x.png',
  ):
    if what == 'pipe':
      os.mkfifo(path)
    else:
      links = {'device': '/dev/zero', 'broken': 'nowhere', 'itself': path}
      path.symlink_to(links[what])
  (tmp_path / 'voc/ImageSets/Main/train.txt').write_text('x\na\n')
  found = voc.read_boxes(tmp_path / 'voc')
  assert found.repairs['gone'] == ['x']
  train, *_ = folder.read(tmp_path / 'classes')
  assert len(train) == 2
  assert [len(train[i][0]) for i in (0, 1)]
  settings = Data('own', str(tmp_path / 'classes'), stream=True)
  (note,) = open_classes(settings).notes
  assert note.startswith('1 pictures left out that are devices')


CLASSES = [f'{x}/{y}/a.png' for x in ('train', 'test') for y in ('cat', 'dog')]


@pytest.mark.parametrize(
  'links',
  [
    {'cat/a': '.'},
    {'cat/a': '.', 'cat/b': '.'},
    {'cat/a': '..'},
    {'cat/a': '../..', 'dog/b': '../cat'},
    {'cat/a': 'real', 'cat/real/up': '..'},
  ],
)
def test_links_that_lead_in_circles(tmp_path, links):
  write_named(tmp_path, *CLASSES)
  for name, target in links.items():
    path = tmp_path / 'train' / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
  train, *_ = folder.read(tmp_path)
  shared = 'dog/b' in links  # another class's pictures are no circle
  assert len(train) == 2 + shared
  assert train.repairs['loop']


def test_endings_of_no_picture_are_counted(tmp_path):
  write_named(tmp_path, *CLASSES)
  (tmp_path / 'train/cat/b.heic').write_bytes(b'')
  path = tmp_path / 'test/dog/Thumbs.db'
  path.write_bytes(b'')
  (note,) = records.lines(folder.read(tmp_path)[0].repairs)
  assert note.startswith('2 files left out that do not end like a picture')
  assert note.endswith('b.heic)')


# ---------------------------------------------------------- numbers and ids


@pytest.mark.parametrize(
  ('value', 'wanted'),
  [
    (7, 7),
    (7.0, 7),
    ('7', 7),
    (' 007 ', 7),
    ('7.0', 7),
    ('x7', 'x7'),
    ('-1', -1),
    (10**20, 10**20),
    ('1' + '0' * 20, 10**20),
    (10**400, 10**400),
    *((x, None) for x in ([1], {}, None, True, '', 7.5, math.nan, math.inf)),
  ],
)
def test_identities(value, wanted):
  assert text.identity(value) == wanted


def test_numbers_and_marks():
  for value in ('1e3', 1000, 1000.0, ' 1000 '):
    assert text.number(value) == 1000
  for value in (None, [], {}, True, 'x', 10**400):
    assert math.isnan(text.number(value))
  assert not any(map(text.flag, (0, '0', '0.0', False, None, 'false', [], '')))
  assert all(map(text.flag, (1, '1', True, 'true', 'True', 1.0)))


def each(key, value):
  def edit(content):
    for item in content['annotations']:
      item[key] = value(item[key]) if callable(value) else value

  return edit


def sizes(value):
  def edit(content):
    for item in content['images']:
      item.update({key: value(item[key]) for key in ('width', 'height')})

  return edit


def ids(value):
  def edit(content):
    for item in content['images']:
      item['id'] = value(item['id'])

  return edit


@pytest.mark.parametrize('read', [coco.read_boxes, coco.read_masks])
@pytest.mark.parametrize(
  'edit',
  [
    each('image_id', str),
    each('image_id', float),
    each('image_id', '{:012}'.format),
    each('category_id', str),
    each('iscrowd', '0'),
    each('bbox', lambda box: list(map(str, box))),
    each('area', 0),
    each('area', -1.5),
    each('area', '0'),
    each('area', 10**400),
    sizes(str),
    sizes(float),
    sizes(lambda side: None),
    sizes(lambda side: -1),
    sizes(lambda side: [side]),
    ids(str),
    ids(float),
  ],
)
def test_numbers_in_other_forms(tmp_path, read, edit):
  found = read(outlines(tmp_path, edit))
  assert len(found.train) == 3
  assert not records.lines(found.repairs)
  wanted = [0, 2] if read is coco.read_masks else [0]
  assert all(list(x.label) == wanted for x in found.train)
  if read is coco.read_boxes:
    assert (found.train[0].area > 0).all()
    assert not found.train[0].crowd.any()


@pytest.mark.parametrize('read', [coco.read_boxes, coco.read_masks])
@pytest.mark.parametrize(
  ('place', 'key', 'value', 'kind'),
  [
    ('images', 'id', [1], 'no_id'),
    ('images', 'id', {}, 'no_id'),
    ('images', 'file_name', 'x' * 400, 'gone'),
    ('images', 'file_name', ['p0.png'], 'gone'),
    ('annotations', 'image_id', {}, 'stray'),
    ('annotations', 'image_id', [5], 'stray'),
    ('annotations', 'category_id', [3], 'unknown'),
    ('annotations', 'category_id', True, 'unknown'),
    ('annotations', 'bbox', [10**400, 1, 2, 3], 'no_box'),
    ('annotations', 'bbox', '1234', 'no_box'),
    ('annotations', 'bbox', {'x': 1}, 'no_box'),
    ('annotations', 'id', '1', 'same_id'),
  ],
)
def test_what_is_no_id_or_number_is_counted(
  tmp_path, read, place, key, value, kind
):
  root = outlines(tmp_path, lambda x: x[place][0].update({key: value}))
  found = read(root)
  if kind == 'no_box' and read is coco.read_masks:  # the outline decides
    assert not records.lines(found.repairs)
    assert set(found.train[0].label) == {0, 2}
  else:
    assert kind in found.repairs


@pytest.mark.parametrize('read', [coco.read_boxes, coco.read_masks])
@pytest.mark.parametrize('other', ['', 'text', 'category'])
def test_an_id_that_two_have(tmp_path, read, other):
  def edit(content):
    if other == 'category':
      content['categories'][0]['id'] = str(content['categories'][1]['id'])
    else:
      number = content['images'][0]['id']
      content['images'][1]['id'] = str(number) if other else number

  with pytest.raises(fs.UserError, match=r'have one id, \d+; give each an id'):
    read(outlines(tmp_path, edit))


def test_ids_of_two_types(tmp_path):
  def edit(content):
    content['categories'][0]['id'] = 'dog'
    content['annotations'][0]['category_id'] = 'dog'

  found = coco.read_boxes(outlines(tmp_path, edit))
  assert found.classes == ('cat', 'dog')
  assert [x.label.tolist() for x in found.train] == [[1], [0], [0]]


@pytest.mark.parametrize(
  ('edit', 'said'),
  [
    (each('image_id', 404), 'no picture that is listed'),
    (each('category_id', 404), 'unknown class'),
    (each('segmentation', [[1, 2]]), 'without an outline'),
    (each('ignore', 1), 'to be ignored'),
  ],
)
def test_masks_of_which_no_object_is_left(tmp_path, edit, said):
  def whole(content):
    for item in content['annotations']:
      item.setdefault('ignore', 0)
    edit(content)

  with pytest.raises(fs.UserError, match=rf'3 objects .*{said}.*first: '):
    coco.read_masks(outlines(tmp_path, whole))


def test_windows_paths(tmp_path):
  def edit(content):
    for item in content['images']:
      item['file_name'] = f'train\\{item["file_name"]}'

  assert len(coco.read_boxes(outlines(tmp_path, edit)).train) == 3


@pytest.mark.parametrize('code', ['o', 'O', '0', '?0'])
def test_run_lengths_take_linear_time(code):
  start = time.perf_counter()
  value = {'size': [1, 1], 'counts': code * (400_000 // len(code))}
  assert coco.parse(value) is None
  assert time.perf_counter() - start < 5


def test_run_lengths_that_overflow():
  most = 2**63 - 1
  runs = {'size': [2, 2], 'counts': [most, most, 6]}  # wraps to 4
  assert coco.parse(runs) is None


# -------------------------------------------------------------------- sizes


@pytest.mark.parametrize('scale', [0.5, 2, 3.35])
def test_pictures_that_were_resized_after_labelling(tmp_path, scale):
  said = round(20 * scale), round(10 * scale)
  size = '<size><width>{}</width><height>{}</height></size></annotation>'
  xml = named_xml('cat').replace('</annotation>', size.format(*said))
  found = voc.read_boxes(boxes(tmp_path / 'voc', xml=xml))
  wanted = [10 / said[0], 5 / said[1]]
  np.testing.assert_allclose(found.train[0].boxes[0, 2:], wanted, rtol=1e-6)
  assert found.train[0].size == (20, 10)
  assert len(found.repairs['said_size']) == 4
  root = outlines(tmp_path / 'coco', sizes(lambda x: round(x * scale)))
  found = coco.read_boxes(root)
  np.testing.assert_allclose(
    found.train[0].boxes[0, 2:], [9 / said[0], 4 / said[1]], rtol=1e-6
  )
  assert found.train[0].area == pytest.approx([30.5 * 200 / np.prod(said)])


@pytest.mark.parametrize('bad', [1, 3])
@pytest.mark.parametrize('read', [coco.read_boxes, coco.read_masks])
def test_another_aspect_is_left_out_or_refused(tmp_path, read, bad):
  def edit(content):
    for item in content['images'][:bad]:
      item.update(width=10, height=20)

  root = outlines(tmp_path, edit, count=4)
  if bad == 3:
    with pytest.raises(fs.UserError, match=r'3 pictures left out whose .*10 x'):
      read(root)
  else:
    found = read(root)
    assert len(found.train) == 3
    assert '10 x 20 and not 20 x 10' in lines(found)


# ------------------------------------------------------------------ remedies


def test_remedies(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(fs.UserError, match=r'or give the path of pictures$'):
    named.records('own')
  empty = {'image': np.zeros((0, 2, 2, 1), np.uint8), 'label': []}
  with pytest.raises(fs.UserError, match=r'no images .*; at least one is need'):
    fs.data.as_dataset({'train': empty, 'test': empty})
