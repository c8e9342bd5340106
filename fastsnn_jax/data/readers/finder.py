"""Files by the names that lists and annotations give them."""

import os
import pathlib
import unicodedata

from fastsnn_jax.data.decode import SUFFIXES


def inside(name: str) -> bool:
  r"""Whether a name stays below its folder: no root, drive or `..`.

  >>> inside('a/b.jpg'), inside('../b.jpg'), inside('\\b'), inside('C:\\b')
  (True, False, False, False)
  """
  windows = pathlib.PureWindowsPath(name)
  rooted = windows.root or pathlib.PurePath(name).anchor
  return bool(windows.parts) and not rooted and '..' not in windows.parts


class Finder:
  """Finds regular files; each folder is looked at once.

  Endings are found in any case, and accents however they are composed. Devices
  and pipes are no files.
  """

  def __init__(self):
    self._folders = {}

  def __call__(self, folder, name: str, endings=('',)) -> pathlib.Path | None:
    """The first file `folder/name` + ending, if it is `inside`."""
    for part in dict.fromkeys((name, name.replace('\\', '/'))):
      if not inside(part):
        return None
      path = pathlib.Path(folder, part)
      listed = self._listed(path.parent)
      for ending in endings:
        file = path.name + ending
        if found := listed.get(file) or listed.get(_key(file)):
          return path.parent / found
    return None

  def _listed(self, folder):
    if folder not in self._folders:
      try:
        with os.scandir(folder) as entries:
          files = sorted(x.name for x in entries if is_file(x))
      except (OSError, ValueError):  # there is none, or its name is impossible
        files = []
      known = {_key(name): name for name in reversed(files)}
      self._folders[folder] = known | {name: name for name in files}
    return self._folders[folder]


def _key(name):
  stem, ending = os.path.splitext(unicodedata.normalize('NFC', name))
  return stem + ending.lower()


def is_file(entry) -> bool:
  """Whether an `os.DirEntry` is a regular file; a link may lead to itself."""
  try:
    return entry.is_file()
  except OSError:
    return False


def is_folder(entry) -> bool:
  try:
    return entry.is_dir()
  except OSError:
    return False


def is_picture(name: str) -> bool:
  """Whether a file's name ends like that of a picture, in any case."""
  return name.lower().endswith(SUFFIXES)
