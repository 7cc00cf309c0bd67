"""Texts of an editor, change by change, in the words of the protocol.

They are kept here rather than by pygls, which ends lines at form feeds and at
U+2028 as well, where editors see none.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from locojax import engines
from locojax.core import checks
from locojax.data import code
from locojax.engines import documents

LANGUAGES = {
  "python": "python",
  "typescript": "typescript",
  "typescriptreact": "typescript",
  "go": "go",
  "cpp": "cpp",
  "c": "cpp",
  "proto": "proto",
  "proto3": "proto",
  "java": "java",
  "kotlin": "kotlin",
  "dart": "dart",
}


@dataclasses.dataclass(frozen=True)
class Text:
  """One version of a document, as the editor has it.

  Attributes:
    uri: its name.
    language: of `engines.BY_LANGUAGE`; '' for one that nobody completes.
    text: all of it.
    version: the editor's number.
    refusal: why it is not completed; '' if it is.
    lines: of the text.
  """

  uri: str
  language: str
  text: str
  version: int
  refusal: str = dataclasses.field(init=False)
  lines: engines.Lines = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    object.__setattr__(self, "refusal", _refusal(self))
    object.__setattr__(self, "lines", engines.Lines(self.text))

  def offset(self, position: Mapping[str, int]) -> int:
    """The offset of a position in UTF-16 units, moved inside the text."""
    return self.lines.offset(self.lines.from_wire(position))

  def place(self, offset: int) -> dict[str, int]:
    """The position of an offset in UTF-16 units."""
    return self.lines.to_wire(self.lines.position(offset))

  def range(self, start: int, end: int) -> dict[str, dict[str, int]]:
    return {"start": self.place(start), "end": self.place(end)}

  def changed(self, changes: Sequence[Any], version: int) -> Text:
    """The text after content changes, each of the text before it.

    Args:
      changes: `{range?, text}`; without a range it is all of the text.
      version: the editor's new one.
    """
    text, lines = self.text, self.lines
    for i, change in enumerate(changes):
      place = change.get("range")
      if place is None:
        text = change["text"]
        continue
      lines = engines.Lines(text) if i else lines
      start, end = (
        lines.offset(lines.from_wire(place[side])) for side in ("start", "end")
      )
      text = text[:start] + change["text"] + text[max(start, end) :]
    return Text(self.uri, self.language, text, version)


def _refusal(text: Text) -> str:
  if not text.language:
    return "no language that is completed"
  try:
    documents.check_text(text.text)
  except ValueError as error:
    return str(error)
  return ""


def language_of(uri: str, language_id: str) -> str:
  """The language of a document, by its editor's name or its suffix."""
  suffix = pathlib.PurePosixPath(uri).suffix
  by_suffix = {s: n for n, found in code.SUFFIXES.items() for s in found}
  return LANGUAGES.get(language_id) or by_suffix.get(suffix, "")


def difference(old: str, new: str) -> engines.Edit | None:
  """The shortest single edit between two texts; None if they are equal."""
  if old == new:
    return None
  most = min(len(old), len(new))
  start = _same(lambda n: old.startswith(new[:n]), most)
  end = _same(lambda n: old.endswith(new[len(new) - n :]), most - start)
  return engines.Edit(start, len(old) - end, new[start : len(new) - end])


def _same(test: Any, most: int) -> int:
  """The greatest number up to `most` that passes; all below it do."""
  low, high = 0, checks.nonnegative_int("most", most)
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if test(middle) else (low, middle - 1)
  return low
