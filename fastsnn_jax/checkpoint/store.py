"""Trees and their metadata on disk; the only file that knows Orbax.

A checkpoint directory holds numbered steps. A step is written beside the older
ones and renamed when it is complete, so a kill or a full disk in the middle
leaves the last complete one.
"""

import contextlib
import json
import pathlib
import re
import tempfile

import jax
import numpy as np

from fastsnn_jax.errors import UserError

FORMAT = 1
_PARTS = {'tree', 'meta'}
_MARKS = {'_CHECKPOINT_METADATA', 'commit_success.txt'}  # Orbax's, beside them
# What Orbax takes for a pattern or a protocol, or cannot write down.
_ODD = re.compile(r'[][*?\\:\x00-\x1f\x7f\ud800-\udfff]')


class Store:
  """A directory, made if missing, of the newest steps, `keep` of them.

  They are saved in the background, or with `wait` before `save` returns. With
  `keep` of 0 it is only read.

  UserError for a directory that cannot be written, or one that holds numbered
  entries of somebody else, which Orbax would take for old steps and remove.
  """

  def __init__(self, directory, keep: int = 2, *, wait: bool = False):
    import orbax.checkpoint as ocp

    self.directory = as_path(directory).absolute()
    self._args, self._aside = ocp.args, contextlib.ExitStack()
    if keep:
      self._prepare()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep or None,
      create=False,
      enable_async_checkpointing=not wait,
      # Else threads wait 300 s for a folder that could not be made.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with self._told('cannot be opened'):
      self._manager = ocp.CheckpointManager(
        self._plain(), options=options, item_names=('tree', 'meta')
      )

  def _prepare(self):
    """Makes the directory, and sees that it can be written and is ours."""
    if jax.process_index() == 0:
      with self._told('cannot be written'):
        self.directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.directory).close()
    if self.directory.is_dir():
      for path in sorted(self.directory.iterdir()):
        if path.name.isdigit() and not _written_here(path):
          raise UserError(
            f'{path} is no checkpoint of fastsnn_jax, or a damaged one, and '
            'would be taken for an old step; give an empty directory, or move '
            'it away'
          )

  def _plain(self):
    """The directory under a path that nobody takes for a pattern."""
    if not _ODD.search(str(self.directory)):
      return self.directory
    if jax.process_count() > 1 or _ODD.search(tempfile.gettempdir()):
      raise UserError(
        f'{self.directory}: checkpoints of several processes, or under such a '
        'TMPDIR, need a path without any of [ ] * ? \\ :'
      )
    aside = tempfile.TemporaryDirectory(prefix='fastsnn_')
    link = pathlib.Path(self._aside.enter_context(aside), 'checkpoint')
    link.symlink_to(self.directory)
    return link

  def save(self, step: int, tree, meta: dict) -> None:
    """Copies the tree to the host and starts to write it."""
    # A copy: the caller may donate its buffers before they are on disk.
    tree = self._args.StandardSave(jax.tree.map(np.array, tree))
    meta = self._args.JsonSave({'format': FORMAT, **meta})
    args = self._args.Composite(tree=tree, meta=meta)
    with self._told('cannot be written'):
      self._manager.save(step, args=args, force=True)

  def wait(self) -> None:
    """Returns when all that was saved is on disk."""
    with self._told('cannot be written'):
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Numbers of the complete steps, oldest first."""
    return sorted(map(int, _steps(self.directory)))

  def meta(self, step: int) -> dict:
    """What was saved beside the tree of a step; no array is read."""
    meta = self._read(step, 'meta', self._args.JsonRestore())
    if not isinstance(meta, dict) or not isinstance(meta.get('format'), int):
      raise UserError(
        f"{self.directory}: the metadata of step {step} lack 'format', a whole "
        'number; it is no checkpoint of fastsnn_jax, or was edited'
      )
    if meta['format'] > FORMAT:
      raise UserError(
        f'{self.directory}: checkpoint of format {meta["format"]}, but this '
        f'version reads formats up to {FORMAT}; install a newer fastsnn_jax'
      )
    return meta

  def _read(self, step, part, how):
    args = self._args.Composite(**{part: how})
    with self._told('cannot be read'):
      return self._manager.restore(step, args=args)[part]

  def load(self, step: int, like=None):
    """(tree, meta) of a step; `like` gives the tree's structure."""
    meta = self.meta(step)
    blank = like and jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    tree = self._read(step, 'tree', self._args.StandardRestore(blank))
    shapes, wanted = jax.tree.map(np.shape, (tree, like))
    if like is not None and shapes != wanted:
      raise UserError(
        f'{self.directory}: step {step} holds arrays of other shapes than this '
        'network and data have; give the settings and data it was saved with'
      )
    return tree, meta

  def close(self) -> None:
    """Waits, and ends the threads that write, also where that fails."""
    closing = contextlib.closing(self._manager)
    with self._told('cannot be written'), self._aside, closing:
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _told(self, problem):
    """Turns what Orbax raises into one line."""
    try:
      yield
    except UserError:
      raise
    except Exception as error:  # Orbax raises many kinds
      line = (str(error) or type(error).__name__).splitlines()[0][:200]
      raise UserError(
        f'{self.directory}: the checkpoint {problem} ({line}); free the disk, '
        'give a directory that can be written, or remove what is damaged and '
        'run the same command again'
      ) from error


def as_path(directory) -> pathlib.Path:
  """UserError for what is no path."""
  try:
    return pathlib.Path(directory)
  except TypeError as error:
    raise UserError(
      f'directory={str(directory)[:60]!r}: a path is needed, as text or a '
      'pathlib.Path'
    ) from error


def _steps(directory) -> list[str]:
  """Names of the complete steps, damaged ones too; no other numbered folder."""
  try:
    paths = list(as_path(directory).iterdir())
  except OSError:
    return []
  # Orbax takes 7 for a step, and 007 or ٧ for none.
  numbers = [p for p in paths if re.fullmatch('0|[1-9][0-9]*', p.name)]
  return [
    p.name for p in numbers if any((p / part).is_dir() for part in _PARTS)
  ]


def _written_here(step: pathlib.Path) -> bool:
  """Whether a step holds our metadata, and nothing that we did not write."""
  try:
    meta = json.loads((step / 'meta' / 'metadata').read_bytes())
    return (
      'format' in meta and {p.name for p in step.iterdir()} <= _PARTS | _MARKS
    )
  except (OSError, ValueError, TypeError):
    return False


def save(directory, tree, meta: dict) -> None:
  """Writes a checkpoint, and only then removes the one before."""
  with contextlib.closing(Store(directory, keep=1, wait=True)) as store:
    store.save(max(store.steps(), default=-1) + 1, tree, meta)


def exists(directory) -> bool:
  """Whether a complete one is there; a kill while saving may leave none."""
  return bool(_steps(directory))


def read_meta(directory) -> dict:
  """What was saved beside the newest tree, without reading that; see `load`."""
  with _opened(directory) as store:
    return store.meta(store.steps()[-1])


def load(directory):
  """(tree, meta) of the newest complete checkpoint.

  Raises:
    UserError: nothing there, not readable, or of a newer format.
  """
  with _opened(directory) as store:
    return store.load(store.steps()[-1])


@contextlib.contextmanager
def _opened(directory):
  if not exists(directory):
    raise UserError(
      f'{directory} holds no checkpoint; train.py writes one per stage (ann32, '
      'ann4, …) into its --workdir, convert.py one per bit width (snn4, …)'
    )
  with contextlib.closing(Store(directory, keep=0)) as store:
    yield store
