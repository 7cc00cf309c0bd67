"""CSV files row by row, by one strict rule for all readers.

UTF-8, with or without a byte-order mark; any line ends; cells in quotes may
hold commas, line ends and doubled quotes. Blank lines are passed over. A row
with another number of cells than the first one, a quote that does not end, or
text behind a closing quote is refused. Messages name file and line.
"""

from __future__ import annotations

import csv
import gzip
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
  """The cells of a row, and the line of the file where it begins, from 1."""

  line: int
  cells: list[str]


def read(
  path: str | os.PathLike,
  header: Sequence[str] | None = None,
  *,
  of: str = "a table",
) -> list[Row]:
  """All rows of a file, `.gz` unpacked, the header among them.

  Args:
    path: the file.
    header: what the first row must be; None takes any.
    of: whose columns these are, for the message.

  Raises:
    ValueError: the file is empty, is no UTF-8 text, or a row is malformed.
  """
  path = pathlib.Path(path)
  opener = gzip.open if path.suffix == ".gz" else open
  out: list[Row] = []
  line = 1
  try:
    with opener(path, "rt", encoding="utf-8-sig", newline="") as f:
      reader = csv.reader(f, strict=True)
      for cells in reader:
        if cells:
          out.append(Row(line, cells))
        line = reader.line_num + 1
  except csv.Error as e:
    raise ValueError(f"{path}, line {line}: no row of a CSV file ({e}).") from e
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
    raise ValueError(f"{path} cannot be read: {e}") from e
  if not out:
    raise ValueError(f"{path} is empty.")
  if header is not None and out[0].cells != list(header):
    raise ValueError(
      f"{path} has the header {out[0].cells}: it must have the {len(header)} "
      f"columns of {of}, {','.join(header)}."
    )
  _check_widths(path, out)
  return out


def _check_widths(path: pathlib.Path, rows: Sequence[Row]) -> None:
  width = len(rows[0].cells)
  for row in rows:
    if len(row.cells) != width:
      raise ValueError(
        f"{path}, line {row.line}: {len(row.cells)} cells, and the first row "
        f"has {width}; rows of different lengths are not allowed. A cell with "
        "a comma goes in quotes."
      )


def with_header(
  path: str | os.PathLike, needed: Sequence[str] = ()
) -> tuple[list[str], list[Row]]:
  """Names of the columns, and the rows below them.

  Args:
    path: the file.
    needed: names that must be among them.

  Raises:
    ValueError: as `read`; a name that is missing, empty or comes twice.
  """
  first, *rows = read(path)
  names = [cell.strip() for cell in first.cells]
  check_names(path, names)
  if not set(needed) <= set(names):
    raise ValueError(
      f"{path} has the header {names}: it needs {','.join(needed)}."
    )
  return names, rows


def check_names(path: str | os.PathLike, names: Sequence[str]) -> None:
  """Refuses a header with a name that is empty or comes twice."""
  if not all(names) or len(set(names)) < len(names):
    raise ValueError(
      f"{path} has the header {list(names)}: each column must have a name of "
      "its own."
    )
