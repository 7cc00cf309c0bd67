"""A file that only grows: JSON lines, each with the hash of the line before.

What is written is on the disk when `append` returns. Nothing in the middle can
be changed or left out unnoticed; whoever keeps the `head` (a checkpoint does)
also sees that the end was changed or cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

_FIRST = "0" * 16
_BEFORE = "before"

Record = dict[str, Any]


class LedgerError(ValueError):
  """The ledger and what is to be done do not agree."""


def digest(text: str) -> str:
  """16 hex digits that name a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _no_constant(name: str):
  raise ValueError(f"{name} is not a number that a line can hold")


def _object(line: bytes) -> Record:
  """The JSON object that a line is.

  Raises:
    ValueError: it is none.
  """
  try:
    found = json.loads(line.decode(), parse_constant=_no_constant)
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
  if not isinstance(found, dict):
    raise ValueError(f"it is a {type(found).__name__}, not an object")
  return found


class Chain:
  """The records of a file, and its end.

  A last line without its end of line is counted if it is whole: it may have
  been acted on. If it is torn, `append` had not returned; it is left out, and
  cut off when the next line is written. Reading changes nothing.

  Args:
    path: made with its folder when the first line is written.
    check: raises ValueError if a record is not as it should be.

  Attributes:
    records: all of them, oldest first.
    torn: whether a torn last line was left out.

  Raises:
    LedgerError: a line that is malformed or does not follow the one before;
      names file and line.
  """

  def __init__(self, path: str | os.PathLike, check: Callable[[Record], None]):
    self.path, self._check = pathlib.Path(path), check
    self.records: list[Record] = []
    self._hashes: list[str] = []
    self._size = self._good = 0
    self._ended, self.torn = True, False
    if self.path.exists():
      self._read(self.path.read_bytes())

  def _read(self, content: bytes) -> None:
    *whole, rest = content.split(b"\n")
    self._size, self._good = len(content), len(content) - len(rest)
    for line in whole:
      self._add(line)
    if not rest:
      return
    try:
      _object(rest)
    except ValueError:
      self.torn = True
      return
    self._add(rest)
    self._ended, self._good = False, len(content)

  def _add(self, line: bytes) -> None:
    number = len(self.records) + 1
    try:
      record = _object(line)
      if record.pop(_BEFORE, None) != self._last:
        raise ValueError(
          "it does not follow the line before: the ledger was changed"
        )
      self._check(record)
    except ValueError as error:
      reason = str(error).rstrip(".")
      raise LedgerError(f"{self.path}, line {number}: {reason}.") from error
    self.records.append(record)
    self._hashes.append(digest(line.decode()))

  @property
  def _last(self) -> str:
    return self._hashes[-1] if self._hashes else _FIRST

  @property
  def head(self) -> Record:
    """Names the whole content: the number of records, and a hash."""
    return {"records": len(self.records), "hash": self._last}

  def verify(self, head: Mapping[str, Any], *, is_end: bool = False) -> None:
    """Refuses a content that does not go on from an earlier `head`.

    Args:
      head: what `head` was.
      is_end: whether nothing may have been written since.

    Raises:
      LedgerError: records are missing, were changed, or came after the end.
    """
    there = len(self.records)
    try:
      wanted, name = int(head["records"]), str(head["hash"])
    except (TypeError, KeyError, ValueError) as error:
      raise LedgerError(
        f"head={head!r} is not allowed: it must be that of a ledger."
      ) from error
    back = "Put the ledger back that belongs to this folder"
    if there < wanted:
      raise LedgerError(
        f"{self.path} has {there} of the {wanted} records that it had: it was "
        f"cut off, emptied or exchanged. {back}."
      )
    if name != (self._hashes[wanted - 1] if wanted else _FIRST):
      raise LedgerError(
        f"{self.path}, line {max(wanted, 1)}: it is not the line that was "
        f"written there; the ledger was changed or exchanged. {back}."
      )
    if is_end and (there > wanted or self.torn):
      raise LedgerError(
        f"{self.path}, line {wanted + 1}: it came after the run was finished "
        f"with {wanted} records. {back}."
      )

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes a record; returns when it is on the disk.

    Raises:
      LedgerError: another program wrote to the file.
      ValueError: the record is not as it should be.
    """
    self._check(dict(record))
    line = json.dumps(
      {**record, _BEFORE: self._last}, sort_keys=True, allow_nan=False
    )
    is_new = not self.path.exists()
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self.path.open("ab") as file:
      self._prepare(file)
      file.write(line.encode() + b"\n")
      file.flush()
      os.fsync(file.fileno())
      self._size = self._good = file.tell()
    if is_new:  # its name in the folder must last as well
      _sync(self.path.parent)
    self.records.append(json.loads(line))
    del self.records[-1][_BEFORE]
    self._hashes.append(digest(line))

  def _prepare(self, file) -> None:
    """Makes the end of the file the start of a line."""
    if file.seek(0, os.SEEK_END) != self._size:
      raise LedgerError(
        f"{self.path} was written to by something else since it was read."
      )
    if self.torn:
      file.truncate(self._good)
      file.seek(0, os.SEEK_END)
      self.torn = False
    if not self._ended:
      file.write(b"\n")
      self._ended = True


def _sync(folder: pathlib.Path) -> None:
  number = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)
