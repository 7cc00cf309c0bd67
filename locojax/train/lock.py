"""A folder is worked on by one program at a time.

The lock is one of the operating system on a file in the folder, a POSIX record
lock, which NFS knows too: it is gone with the process, however that ended. What
the file says is for people.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import TextIO

from locojax.train import distributed

try:
  import fcntl
except ImportError:  # not a POSIX system
  fcntl = None

_log = logging.getLogger(__name__)

FILE = "run.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_held: dict[pathlib.Path, int] = {}
_guard = threading.Lock()


class Busy(ValueError):
  """Another program works in the folder."""


def _owner(file: TextIO) -> str:
  """Who holds a lock, as its file says."""
  try:
    found = json.loads(file.read())
    return f"process {found['pid']} on {found['host']} since {found['since']}"
  except (ValueError, KeyError, TypeError):
    return "another process"


def _busy(folder: pathlib.Path, owner: str) -> Busy:
  return Busy(
    f"workdir={str(folder)!r} is not allowed: {owner} works in it. Wait for "
    "it, stop it, or choose another folder."
  )


def _try(file: TextIO, folder: pathlib.Path) -> str:
  """Locks a file; who holds it already, or nothing."""
  if fcntl is None:
    return ""
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _TAKEN:
      return _owner(file)
    _log.warning(
      "%s: this file system has no locks (%s): nothing keeps a second program "
      "out of the folder",
      folder,
      error,
    )
  return ""


def _sign(file: TextIO) -> None:
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
  file.seek(0)
  file.truncate()
  file.write(json.dumps(mine) + "\n")
  file.flush()


def _take(folder: pathlib.Path) -> TextIO | None:
  """The locked file; None if this thread holds the folder already."""
  with _guard:
    if folder in _held:
      # To open the file again and close it would give the lock away.
      if _held[folder] == threading.get_ident():
        return None
      raise _busy(folder, "another thread of this program")
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / FILE).open("a+")
    file.seek(0)
    owner = _try(file, folder)
    if owner:
      file.close()
      raise _busy(folder, owner)
    _held[folder] = threading.get_ident()
  _sign(file)
  return file


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps other programs out of a folder while the context lasts.

  The folder is made if need be. A thread that holds it may ask again. Process 0
  of a run of many holds it for all; to be called by all.

  Raises:
    Busy: another process or thread holds it; says which.
  """
  folder = pathlib.Path(folder).absolute()
  file, refusal = None, None
  if distributed.is_main():
    try:
      file = _take(folder)
    except Busy as busy:
      refusal = busy
  if not distributed.all_true(refusal is None):
    raise refusal or _busy(folder, "another run")
  try:
    yield
  finally:
    if file is not None:
      with _guard:
        del _held[folder]
        file.close()
