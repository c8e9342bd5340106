"""SBD merged into VOC 2012, on sets of a few small masks."""

import sys

import numpy as np
import pytest
import scipy.io
from support.jobs import one_line
from support.masks import mask, write
from support.pictures import encode, smooth

import fastsnn_jax as fs
from fastsnn_jax.data import decode, records, sbd
from fastsnn_jax.data.readers import voc
from fastsnn_jax.experiment import cli

SBD = {name: mask(8, 6, 20, seed=i) % 21 for i, name in enumerate('abcde')}
VOC = {name: mask(8, 6, 21, seed=9 + i) for i, name in enumerate('cdxy')}


def write_sbd(root, train='ab', val='cde'):
  (root / 'cls').mkdir(parents=True)
  for name, labels in SBD.items():
    fields = {
      'Segmentation': labels,
      'Boundaries': np.zeros(20),
      'CategoriesPresent': np.unique(labels),
    }
    scipy.io.savemat(root / 'cls' / f'{name}.mat', {'GTcls': fields})
  for split, names in (('train', train), ('val', val)):
    (root / f'{split}.txt').write_text('\n'.join(names))
  return root


@pytest.fixture
def both(tmp_path):
  """(SBD, VOC2012): c is in both to train on, d and y are VOC's val."""
  root = tmp_path / 'VOCdevkit' / 'VOC2012'
  lists = {part: {x: VOC[x] for x in names} for part, names in PARTS.items()}
  write(root, lists, classes=None)
  for name in SBD:  # their pictures are VOC's
    picture = root / 'JPEGImages' / f'{name}.jpg'
    picture.write_bytes(encode(smooth(6, 8), 'JPEG'))
  return write_sbd(tmp_path / 'sbd' / 'benchmark_RELEASE' / 'dataset'), root


PARTS = {'train': 'cx', 'val': 'dy'}


def masks_in(root):
  return {
    path.stem: decode.indices(path.read_bytes())
    for path in (root / 'EncodeSegmentationClass').iterdir()
  }


@pytest.mark.parametrize('up', [0, 1, 2])
def test_the_union_without_val_and_voc_s_own_masks_first(both, up):
  source, root = both
  given = [[source, *source.parents][up], [root, *root.parents][up]]
  assert sbd.merge_sbd(*given) == (7, 5)
  listed = root / 'ImageSets' / 'Segmentation' / 'trainaug.txt'
  assert listed.read_text() == 'a\nb\nc\ne\nx\n'
  found = masks_in(root)
  assert sorted(found) == list('abcdexy')
  for name, labels in found.items():
    np.testing.assert_array_equal(labels, VOC.get(name, SBD.get(name)))
  read = voc.read_masks(root)
  assert not records.lines(read.repairs)
  assert [item.mask.stem for item in read.train] == list('abcex')
  assert [item.mask.stem for item in read.test] == list('dy')
  assert {item.mask.parent.name for item in read.train + read.test} == {
    'EncodeSegmentationClass'
  }
  assert sbd.merge_sbd(*given) == (7, 5)  # once more changes nothing


def test_nothing_is_listed_before_all_masks_are_there(both):
  source, root = both
  (source / 'cls' / 'e.mat').write_bytes(b'MATLAB')
  with pytest.raises(fs.UserError, match=r'e\.mat cannot be read') as error:
    sbd.merge_sbd(source, root)
  one_line(error)
  assert not (root / 'ImageSets' / 'Segmentation' / 'trainaug.txt').exists()


def test_what_is_missing_is_named(both, tmp_path):
  source, root = both

  def refused(match):
    with pytest.raises(fs.UserError, match=match):
      sbd.merge_sbd(source, root)

  scipy.io.savemat(source / 'cls' / 'a.mat', {'GTinst': {}})
  refused(r'a\.mat cannot be read \(KeyError')
  (source / 'cls' / 'a.mat').unlink()
  refused(r'a\.mat cannot be read .*No such file.* anew')
  scipy.io.savemat(
    source / 'cls' / 'a.mat', {'GTcls': {'Segmentation': np.full((2, 2), 300)}}
  )
  refused(r'a\.mat cannot be read')
  (root / 'SegmentationClass' / 'y.png').write_bytes(encode(smooth(6, 8)))
  write_sbd(tmp_path / 'again')
  source = tmp_path / 'again'
  refused(r'y\.png cannot be read .*PNG of indices')
  (root / 'SegmentationClass' / 'y.png').unlink()
  refused(r'has no y\.png \(1 of the lists')
  (source / 'val.txt').unlink()
  refused(r'val\.txt: no such file; the layout is cls')
  source = root
  refused('has no folder cls, nor dataset nor benchmark_RELEASE/dataset')


def test_the_command(both, monkeypatch, capsys):
  source, root = both

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['fastsnn', 'merge-sbd', *arguments])
    cli.main()

  said = '7 masks in EncodeSegmentationClass, 5 names in trainaug.txt\n'
  capsys.readouterr()
  run(str(source), str(root))
  assert capsys.readouterr().out == said
  for arguments, code in (((str(root), str(root)), 2), (('--help',), 0)):
    with pytest.raises(SystemExit) as end:
      run(*arguments)
    assert end.value.code == code
  out, err = capsys.readouterr()
  assert err.startswith('error: ')
  assert out.startswith('usage: fastsnn merge-sbd [-h] sbd_dir voc_dir\n')


def test_scipy_is_asked_for(both, monkeypatch):
  source, root = both
  monkeypatch.setitem(sys.modules, 'scipy', None)
  monkeypatch.setitem(sys.modules, 'scipy.io', None)
  with pytest.raises(fs.UserError, match=r"'fastsnn_jax\[segmentation\]'"):
    sbd.merge_sbd(source, root)


@pytest.mark.parametrize(
  'name',
  ['../../out', '../SegmentationClass/d', '/out', '..\\out', 'a/b', '..'],
)
@pytest.mark.parametrize('where', ['sbd', 'voc'])
def test_names_that_lead_elsewhere_are_refused(both, name, where):
  source, root = both
  before = {x: x.read_bytes() for x in root.rglob('*') if x.is_file()}
  folder = source if where == 'sbd' else root / 'ImageSets/Segmentation'
  with (folder / 'train.txt').open('a') as listed:
    listed.write(f'\n{name}\n')
  with pytest.raises(
    fs.UserError, match=r'train\.txt has the name .*no folder'
  ):
    sbd.merge_sbd(source, root)
  (folder / 'train.txt').unlink()
  after = {x: x.read_bytes() for x in root.rglob('*') if x.is_file()}
  assert after.items() <= before.items()


def test_links_are_not_followed(both, tmp_path):
  source, root = both
  own = root / 'SegmentationClass'
  before = {path: path.read_bytes() for path in own.iterdir()}
  target = root / 'EncodeSegmentationClass'
  target.symlink_to(own)
  with pytest.raises(fs.UserError, match="VOC's own masks; make it a folder"):
    sbd.merge_sbd(source, root)
  target.unlink()
  target.mkdir()
  listed = root / 'ImageSets/Segmentation/trainaug.txt'
  links = target / 'a.png', target / 'c.png.part', listed
  for link in links:
    link.symlink_to(own / 'd.png')
  sbd.merge_sbd(source, root)
  assert not any(link.is_symlink() for link in links)
  assert {path: path.read_bytes() for path in own.iterdir()} == before
