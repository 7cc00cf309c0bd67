"""What data are, in a few digits: two digests are equal if the data are.

A run folder keeps the digest of what it was trained on, so that it does not
answer for other data.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from locojax.data import folders

# Files of more than this together are looked at in blocks.
WHOLE = 2**30
_BLOCK, _NUM_BLOCKS = 2**16, 16
_known: dict[tuple, bytes] = {}


def _short(digest) -> str:
  return digest.hexdigest()[:16]


def of_arrays(arrays: Mapping[str, Any]) -> str:
  """Digest of arrays by name: dtypes, shapes and all values.

  Args:
    arrays: NumPy arrays of numbers, booleans or text.

  Returns:
    16 hexadecimal digits.

  >>> of_arrays({"x": [1, 2]}) == of_arrays({"x": [2, 1]})
  False
  """
  total = hashlib.sha256()
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    if array.dtype == object:
      array = array.astype(str)
    total.update(f"{name} {array.dtype.str} {array.shape};".encode())
    rows = array.reshape(-1)
    step = max(1, 2**24 // max(1, array.itemsize))
    for i in range(0, rows.size, step):
      total.update(np.ascontiguousarray(rows[i : i + step]).tobytes())
  return _short(total)


def of_files(
  root: str | os.PathLike, files: Iterable[pathlib.Path] | None = None
) -> str:
  """Digest of a file or folder: names, sizes and contents.

  Contents are read whole if the files are no more than `WHOLE` bytes together,
  else 16 evenly spread blocks of 64 KiB of each. A file is read once a process,
  again if its size or time has changed. What is hidden does not count.

  Args:
    root: a file, or a folder; names are taken below it.
    files: of the folder; None takes all of them at any depth.

  Returns:
    16 hexadecimal digits.

  Raises:
    OSError: a file is not there or cannot be read.
  """
  root = pathlib.Path(root)
  if files is None:
    files = folders.visible(root, deep=True) if root.is_dir() else [root]
  found = [(path, path.stat()) for path in sorted(files)]
  whole = sum(stat.st_size for _, stat in found) <= WHOLE
  total = hashlib.sha256()
  for path, stat in found:
    name = path.relative_to(root).as_posix() if path != root else ""
    total.update(f"{name}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
    total.update(_content(path, stat, whole))
  return _short(total)


def _content(path: pathlib.Path, stat: os.stat_result, whole: bool) -> bytes:
  key = (path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino, whole)
  if key not in _known:
    total = hashlib.sha256()
    with path.open("rb") as file:
      if whole or stat.st_size <= _BLOCK * _NUM_BLOCKS:
        while block := file.read(2**20):
          total.update(block)
      else:
        for i in range(_NUM_BLOCKS):
          file.seek((stat.st_size - _BLOCK) * i // (_NUM_BLOCKS - 1))
          total.update(file.read(_BLOCK))
    _known[key] = total.digest()
  return _known[key]
