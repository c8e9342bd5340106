"""Trees and their metadata on disk; the only file that knows Orbax.

A checkpoint directory holds numbered steps. A step is written beside the older
ones and renamed when it is complete, so a kill or a full disk in the middle
leaves the last complete one.
"""

import contextlib
import pathlib

import jax
import numpy as np

from fastsnn_jax.errors import UserError

FORMAT = 1


class Store:
  """A directory, made if missing, of the newest steps, `keep` of them.

  They are saved in the background.
  """

  def __init__(self, directory, keep: int = 2):
    import orbax.checkpoint as ocp

    self.directory = pathlib.Path(directory).absolute()
    self._args = ocp.args
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    with self._told('cannot be opened'):
      self._manager = ocp.CheckpointManager(
        self.directory, options=options, item_names=('tree', 'meta')
      )

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
    return sorted(self._manager.all_steps())

  def meta(self, step: int) -> dict:
    """What was saved beside the tree of a step; no array is read."""
    meta = self._read(step, 'meta', self._args.JsonRestore())
    if meta.get('format', 0) > FORMAT:
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
    """Waits, and ends the threads that write."""
    self.wait()
    with self._told('cannot be written'):
      self._manager.close()

  @contextlib.contextmanager
  def _told(self, problem):
    """Turns what Orbax raises into one line."""
    try:
      yield
    except Exception as error:  # Orbax raises many kinds
      line = (str(error) or type(error).__name__).splitlines()[0][:200]
      raise UserError(
        f'{self.directory}: the checkpoint {problem} ({line}); free the disk, '
        'or remove what is damaged and run the same command again'
      ) from error


def save(directory, tree, meta: dict) -> None:
  """Writes a checkpoint, and only then removes the one before."""
  store = Store(directory, keep=1)
  store.save(max(store.steps(), default=-1) + 1, tree, meta)
  store.close()


def exists(directory) -> bool:
  """Whether a complete one is there; a kill while saving may leave none."""
  return any(path.name.isdigit() for path in pathlib.Path(directory).glob('*'))


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
  with contextlib.closing(Store(directory, keep=1)) as store:
    yield store
