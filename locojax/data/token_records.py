"""Rows of tokens in ArrayRecord files: written whole, read by position.

A folder has files of rows and `records.json`, which says what they are. Needs
the package `array_record` (extra `minerva`).
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks, files

MANIFEST = "records.json"
DTYPES = ("uint16", "int32")
_OPTIONS = "group_size:1"  # each row is read alone


def _library() -> Any:
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise ImportError(
      "array_record is missing: install locojax[minerva]."
    ) from error
  return array_record_module


def dtype_of(vocab_size: int) -> str:
  """The smallest of `DTYPES` that holds all tokens of a vocabulary."""
  checks.positive_int("vocab_size", vocab_size)
  return DTYPES[0] if vocab_size <= 2**16 else DTYPES[1]


def file_of_rows(rows: np.ndarray, *, dtype: str) -> bytes:
  """The content of an ArrayRecord file, a record for each row.

  Args:
    rows: `[n, length]` integers, n at least 1.
    dtype: one of `DTYPES`; a record is a row in it, little endian.

  Raises:
    ValueError: no rows, or a token that the dtype does not hold.
    ImportError: array_record is not installed.
  """
  checks.one_of("dtype", dtype, DTYPES)
  rows = checks.integers("rows", rows, np.dtype(dtype))
  if rows.ndim != 2 or not rows.size:
    checks.refuse("rows", f"of shape {rows.shape}", "[n, length], not empty")
  rows = rows.astype(rows.dtype.newbyteorder("<"))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "rows"
    writer = _library().ArrayRecordWriter(str(path), _OPTIONS)
    for row in rows:
      writer.write(row.tobytes())
    writer.close()
    return path.read_bytes()


def write_manifest(
  folder: str | os.PathLike,
  found: Mapping[str, int],
  *,
  seq_len: int,
  dtype: str,
  **known: Any,
) -> pathlib.Path:
  """Says what the files of a folder are.

  Args:
    folder: of the files.
    found: name of a file -> its number of rows.
    seq_len, dtype: of the rows.
    **known: what else is of use, such as `eod_id` and `vocab_size`.
  """
  return files.write_json(
    pathlib.Path(folder) / MANIFEST,
    {
      "dtype": dtype,
      "seq_len": seq_len,
      **known,
      "files": [{"name": n, "rows": found[n]} for n in sorted(found)],
    },
  )


class TokenSource:
  """Rows of tokens as examples `{"tokens": int32 [seq_len]}`.

  Attributes:
    about: what `records.json` says.
  """

  def __init__(self, folder: pathlib.Path):
    self.about = files.read_json(
      folder / MANIFEST, remedy="make it again with the data pipeline"
    )
    _library()
    from array_record.python import array_record_data_source

    paths = [str(folder / f["name"]) for f in self.about["files"]]
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing or not paths:
      raise FileNotFoundError(
        f"{folder} lacks files that its {MANIFEST} names: {missing[:3]}."
      )
    self._source = array_record_data_source.ArrayRecordDataSource(paths)
    wanted = sum(f["rows"] for f in self.about["files"])
    if len(self._source) != wanted:
      raise ValueError(
        f"{folder} has {len(self._source)} rows, and its {MANIFEST} says "
        f"{wanted}: it is damaged; make it again."
      )
    self._dtype = np.dtype(self.about["dtype"]).newbyteorder("<")

  def __len__(self) -> int:
    return len(self._source)

  def _example(self, record: bytes) -> dict[str, np.ndarray]:
    return {"tokens": np.frombuffer(record, self._dtype).astype(np.int32)}

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._example(self._source[int(index)])

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
    wanted = [int(i) for i in indices]
    return [self._example(r) for r in self._source.__getitems__(wanted)]


def from_token_records(folder: str | os.PathLike) -> TokenSource:
  """Rows that the data pipeline has packed, read by position.

  Args:
    folder: with `records.json`.

  Returns:
    A source of `tokens` `[seq_len]` int32.

  Raises:
    FileNotFoundError: no such folder, or a file is missing.
    ValueError: the number of rows is not what it should be.
    ImportError: array_record is not installed.
  """
  folder = pathlib.Path(folder)
  if not (folder / MANIFEST).is_file():
    raise FileNotFoundError(f"there is no {MANIFEST} in {folder}.")
  return TokenSource(folder)
