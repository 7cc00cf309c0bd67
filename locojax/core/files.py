"""Files that are there whole or not at all.

A file is written beside its place, forced to the disk, and moved there: a
process killed at any moment leaves the earlier file, or none. What was damaged
by something else is named, with what to do about it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import secrets
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

AGAIN = "remove it, and the same command makes it again"


class Damaged(ValueError):
  """A file is not what it should be; names it and says what to do."""


def _damaged(path: pathlib.Path, why: object, remedy: str) -> Damaged:
  return Damaged(f"{path} is damaged ({why}): {remedy}.")


def _sync_folder(folder: pathlib.Path) -> None:
  """Makes names in a folder last, where the system can."""
  if os.name != "posix":
    return
  number = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def write(
  path: str | os.PathLike, fill: Callable[[BinaryIO], Any]
) -> pathlib.Path:
  """Replaces a file at one stroke; folders are made.

  Args:
    path: the file.
    fill: writes the content into a binary file.

  Returns:
    The path.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
  try:
    with part.open("wb") as file:
      fill(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise
  _sync_folder(path.parent)
  return path


def write_text(path: str | os.PathLike, text: str) -> pathlib.Path:
  """Replaces a UTF-8 text file at one stroke."""
  return write(path, lambda file: file.write(text.encode()))


def write_json(path: str | os.PathLike, value: Any) -> pathlib.Path:
  """Replaces a JSON file at one stroke."""
  return write_text(path, json.dumps(value, indent=2) + "\n")


def write_array(path: str | os.PathLike, array: np.ndarray) -> pathlib.Path:
  """Replaces a `.npy` file at one stroke."""
  return write(path, lambda file: np.save(file, array))


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> pathlib.Path:
  """Replaces an `.npz` file at one stroke."""
  return write(path, lambda file: np.savez(file, **arrays))


def read_json(path: str | os.PathLike, *, remedy: str = AGAIN) -> Any:
  """What a JSON file holds.

  Args:
    path: the file.
    remedy: what the error tells to do.

  Raises:
    Damaged: it is not JSON.
    OSError: it is not there or cannot be read.
  """
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_bytes())
  except ValueError as error:
    raise _damaged(path, error, remedy) from error


def read_array(path: str | os.PathLike, *, remedy: str = AGAIN) -> np.ndarray:
  """What a `.npy` file holds; raises as `read_json` does."""
  return _load(pathlib.Path(path), remedy, lambda found: found)


def read_arrays(
  path: str | os.PathLike, *, remedy: str = AGAIN
) -> dict[str, np.ndarray]:
  """What an `.npz` file holds, by name; raises as `read_json` does."""
  whole = lambda found: {name: found[name] for name in found.files}
  return _load(pathlib.Path(path), remedy, whole)


def _load(path: pathlib.Path, remedy: str, take: Callable[[Any], Any]) -> Any:
  content = path.read_bytes()
  try:
    return take(np.load(io.BytesIO(content), allow_pickle=False))
  except (
    ValueError,
    KeyError,
    EOFError,
    OSError,
    AttributeError,
    zipfile.BadZipFile,
  ) as error:
    raise _damaged(path, error or type(error).__name__, remedy) from error


def read_lines(path: str | os.PathLike) -> list[tuple[int, Any]]:
  """The JSON values of a file that has one on each line, with their numbers.

  Lines of blanks alone are passed over. A name that ends in `.gz` is unpacked.

  Returns:
    `(number of the line, from 1; value)`.

  Raises:
    Damaged: a line is not JSON; names it.
    OSError: the file is not there or cannot be read.
  """
  path = pathlib.Path(path)
  content, out = path.read_bytes(), []
  if path.suffix == ".gz":
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
      raise _damaged(path, error, "fetch it again") from error
  for number, line in enumerate(content.split(b"\n"), 1):
    if line.strip():
      try:
        out.append((number, json.loads(line)))
      except ValueError as error:
        why = f"line {number} is not JSON: {error}"
        raise _damaged(path, why, "correct or remove that line") from error
  return out


class Lines:
  """A file of JSON objects, one on each line, that grows line by line.

  Each is forced to the disk before `append` returns. A program killed in the
  middle leaves all lines whole but the last, which is dropped when the file is
  next opened: what was appended is there once.

  Attributes:
    rows: the objects that were there when it was opened.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens, or makes, a file.

    Raises:
      Damaged: a line other than the last is not JSON.
    """
    self._path = pathlib.Path(path)
    content = self._path.read_bytes() if self._path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content or not self._path.exists():
      write(self._path, lambda file: file.write(whole))
    self.rows = [row for _, row in read_lines(self._path)]
    self._file = self._path.open("ab")

  def append(self, row: Any) -> None:
    """Writes one more object."""
    self._file.write(json.dumps(row).encode() + b"\n")
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __enter__(self) -> Lines:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()
