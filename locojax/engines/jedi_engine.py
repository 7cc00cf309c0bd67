"""Python in this process, by jedi: completions, no types.

Slower than ty and without a type check, but it needs no program. It reads
source, and loads no compiled module of the project.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
from typing import Any

from locojax.engines import documents, programs
from locojax.engines.documents import Document
from locojax.engines.local import LocalEngine
from locojax.engines.positions import Lines
from locojax.engines.types import (
  SEMANTIC,
  SYNTAX,
  CompletionList,
  Diagnostic,
  EngineAbsent,
  Item,
  Position,
  Range,
  Report,
  Signature,
)

TESTED = "0.20.1"
_KINDS = {"instance": "variable", "statement": "variable", "param": "variable"}


class JediEngine(LocalEngine):
  """jedi as an `Engine`; its diagnostics are those of syntax.

  Raises:
    EngineAbsent: jedi is not installed.
  """

  def __init__(self, root: str | pathlib.Path, *, timeout: float = 10.0):
    if importlib.util.find_spec("jedi") is None:
      raise EngineAbsent(
        "jedi is not installed: install the package jedi (PyPI), or run "
        "`./scripts/install_engines python`."
      )
    version = importlib.metadata.version("jedi")
    super().__init__(
      root, name="jedi", language="python", timeout=timeout, version=version
    )
    programs.warn_of_version("jedi", version, TESTED)
    import jedi

    self._project = jedi.Project(self.root, load_unsafe_extensions=False)

  def _script(self, document: Document) -> Any:
    import jedi

    path = documents.path(document.uri)
    return jedi.Script(document.text, path=path, project=self._project)

  def _complete(self, document: Document, position: Position) -> CompletionList:
    lines = document.lines
    typed_from = _identifier_start(lines, position)
    found = self._script(document).complete(*_place(lines, position))
    items = tuple(
      Item(
        name=c.name.removesuffix("="),
        insert=c.name,
        label=c.name,
        kind=_KINDS.get(c.type, c.type),
        range=Range(typed_from, position),
      )
      for c in found
    )
    return CompletionList(items, document.version)

  def _diagnose(self, document: Document) -> Report:
    found = tuple(
      Diagnostic(
        Range(
          _position(document.lines, e.line, e.column),
          _position(document.lines, e.until_line, e.until_column),
        ),
        e.get_message(),
        kind=SYNTAX,
        source="jedi",
      )
      for e in self._script(document).get_syntax_errors()
    )
    return Report(found, document.version, SEMANTIC)

  def _signature(
    self, document: Document, position: Position
  ) -> tuple[Signature, ...]:
    place = _place(document.lines, position)
    return tuple(
      Signature(s.to_string(), tuple(p.to_string() for p in s.params), s.index)
      for s in self._script(document).get_signatures(*place)
    )

  def _hover(self, document: Document, position: Position) -> str:
    place = _place(document.lines, position)
    found = self._script(document).help(*place)
    return "\n\n".join(filter(None, (name.docstring() for name in found)))


def _identifier_start(lines: Lines, position: Position) -> Position:
  """Where the identifier that ends at a position begins."""
  before = lines.line(position.line)[: position.column]
  start = len(before)
  while start and (
    before[start - 1].isidentifier() or before[start - 1].isdigit()
  ):
    start -= 1
  return Position(position.line, start)


def _place(lines: Lines, position: Position) -> tuple[int, int]:
  """Line from 1 and column, as jedi counts them.

  Form feeds and the like end no line for us and for Python; parso agrees.
  """
  return position.line + 1, position.column


def _position(lines: Lines, line: int, column: int) -> Position:
  """A place of jedi, moved into the text."""
  number = min(line, len(lines)) - 1
  return Position(number, min(column, len(lines.line(number))))
