"""Open documents: the text as the editor has it, by version.

They are what an engine is told again after it was restarted, so no edit is
lost with a process.
"""

from __future__ import annotations

import dataclasses
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from locojax.core import checks
from locojax.engines.positions import Lines, units
from locojax.engines.types import Edit

MAX_LENGTH = 4_000_000  # characters; engines take seconds for such files


def uri(path: str | pathlib.Path) -> str:
  """The `file:` URI of a path, which is made absolute."""
  return pathlib.Path(path).absolute().as_uri()


def path(name: str) -> pathlib.Path:
  """The path that a `file:` URI names.

  Raises:
    ValueError: another kind of URI.
  """
  parts = urllib.parse.urlsplit(checks.text("uri", name))
  if parts.scheme != "file" or not parts.path:
    checks.refuse("uri", name, "a file: URI, as made by `engines.uri(path)`")
  return pathlib.Path(urllib.request.url2pathname(parts.path))


def check_inside(name: str, root: pathlib.Path) -> pathlib.Path:
  """The path of a URI inside the workspace folder.

  Engines say nothing about files elsewhere (ty), which would look like a file
  without errors.

  Raises:
    ValueError: it lies outside, or is no `file:` URI.
  """
  found = path(name).resolve()
  if not found.is_relative_to(root):
    checks.refuse("uri", name, f"inside the engine's root={str(root)!r}")
  return found


def check_text(text: str) -> str:
  """A text that engines can be told.

  Raises:
    ValueError: too long; binary (a NUL); a lone surrogate, which is no text.
  """
  checks.text("text", text)
  if len(text) > MAX_LENGTH:
    checks.refuse(
      "length of text", len(text), f"{MAX_LENGTH} characters or fewer"
    )
  if "\0" in text:
    raise ValueError("text has a NUL character: it must be source code.")
  if not text.isascii():
    try:
      text.encode("utf-8")
    except UnicodeEncodeError as error:
      raise ValueError(
        f"text has the lone surrogate {text[error.start]!r} at offset "
        f"{error.start}: it must be Unicode."
      ) from None
  return text


@dataclasses.dataclass(frozen=True)
class Document:
  """One version of a text; edits make another.

  Attributes:
    uri: its name.
    text: all of it.
    version: 1 when opened, then one more with each change.
    lines: of the text.
  """

  uri: str
  text: str
  version: int = 1
  lines: Lines = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    object.__setattr__(self, "lines", Lines(self.text))

  def edited(
    self, edits: Sequence[Edit]
  ) -> tuple[Document, list[dict[str, Any]]]:
    """The document after some edits, and these as LSP content changes.

    Args:
      edits: each of the text that those before it left.

    Raises:
      ValueError: an edit is outside its text.
    """
    text, changes = self.text, []
    for i, edit in enumerate(edits):
      checks.int_in_range("end", edit.end, edit.start, len(text))
      changes.append(_change(Lines(text) if i else self.lines, edit))
      text = text[: edit.start] + edit.text + text[edit.end :]
    check_text(text)
    return Document(self.uri, text, self.version + 1), changes


def _change(lines: Lines, edit: Edit) -> dict[str, Any]:
  """An edit as a content change with a range.

  An edge of it between `\\r` and `\\n` is no place of the protocol; the range
  then takes the whole line end, and the new text puts back its part.
  """
  text, start, end, new = lines.text, edit.start, edit.end, edit.text
  if text[start - 1 : start + 1] == "\r\n" and start:
    start, new = start - 1, "\r" + new
  if text[end - 1 : end + 1] == "\r\n" and end:
    end, new = end + 1, new + "\n"
  places = [_wire(lines, offset) for offset in (start, end)]
  return {"range": {"start": places[0], "end": places[1]}, "text": new}


def _wire(lines: Lines, offset: int) -> dict[str, int]:
  place = lines.position(offset)
  start = lines.starts[place.line]
  return {"line": place.line, "character": units(lines.text[start:offset])}
