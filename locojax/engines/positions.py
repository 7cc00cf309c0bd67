"""Places in a text: offsets, lines and columns, UTF-16 columns.

The language server protocol (3.17, "Text Documents") ends lines with `\\n`,
`\\r\\n` and `\\r`, and counts columns in UTF-16 units: a character beyond
U+FFFF is two. Here a column counts code points.
"""

from __future__ import annotations

import bisect
import re

from locojax.core import checks
from locojax.engines.types import Position, Range

_END = re.compile(r"\r\n|\n|\r")
_LONE = re.compile(r"\r(?!\n)")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def units(text: str) -> int:
  """UTF-16 units of a text; a lone surrogate is one."""
  return len(text) + (0 if text.isascii() else len(_ASTRAL.findall(text)))


def to_units(line: str, column: int) -> int:
  """The UTF-16 column of a column in code points."""
  return units(line[:column])


def from_units(line: str, column: int) -> int:
  """The column in code points of a UTF-16 column.

  A place inside a surrogate pair is that of the pair; one beyond the line is
  the line's end, as the protocol asks for.
  """
  if line.isascii():
    return min(column, len(line))
  found = 0
  for i, character in enumerate(line):
    found += 2 if character > "\uffff" else 1
    if found > column:
      return i
  return len(line)


def with_newlines(text: str) -> str:
  """The text with `\\n` for each `\\r` alone: the same lines and columns."""
  return _LONE.sub("\n", text) if "\r" in text else text


class Lines:
  """The lines of a text, by offset.

  Attributes:
    text: the text.
    starts: offset of the first character of each line; a text that ends with
      a line end has an empty line after it.
  """

  def __init__(self, text: str):
    self.text = checks.text("text", text)
    self.starts = [0, *(m.end() for m in _END.finditer(text))]

  @property
  def has_lone_returns(self) -> bool:
    """Whether a `\\r` without `\\n` after it ends a line."""
    return "\r" in self.text and bool(_LONE.search(self.text))

  def __len__(self) -> int:
    return len(self.starts)

  def line(self, number: int) -> str:
    """A line without its end."""
    checks.int_in_range("line", number, 0, len(self.starts) - 1)
    start = self.starts[number]
    found = _END.search(self.text, start)
    return self.text[start : found.start() if found else len(self.text)]

  def offset(self, position: Position) -> int:
    """The offset of a position.

    Raises:
      ValueError: there is no such line, or it is shorter than the column.
    """
    line = self.line(position.line)
    checks.int_in_range("column", position.column, 0, len(line))
    return self.starts[position.line] + position.column

  def position(self, offset: int) -> Position:
    """The position of an offset; one inside `\\r\\n` is that of its start."""
    checks.int_in_range("offset", offset, 0, len(self.text))
    number = bisect.bisect_right(self.starts, offset) - 1
    column = min(offset - self.starts[number], len(self.line(number)))
    return Position(number, column)

  def to_wire(self, position: Position) -> dict[str, int]:
    """A position in UTF-16 units, as JSON."""
    self.offset(position)
    line = self.line(position.line)
    return {
      "line": position.line,
      "character": to_units(line, position.column),
    }

  def from_wire(self, found: dict[str, int]) -> Position:
    """A position from JSON; what lies outside the text is moved inside."""
    number = found["line"]
    if number >= len(self.starts):
      return self.position(len(self.text))
    line = self.line(number)
    return Position(number, from_units(line, found["character"]))

  def range_to_wire(self, place: Range) -> dict[str, dict[str, int]]:
    return {
      "start": self.to_wire(place.start),
      "end": self.to_wire(place.end),
    }

  def range_from_wire(self, found: dict[str, dict[str, int]]) -> Range:
    start, end = (self.from_wire(found[side]) for side in ("start", "end"))
    return Range(start, max(start, end))
