"""Checkpoints: what comes back, and what a damaged or full disk leaves."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.jobs import one_line

from fastsnn_jax.checkpoint import store as checkpoint
from fastsnn_jax.checkpoint.store import Store
from fastsnn_jax.errors import UserError


def tree_of(value=1.0):
  value = float(value)
  return {
    'params': {
      'layer1.0.part1': {'kernel': jnp.full((3, 2), value), 'theta': value},
      'layer2': {'half': jnp.full(2, value, jnp.bfloat16)},
    },
    'step': jnp.int32(7),
    'counts': np.arange(3, dtype=np.uint8),
  }


META = {'model': 'a', 'bits': 2, 'seed': None, 'rate': 0.1, 'list': [1, 'b']}


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for mine, theirs in zip(
    jax.tree.leaves(got), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_array_equal(mine, theirs)
    if not isinstance(theirs, float):
      assert mine.dtype == theirs.dtype


@pytest.fixture
def late(monkeypatch):
  """What comes after a read has failed: other parts of it, into a closed loop.

  Python shows such errors, which nobody can catch.
  """
  errors = []
  monkeypatch.setattr(
    sys, 'unraisablehook', lambda late: errors.append(late.exc_value)
  )
  yield
  time.sleep(0.05)
  assert {type(error) for error in errors} <= {RuntimeError}


def test_trees_and_metadata_come_back(tmp_path):
  checkpoint.save(tmp_path / 'new' / 'ann2', tree_of(), META)
  tree, meta = checkpoint.load(tmp_path / 'new' / 'ann2')
  assert_same(tree, tree_of())
  assert meta == {'format': checkpoint.FORMAT, **META}
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(tree))


def test_a_structure_comes_back_as_it_is_asked_for(tmp_path):
  store = Store(tmp_path)
  tree = jax.tree.map(jnp.asarray, tree_of())
  state = (tree, {'best': jnp.float32(-np.inf)}, jnp.ones(2))
  store.save(5, state, META)
  store.wait()
  tree, meta = store.load(5, like=state)
  assert isinstance(tree, tuple)
  assert_same(tree, state)
  assert meta['seed'] is None
  assert store.meta(5) == meta
  store.close()


def test_the_newest_wins_and_a_second_save_replaces_the_first(tmp_path):
  for value in (1.0, 2.0):
    checkpoint.save(tmp_path, tree_of(value), {'value': value})
  tree, meta = checkpoint.load(tmp_path)
  assert meta['value'] == 2.0
  assert_same(tree, tree_of(2.0))
  assert [p.name for p in tmp_path.iterdir()] == ['1']


def test_a_store_keeps_the_newest_steps(tmp_path):
  store = Store(tmp_path, keep=2)
  for step in (3, 9, 27):
    store.save(step, tree_of(step), {})
  store.wait()
  assert store.steps() == [9, 27]
  assert_same(store.load(9)[0], tree_of(9.0))
  store.close()


def test_the_tree_is_copied_before_its_buffers_are_donated(tmp_path):
  bump = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  store = Store(tmp_path)
  arrays = {'x': jnp.arange(100_000.0), 'host': np.ones(4)}
  store.save(0, arrays, {})
  gone = bump(arrays['x'])
  arrays['host'][:] = -1
  assert arrays['x'].is_deleted()
  assert gone[0] == -1
  store.close()
  tree, _ = checkpoint.load(tmp_path)
  np.testing.assert_array_equal(tree['x'], np.arange(100_000))
  np.testing.assert_array_equal(tree['host'], np.ones(4))


@pytest.mark.parametrize('kind', ['missing', 'empty', 'a file', 'cut'])
def test_a_directory_without_a_checkpoint_is_refused(tmp_path, kind):
  directory = tmp_path / 'ann2'
  if kind == 'a file':
    directory.write_text('no directory')
  elif kind != 'missing':
    directory.mkdir()
  if kind == 'cut':  # what a kill while saving the first one leaves
    (directory / '0.orbax-checkpoint-tmp').mkdir()
  assert not checkpoint.exists(directory)
  with pytest.raises(UserError, match='holds no checkpoint') as caught:
    checkpoint.load(directory)
  assert str(directory) in one_line(caught)


def files_of(step):
  return sorted(path for path in step.rglob('*') if path.is_file())


@pytest.mark.parametrize(
  'name', ['metadata', '_METADATA', 'manifest.ocdbt', 'values', 'all']
)
@pytest.mark.parametrize('damage', ['truncated', 'missing'])
def test_a_damaged_newest_step_is_one_line_and_the_one_before_is_there(
  tmp_path, late, name, damage
):
  store = Store(tmp_path)
  for step in (1, 2):
    store.save(step, tree_of(step), {})
    store.wait()
  step = tmp_path / '2'
  chosen = {
    'metadata': [step / 'meta' / 'metadata'],
    '_METADATA': [step / 'tree' / '_METADATA'],
    'manifest.ocdbt': [step / 'tree' / 'manifest.ocdbt'],
    'values': [p for p in files_of(step) if p.parent.name == 'd'],
    'all': files_of(step),
  }[name]
  assert chosen
  for path in chosen:
    if damage == 'missing':
      path.unlink()
    else:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(UserError, match='cannot be read') as caught:
    checkpoint.load(tmp_path)
  assert str(tmp_path) in one_line(caught)
  assert_same(store.load(1)[0], tree_of(1.0))
  store.close()
  shutil.rmtree(step)  # what the message says
  assert_same(checkpoint.load(tmp_path)[0], tree_of(1.0))


def test_a_flipped_byte_of_the_values_is_noticed(tmp_path, late):
  checkpoint.save(tmp_path, tree_of(), {})
  values = [p for p in files_of(tmp_path / '0') if p.parent.name == 'd']
  for path in values:
    bytes_ = bytearray(path.read_bytes())
    bytes_[len(bytes_) // 2] ^= 0xFF
    path.write_bytes(bytes_)
  with pytest.raises(UserError, match='cannot be read') as caught:
    checkpoint.load(tmp_path)
  one_line(caught)


def test_another_structure_is_refused(tmp_path, late):
  store = Store(tmp_path)
  store.save(0, tree_of(), {})
  store.wait()
  other = {'params': {'other': jnp.ones(2)}}
  with pytest.raises(UserError, match='cannot be read') as caught:
    store.load(0, like=other)
  one_line(caught)
  store.close()


def test_a_newer_format_is_refused_by_name(tmp_path):
  checkpoint.save(tmp_path, tree_of(), META)
  path = tmp_path / '0' / 'meta' / 'metadata'
  meta = json.loads(path.read_text())
  assert meta['format'] == checkpoint.FORMAT
  newer = checkpoint.FORMAT + 1
  path.write_text(json.dumps({**meta, 'format': newer}))
  with pytest.raises(UserError, match=f'format {newer}') as caught:
    checkpoint.load(tmp_path)
  assert 'newer fastsnn_jax' in one_line(caught)


@contextlib.contextmanager
def small_disk(directory, size='300k'):
  """A file system that is soon full; skips where it cannot be made."""
  directory.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs']
  try:
    done = subprocess.run([*command, str(directory)], capture_output=True)
  except OSError:
    pytest.skip('no mount')
  if done.returncode:
    pytest.skip('a small file system cannot be mounted here')
  try:
    yield directory
  finally:
    subprocess.run(['umount', '-l', str(directory)], check=True)


def test_a_full_disk_leaves_the_last_complete_checkpoint(tmp_path, late):
  with small_disk(tmp_path / 'disk') as disk:
    directory = disk / 'ann2'
    checkpoint.save(directory, tree_of(), META)
    noise = np.random.default_rng(0).normal(size=200_000)  # no room for it
    with pytest.raises(UserError, match='cannot be written') as caught:
      checkpoint.save(directory, {'big': noise}, META)
    assert 'free the disk' in one_line(caught)
    tree, meta = checkpoint.load(directory)
    assert_same(tree, tree_of())
    assert meta['model'] == 'a'
    # Room again: the next save goes through.
    checkpoint.save(directory, tree_of(2.0), META)
    assert_same(checkpoint.load(directory)[0], tree_of(2.0))


def test_a_write_that_fails_leaves_the_last_complete_checkpoint(
  tmp_path, monkeypatch
):
  """The same where nothing can be mounted: the system call fails."""
  import orbax.checkpoint as ocp

  checkpoint.save(tmp_path, tree_of(), META)

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, 'wait_until_finished', full)
    with pytest.raises(UserError, match='No space left on device') as caught:
      checkpoint.save(tmp_path, tree_of(2.0), META)
  assert 'cannot be written' in one_line(caught)
  assert checkpoint.exists(tmp_path)
  assert checkpoint.load(tmp_path)[1]['model'] == 'a'


@pytest.mark.parametrize('name', ['2024', '0', '007', '٣', '1/tree', '5/meta'])
@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_what_we_did_not_write_is_never_removed(tmp_path, name, kind):
  mine = tmp_path / name / 'photo.jpg' if kind == 'folder' else tmp_path / name
  mine.parent.mkdir(parents=True, exist_ok=True)
  mine.write_text('keep')
  with pytest.raises(UserError, match='no checkpoint of fastsnn_jax') as caught:
    checkpoint.save(tmp_path, tree_of(), META)
  assert str(tmp_path / name.split('/')[0]) in one_line(caught)
  assert mine.read_text() == 'keep'
  assert [p for p in tmp_path.iterdir()] == [tmp_path / name.split('/')[0]]


def test_other_files_beside_and_notes_inside_of_a_step_stay(tmp_path):
  for name in ('tmp', 'notes.txt', '1.orbax', '-1', '1e3'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'mine').write_text('keep')
  checkpoint.save(tmp_path, tree_of(), META)
  checkpoint.save(tmp_path, tree_of(2.0), META)
  assert len(list(tmp_path.glob('*/mine'))) == 5
  note = tmp_path / '1' / 'note.txt'
  note.write_text('keep')
  with pytest.raises(UserError, match='move it away'):
    checkpoint.save(tmp_path, tree_of(3.0), META)
  assert note.exists()
  (tmp_path / '2024').mkdir()  # a later folder of the user is no step either
  assert_same(checkpoint.load(tmp_path)[0], tree_of(2.0))


@pytest.mark.parametrize(
  'name',
  ['lr[0.1]', 'a[b', 'back\\slash', 's*?r', '100%20 #1', 'é 日本.', '~', 'gs:',
   'file:', '{a,b}', 'line\nbreak', 'not utf-8 \udcff'],
)  # fmt: skip
def test_any_path_can_be_read_back(tmp_path, name):
  plain = [tmp_path / name] * (name == 'lr[0.1]')
  for directory in [tmp_path / 'x' / name / 'ann2', *plain]:
    checkpoint.save(directory, tree_of(), META)
    store = Store(directory)  # as training saves
    store.save(7, tree_of(2.0), META)
    store.close()
    assert_same(checkpoint.load(directory)[0], tree_of(2.0))
    assert sorted(p.name for p in directory.iterdir()) == ['0', '7']


def test_a_temporary_folder_with_brackets_is_refused_before_the_work(
  tmp_path, monkeypatch
):
  (tmp_path / 't[1]').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 't[1]'))
  with pytest.raises(UserError, match='TMPDIR'):
    Store(tmp_path / 'lr[0.1]')
  Store(tmp_path / 'plain').close()


@pytest.mark.parametrize('kind', ['a file', 'below a file', 'proc', 'too long'])
def test_a_directory_that_cannot_be_made_is_told_at_once(tmp_path, kind):
  (tmp_path / 'file').write_text('x')
  directory = {
    'a file': tmp_path / 'file',
    'below a file': tmp_path / 'file' / 'ann2',
    'proc': '/proc/ann2',
    'too long': tmp_path / ('x' * 300),
  }[kind]
  threads = threading.active_count()
  for save in (Store, lambda d: checkpoint.save(d, tree_of(), META)):
    with pytest.raises(UserError, match='cannot be written'):
      save(directory)
  assert threading.active_count() == threads


def no_more_than(threads):
  """Whether the threads of Orbax end, which they do a moment later."""
  end = time.monotonic() + 5
  while (now := threading.active_count()) > threads and time.monotonic() < end:
    time.sleep(0.02)
  return now <= threads or print(threading.enumerate())


def test_no_thread_waits_after_a_save_that_fails(tmp_path):
  threads = threading.active_count()
  store = Store(tmp_path / 'a')
  (tmp_path / 'a').rmdir()
  (tmp_path / 'a').write_text('in the way')
  with pytest.raises(UserError, match='cannot be written'):
    store.save(1, tree_of(), META)
  store.close()
  with pytest.raises(UserError, match='cannot be written'):
    checkpoint.save(tmp_path / 'b', tree_of(), {'no JSON': object()})
  assert no_more_than(threads)


@pytest.mark.parametrize('directory', [None, 3, {'params': {}}])
def test_what_is_no_path_is_told(directory):
  for call in (checkpoint.load, lambda d: checkpoint.save(d, {}, {})):
    with pytest.raises(UserError, match='a path is needed'):
      call(directory)


@pytest.mark.parametrize('meta', [{}, {'fromat': 1}, {'format': '1'}, []])
def test_metadata_without_a_format_are_told(tmp_path, meta):
  checkpoint.save(tmp_path, tree_of(), META)
  (tmp_path / '0' / 'meta' / 'metadata').write_text(json.dumps(meta))
  with pytest.raises(UserError, match="lack 'format'"):
    checkpoint.load(tmp_path)
