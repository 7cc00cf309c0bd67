"""Kotlin and Dart by their grammars: errors of syntax, names in the file.

No engine for them is a package of a registry that answers in time, so types
and references go unchecked, and each report says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pathlib
from typing import Any

from locojax.core import checks
from locojax.engines import programs
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
)

# Language -> module, package, and the version that tests have seen.
GRAMMARS = {
  "kotlin": ("tree_sitter_kotlin", "tree-sitter-kotlin", "1.1.0"),
  "dart": ("tree_sitter_dart", "tree-sitter-dart", "0.1.0"),
}
TESTED = "0.26.1"
_MAX_ERRORS = 100
_IDENTIFIERS = ("identifier", "simple_identifier", "type_identifier")


def is_installed(language: str) -> bool:
  """Whether tree-sitter and the grammar of a language are."""
  module, _, _ = checks.lookup("language", language, GRAMMARS)
  return all(map(importlib.util.find_spec, ("tree_sitter", module)))


class SyntaxEngine(LocalEngine):
  """A tree-sitter grammar as an `Engine`.

  Args:
    root: the folder that documents lie in.
    language: one of `GRAMMARS`.
    timeout: seconds for an answer.

  Raises:
    EngineAbsent: tree-sitter or the grammar is not installed.
  """

  def __init__(
    self,
    root: str | pathlib.Path,
    *,
    language: str,
    timeout: float = 10.0,
  ):
    module, package, tested = checks.lookup("language", language, GRAMMARS)
    if not is_installed(language):
      raise EngineAbsent(
        f"the grammar of {language} is not installed: install the packages "
        f"tree-sitter and {package} (PyPI), or run `./scripts/install_engines "
        "syntax`."
      )
    version = importlib.metadata.version(package)
    super().__init__(
      root,
      name=f"tree-sitter-{language}",
      language=language,
      timeout=timeout,
      version=version,
    )
    import tree_sitter

    found = importlib.import_module(module).language()
    self._parser = tree_sitter.Parser(tree_sitter.Language(found))
    programs.warn_of_version(package, version, tested)

  def _tree(self, document: Document) -> Any:
    return self._parser.parse(document.text.encode()).root_node

  def _diagnose(self, document: Document) -> Report:
    place = _Bytes(document)
    found = [
      Diagnostic(
        Range(place(node.start_byte), place(node.end_byte)),
        f"{node.type} is missing" if node.is_missing else "not understood",
        code="missing" if node.is_missing else "error",
        kind=SYNTAX,
        source=self.name,
      )
      for node in _errors(self._tree(document))
    ]
    return Report(tuple(found), document.version, SEMANTIC)

  def _complete(self, document: Document, position: Position) -> CompletionList:
    """Identifiers of the file that begin as the one at the cursor does."""
    lines = document.lines
    cursor = len(document.text[: lines.offset(position)].encode())
    typed, names = b"", set()
    for node in _walk(self._tree(document)):
      if node.type not in _IDENTIFIERS:
        continue
      if node.start_byte < cursor <= node.end_byte:
        typed = node.text[: cursor - node.start_byte]
      else:
        names.add(node.text)
    start = Position(position.line, position.column - len(typed.decode()))
    place = Range(start, position)
    matching = sorted(n.decode() for n in names if n.startswith(typed))
    items = tuple(Item(n, n, label=n, range=place) for n in matching)
    return CompletionList(items, document.version)


class _Bytes:
  """Positions of a document by offset in its UTF-8 bytes."""

  def __init__(self, document: Document):
    self._lines: Lines = document.lines
    text = document.text
    self._bytes = None if text.isascii() else text.encode()

  def __call__(self, offset: int) -> Position:
    if self._bytes is not None:
      offset = len(self._bytes[:offset].decode())
    return self._lines.position(offset)


def _walk(root: Any):
  """All nodes, in order, without recursion: trees of code are deep."""
  stack = [root]
  while stack:
    node = stack.pop()
    yield node
    stack.extend(reversed(node.children))


def _errors(root: Any) -> list[Any]:
  """The outermost nodes that are errors, and those that are missing."""
  found, stack = [], [root]
  while stack and len(found) < _MAX_ERRORS:
    node = stack.pop()
    if node.is_error or node.is_missing:
      found.append(node)
    elif node.has_error:
      stack.extend(reversed(node.children))
  return found
