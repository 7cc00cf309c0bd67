"""Engines in this process: documents, and one thread that does the work."""

from __future__ import annotations

import concurrent.futures
import pathlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from locojax.core import checks
from locojax.engines import calls, documents
from locojax.engines.documents import Document
from locojax.engines.types import (
  CompletionList,
  Edit,
  EngineDied,
  Item,
  Position,
  Report,
  Signature,
)


class LocalEngine:
  """What engines in this process have in common; a subclass does the work.

  It overrides `_complete(document, position)`, `_diagnose(document)`, and if it
  can `_signature` and `_hover`, which are called on one thread of its own.

  Args:
    root: the folder that documents lie in.
    name: of the engine.
    language: of its documents.
    timeout: seconds for an answer.
    version: of what it is made of; '' if it has none.
  """

  def __init__(
    self,
    root: str | pathlib.Path,
    *,
    name: str,
    language: str,
    timeout: float = 10.0,
    version: str = "",
  ):
    self.root = pathlib.Path(root).resolve()
    if not self.root.is_dir():
      checks.refuse("root", str(root), "a folder")
    self.name, self.language, self.version = name, language, version
    self.timeout = checks.positive("timeout", timeout)
    self._documents: dict[str, Document] = {}
    self._lock = threading.Lock()
    self._ended = False
    self._pool = concurrent.futures.ThreadPoolExecutor(1, f"{name}-engine")

  def __enter__(self) -> LocalEngine:
    return self

  def __exit__(self, *_) -> None:
    self.shutdown()

  def shutdown(self) -> None:
    self._ended = True
    self._pool.shutdown(wait=False, cancel_futures=True)

  def open(self, uri: str, text: str) -> int:
    documents.check_inside(uri, self.root)
    with self._lock:
      if uri in self._documents:
        checks.refuse("uri", uri, "a document that is not open yet")
      document = Document(uri, documents.check_text(text))
      self._documents[uri] = document
    return document.version

  def change(self, uri: str, edits: Sequence[Edit]) -> int:
    with self._lock:
      before = self._document(uri)
      if edits:
        self._documents[uri], _ = before.edited(edits)
      return self._documents[uri].version

  def close(self, uri: str) -> None:
    with self._lock:
      self._document(uri)
      del self._documents[uri]

  def text(self, uri: str) -> str:
    return self._document(uri).text

  def _document(self, uri: str) -> Document:
    if self._ended:
      raise EngineDied(f"{self.name} was shut down.")
    return checks.lookup("uri", uri, self._documents)

  def _later(self, work: Callable[..., Any], uri: str, *place) -> Future:
    document = self._document(uri)
    for position in place:
      document.lines.offset(position)
    return self._pool.submit(work, document, *place)

  def _wait(self, call: Future, timeout: float | None) -> Any:
    timeout = self.timeout if timeout is None else timeout
    return calls.wait(call, self.name, checks.positive("timeout", timeout))

  def complete_later(self, uri: str, position: Position) -> Future:
    return self._later(self._complete, uri, position)

  def complete(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> CompletionList:
    return self._wait(self.complete_later(uri, position), timeout)

  def diagnostics_later(self, uri: str) -> Future:
    return self._later(self._diagnose, uri)

  def diagnostics(self, uri: str, *, timeout: float | None = None) -> Report:
    return self._wait(self.diagnostics_later(uri), timeout)

  def signature(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> tuple[Signature, ...]:
    return self._wait(self._later(self._signature, uri, position), timeout)

  def hover(
    self, uri: str, position: Position, *, timeout: float | None = None
  ) -> str:
    return self._wait(self._later(self._hover, uri, position), timeout)

  def _complete(self, document: Document, position: Position) -> CompletionList:
    return CompletionList((), document.version)

  def _diagnose(self, document: Document) -> Report:
    return Report((), document.version)

  def _signature(
    self, document: Document, position: Position
  ) -> tuple[Signature, ...]:
    return ()

  def _hover(self, document: Document, position: Position) -> str:
    return ""


class StaticEngine(LocalEngine):
  """An engine that says what it was given, for tests and trials.

  Args:
    root: the folder that documents lie in.
    names: of its completion list, whatever the position.
    judge: makes diagnostics of a text; None finds nothing.
    language: of its documents.
  """

  def __init__(
    self,
    root: str | pathlib.Path,
    *,
    names: Sequence[str] = (),
    judge: Callable[[str], Sequence[Any]] | None = None,
    language: str = "python",
  ):
    super().__init__(root, name="static", language=language)
    self._items = tuple(Item(name, name, label=name) for name in names)
    self._judge = judge

  def _complete(self, document: Document, position: Position) -> CompletionList:
    return CompletionList(self._items, document.version)

  def _diagnose(self, document: Document) -> Report:
    found = self._judge(document.text) if self._judge else ()
    return Report(tuple(found), document.version)
