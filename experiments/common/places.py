"""Checks of the files and folders that a config names, before a run."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

from experiments.common import drawings, text_files
from locojax.core import checks
from locojax.data import tfds_dirs

# What a package has, or what is drawn.
_INSIDE = ("digits", "scenes", "problems")


def writable(name: str, given: Any, folder: pathlib.Path) -> None:
  """A folder that is there and can be written, or that can be made.

  Nothing is left behind: where it is not there yet, the nearest folder above it
  is tried.

  Raises:
    ValueError: it, or something above it, is a file or cannot be written.
  """
  there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
  if not there.is_dir():
    checks.refuse(
      name, given, f"where a folder can be, and {str(there)!r} is a file"
    )
  try:
    if not os.access(there, os.W_OK | os.X_OK):
      raise PermissionError("no permission")
    with tempfile.TemporaryFile(dir=there):
      pass
  except OSError as error:
    raise ValueError(
      f"{name}={given!r} is not allowed: nothing can be written in "
      f"{str(there)!r} ({error.strerror or error})."
    ) from error


def results(name: str, found: str) -> str:
  """The result file: nothing, or a file that can be written."""
  if checks.text(name, found):
    where = pathlib.Path(found).absolute()
    if where.is_dir():
      checks.refuse(name, found, "a file, and it is a folder")
    writable(name, found, where.parent)
  return found


def data_set(
  key: str, name: str, data_dir: str | None, given: Any = None
) -> None:
  """A prepared data set is there.

  Args:
    key: dotted key of its name.
    name: of `datasets.DATASETS`, `drawings.SETS` or `text_files.FILES`, or as
      tfds names it.
    data_dir: as of the config.
    given: what the key has, if not the name.

  Raises:
    ValueError: it is not there; says how to get it.
  """
  if name in _INSIDE:
    return
  try:
    if name in text_files.FILES:
      text_files.files_of(name, data_dir=data_dir or "")
    elif name in drawings.SETS:
      drawings.files_of(name, data_dir or None)
    else:
      tfds_dirs.find(name, data_dir=data_dir or None)
  except FileNotFoundError as error:
    given = name if given is None else given
    raise ValueError(f"{key}={given!r} is not allowed here: {error}") from error


def expanded(path: str | os.PathLike) -> pathlib.Path:
  """A path with variables of the environment and `~` filled in."""
  return pathlib.Path(os.path.expandvars(path)).expanduser()


def there(name: str, found: str) -> str:
  """A rule: nothing, or a file or folder that is there."""
  if checks.text(name, found):
    path(name, found, "a file or folder")
  return found


def path(
  key: str, found: str, what: str, *, folder: bool | None = None
) -> None:
  """A file or folder of the user's own is there.

  Args:
    key: dotted key of the path.
    found: the path, see `expanded`.
    what: it must be, for the message.
    folder: whether it must be a folder (True) or a file (False).
  """
  where = expanded(found)
  right = {None: where.exists, True: where.is_dir, False: where.is_file}
  if not found or not right[folder]():
    there = "" if not found else ", and there is none"
    checks.refuse(key, found, f"{what}{there}")
