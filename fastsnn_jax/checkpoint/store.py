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
  """A directory of steps, saved in the background.

  Args:
    directory: made if missing.
    keep: newest steps that stay on disk.
  """

  def __init__(self, directory, keep: int = 2):
    import orbax.checkpoint as ocp

    self._ocp = ocp
    self.directory = pathlib.Path(directory).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    with _readable(self.directory, 'cannot be opened'):
      self._manager = ocp.CheckpointManager(
        self.directory, options=options, item_names=('tree', 'meta')
      )

  def save(self, step: int, tree, meta: dict) -> None:
    """Copies the tree to the host and starts to write it."""
    args = self._ocp.args
    # A copy: the caller may donate its buffers before they are on disk.
    host = jax.tree.map(lambda x: np.array(x, copy=True), tree)
    with _readable(self.directory, 'cannot be written'):
      self._manager.save(
        step,
        args=args.Composite(
          tree=args.StandardSave(host),
          meta=args.JsonSave({'format': FORMAT, **meta}),
        ),
        force=True,
      )

  def wait(self) -> None:
    """Returns when all that was saved is on disk."""
    with _readable(self.directory, 'cannot be written'):
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Numbers of the complete steps, oldest first."""
    return sorted(self._manager.all_steps())

  def meta(self, step: int) -> dict:
    """What was saved beside the tree of a step."""
    args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
    with _readable(self.directory, 'cannot be read'):
      meta = self._manager.restore(step, args=args)['meta']
      _check_format(self.directory, meta)
    return meta

  def load(self, step: int, like=None):
    """(tree, meta) of a step; `like` gives the tree's structure."""
    args = self._ocp.args
    meta = self.meta(step)
    with _readable(self.directory, 'cannot be read'):
      restore = args.StandardRestore(
        like and jax.tree.map(_as_host_array, like)
      )
      tree = self._manager.restore(step, args=args.Composite(tree=restore))
    tree = tree['tree']
    if like is not None and _shapes(tree) != _shapes(like):
      raise UserError(
        f'{self.directory}: step {step} holds arrays of other shapes than this '
        'network and data have; give the settings and data it was saved with'
      )
    return tree, meta

  def close(self) -> None:
    with _readable(self.directory, 'cannot be written'):
      self._manager.wait_until_finished()
      self._manager.close()


def save(directory, tree, meta: dict) -> None:
  """Writes a checkpoint, and only then removes the one before."""
  store = Store(directory, keep=1)
  store.save(max(store.steps(), default=-1) + 1, tree, meta)
  store.close()


def exists(directory) -> bool:
  """Whether a complete one is there; a kill while saving may leave none."""
  directory = pathlib.Path(directory)
  return directory.is_dir() and any(
    entry.name.isdigit() for entry in directory.iterdir()
  )


def read_meta(directory) -> dict:
  """What was saved beside the newest tree, without reading that.

  Raises:
    UserError: as `load`.
  """
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
  store = Store(directory, keep=1)
  try:
    yield store
  finally:
    store.close()


def _shapes(tree):
  return jax.tree.map(np.shape, tree)


def _as_host_array(x):
  return np.zeros(x.shape, x.dtype)


def _check_format(directory, meta):
  if meta.get('format', 0) > FORMAT:
    raise UserError(
      f'{directory}: checkpoint of format {meta["format"]}, but this version '
      f'reads formats up to {FORMAT}; install a newer fastsnn_jax'
    )


@contextlib.contextmanager
def _readable(directory, problem):
  """Turns what Orbax raises into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Orbax raises many kinds
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    raise UserError(
      f'{directory}: the checkpoint {problem} ({line}); free the disk, or '
      'remove what is damaged and run the same command again'
    ) from error
